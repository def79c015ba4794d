"""Weighted sums of rows of a table, on a GPU: decoding, and both weight gradients (Triton).

    out_b = sum over entries e of bag b of  w_e table[i_e]          bag b = entries offsets_b ... offsets_(b+1) - 1

Decoding has a bag for each row of the batch and the dictionary as its table. A weight gradient has a bag for each
feature, with the batch as its table and the entries sorted by feature (`sparse.ByFeature`): a sum in one fixed order
instead of additions by many threads at once, so the same input gives the same bits.

A program makes one bag and one block of columns: it reads tiles of entries x columns, so the long bag of a feature that
is nearly always on still keeps many loads in flight. Products and sums are in float32, or in float64 for such tables.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ENTRIES = 16  # of a tile
_COLUMNS = 128


@triton.jit
def _sum_kernel(
    indices,
    table,
    offsets,
    weights,
    out,
    n_bags,
    n_entries,
    n_columns,
    stride,
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
    SUM: tl.constexpr,
):
    bag = tl.program_id(0)
    first = tl.load(offsets + bag)
    last = tl.load(offsets + bag + 1, mask=bag + 1 < n_bags, other=n_entries)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < n_columns
    total = tl.zeros((COLUMNS,), dtype=SUM)
    for start in range(first, last, ENTRIES):
        entries = start + tl.arange(0, ENTRIES)
        here = entries < last
        rows = tl.load(indices + entries, mask=here, other=0).to(tl.int64)
        w = tl.load(weights + entries, mask=here, other=0.0).to(SUM)
        tile = tl.load(
            table + rows[:, None] * stride + columns[None, :], mask=here[:, None] & inside[None, :], other=0.0
        ).to(SUM)
        total += tl.sum(tile * w[:, None], axis=0)
    at = bag.to(tl.int64) * n_columns + columns
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


def bag_sum(indices: Tensor, table: Tensor, offsets: Tensor, weights: Tensor, out: Tensor | None = None) -> Tensor:
    """(bags, d) sums; no gradient.

    Args:
        indices: (n,) rows of the table, integers.
        table: (rows, d), each row contiguous.
        offsets: (bags,) where each bag begins, ascending, integers.
        weights: (n,) floats.
        out: (bags, d) contiguous, where to write.
    """
    n_bags, n_columns = offsets.numel(), table.shape[1]
    table = table if table.stride(1) == 1 else table.contiguous()
    fits = out is not None and out.is_contiguous() and out.shape == (n_bags, n_columns)
    found = out if out is not None and fits else table.new_empty(n_bags, n_columns)
    width = min(_COLUMNS, triton.next_power_of_2(max(1, n_columns)))
    if n_bags:
        start: Any = _sum_kernel[(n_bags, triton.cdiv(n_columns, width))]
        with torch.cuda.device_of(table):  # Triton starts its programs on the current device
            start(
                indices.contiguous(),
                table,
                offsets.contiguous(),
                weights.contiguous(),
                found,
                n_bags,
                indices.numel(),
                n_columns,
                table.stride(0),
                ENTRIES=_ENTRIES,
                COLUMNS=width,
                SUM=tl.float64 if table.dtype == torch.float64 else tl.float32,
            )
    return found if out is None or fits else out.copy_(found)
