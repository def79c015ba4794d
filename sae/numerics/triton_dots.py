"""Products of rows with the features of a code, on a GPU: exact pre-activations, and the gradient of a code (Triton).

    out_e = < x_r, W_(i_e) >          for every entry e of row r

A program takes one row: x_r is read for a tile of entries at once, and nothing is written but the products. Sums are in
float32, or in float64 for such rows.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ENTRIES = 16  # of a tile
_COLUMNS = 128


@triton.jit
def _dot_kernel(
    x,
    dictionary,
    indices,
    offsets,
    out,
    n_rows,
    n_entries,
    n_columns,
    stride_x,
    stride_w,
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
    SUM: tl.constexpr,
):
    row = tl.program_id(0)
    first = tl.load(offsets + row)
    last = tl.load(offsets + row + 1, mask=row + 1 < n_rows, other=n_entries)
    own = x + row.to(tl.int64) * stride_x
    for start in range(first, last, ENTRIES):
        entries = start + tl.arange(0, ENTRIES)
        here = entries < last
        features = tl.load(indices + entries, mask=here, other=0).to(tl.int64)
        total = tl.zeros((ENTRIES,), dtype=SUM)
        for low in range(0, n_columns, COLUMNS):
            columns = low + tl.arange(0, COLUMNS)
            inside = columns < n_columns
            c = tl.load(own + columns, mask=inside, other=0.0).to(SUM)
            tile = tl.load(
                dictionary + features[:, None] * stride_w + columns[None, :],
                mask=here[:, None] & inside[None, :],
                other=0.0,
            ).to(SUM)
            total += tl.sum(tile * c[None, :], axis=1)
        tl.store(out + entries, total.to(out.dtype.element_ty), mask=here)


def row_dots(indices: Tensor, offsets: Tensor, rows: Tensor, dictionary: Tensor) -> Tensor:
    """(n,) products in the dtype of `rows`; no gradient.

    Args:
        indices: (n,) features of the entries, ordered by row, integers.
        offsets: (B,) where each row's entries begin, integers.
        rows: (B, d).
        dictionary: (m, d), one feature a row.
    """
    rows = rows.detach() if rows.stride(1) == 1 else rows.detach().contiguous()
    dictionary = dictionary.detach() if dictionary.stride(1) == 1 else dictionary.detach().contiguous()
    found = rows.new_empty(indices.numel())
    n_rows, n_columns = rows.shape
    if found.numel():
        start: Any = _dot_kernel[(n_rows,)]
        with torch.cuda.device_of(rows):  # Triton starts its programs on the current device
            start(
                rows,
                dictionary,
                indices.contiguous(),
                offsets.contiguous(),
                found,
                n_rows,
                indices.numel(),
                n_columns,
                rows.stride(0),
                dictionary.stride(0),
                ENTRIES=_ENTRIES,
                COLUMNS=min(_COLUMNS, triton.next_power_of_2(max(1, n_columns))),
                SUM=tl.float64 if rows.dtype == torch.float64 else tl.float32,
            )
    return found
