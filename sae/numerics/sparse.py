"""Sparse codes and the few products that a sparse dictionary needs, in plain PyTorch.

A code is kept as the entries that are not zero, never as a (rows, d_sae) array: as (rows, k) values and indices where
every row has k of them (`TopKCode`), or as one list ordered by row where rows differ (`FlatCode`). With Z the
(B, m) code matrix, W (m, d) a dictionary with one feature a row, and G (B, d):

    decode       Z W                      gather-sum over the features of a row           `gather_sum`
    row dots     G W^T at Z's entries     gather-dot; the gradient of the code            `row_dots`
    column sums  Z^T G                    sort the entries by feature once, gather-sum    `ByFeature.sum_rows`

Gathers wait for memory, not for arithmetic: a row of W is read for every entry, and W does not fit the cache next to a
core. So on a CPU the sums take W in *panels*, blocks of columns that do fit: each is copied once and gathered from
there, which is half the time for the same sums in the same order. On a GPU, Triton's kernels may do the same products
(kernels.py).

Which entries are on is decided in selection.py.
"""

from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sae.numerics.kernels import by_triton

_PANEL_BYTES = 768 * 1024  # what fits beside the lists in the second-level cache of current processors
_NARROWEST = 16  # columns; narrower panels spend their time on the lists
_SUM = 0  # the mode's number in the kernels of embedding_bag


class TopKCode(NamedTuple):
    """A sparse code with the same number of slots in every row.

    Attributes:
        values: (..., k) float, >= 0. A value of 0 is an unused slot, so rows may have fewer than k features.
        indices: (..., k) int64, features in [0, d_sae); those of used slots are distinct within a row.
    """

    values: Tensor
    indices: Tensor

    def to_dense(self, d_sae: int) -> Tensor:
        """The same code as a (..., d_sae) array. Costs rows x d_sae memory: for small batches only."""
        dense = self.values.new_zeros(*self.values.shape[:-1], d_sae)
        return dense.scatter_add(-1, self.indices, self.values)  # add: unused slots share an index

    def flat(self) -> "FlatCode":
        """The same slots, used or not, as one list."""
        k = self.indices.shape[-1]
        offsets = torch.arange(0, self.indices.numel(), k, device=self.indices.device)
        return FlatCode(self.values.reshape(-1), self.indices.reshape(-1), offsets)


class FlatCode(NamedTuple):
    """A sparse code whose rows may differ in length, ordered by row.

    Attributes:
        values: (n,) float.
        indices: (n,) int64, features in [0, d_sae).
        offsets: (B,) int64, where each row starts.
    """

    values: Tensor
    indices: Tensor
    offsets: Tensor

    @classmethod
    def from_rows(cls, values: Tensor, indices: Tensor, rows: Tensor, n_rows: int) -> Self:
        """A code from entries whose `rows` (n,) ascend."""
        counts = occurrences(rows, n_rows)
        return cls(values, indices, counts.cumsum(0) - counts)

    def counts(self) -> Tensor:
        """(B,) entries of each row."""
        return torch.diff(self.offsets, append=self.offsets.new_tensor([self.indices.numel()]))

    def rows(self) -> Tensor:
        """(n,) the row of each entry, ascending."""
        numbers = torch.arange(self.offsets.numel(), device=self.offsets.device)
        return numbers.repeat_interleave(self.counts(), output_size=self.indices.numel())

    def keep(self, mask: Tensor) -> "FlatCode":
        """The entries where `mask` (n,) is True; the number of rows stays."""
        return FlatCode.from_rows(self.values[mask], self.indices[mask], self.rows()[mask], self.offsets.numel())

    def padded(self) -> TopKCode:
        """The same code with as many slots in every row as the fullest row needs (at least one)."""
        rows, counts = self.rows(), self.counts()
        k = max(1, int(counts.max())) if counts.numel() else 1
        values = self.values.new_zeros(counts.numel(), k)
        indices = self.indices.new_zeros(counts.numel(), k)
        slot = torch.arange(rows.numel(), device=rows.device) - self.offsets[rows]
        values[rows, slot], indices[rows, slot] = self.values, self.indices
        return TopKCode(values, indices)


def gather_sum(code: FlatCode, dictionary: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Z W: code of B rows and (d_sae, d) dictionary to (B, d). Differentiable, unless it is written to `out`."""
    return _bag_sum(code.indices, dictionary, code.offsets, code.values, out)


def row_dots(code: FlatCode, rows: Tensor, dictionary: Tensor) -> Tensor:
    """(X W^T) at the code's entries, (n,), for X = rows (B, d). The code's values do not matter. No gradient."""
    if by_triton():
        from sae.numerics import triton_dots

        return triton_dots.row_dots(code.indices, code.offsets, rows, dictionary)
    # The kernel that autograd runs for the weights of `embedding_bag`; called by name it needs no forward pass.
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        rows.detach(), dictionary.detach(), code.indices, code.offsets, code.rows(), _SUM
    )


def occurrences(numbers: Tensor, n: int, on: Tensor | None = None) -> Tensor:
    """(n,) int64: how often each of 0 ... n - 1 is among `numbers`, counting only those where `on` is True."""
    if numbers.is_cpu:
        return torch.bincount(numbers if on is None else numbers[on], minlength=n)
    # Counted without asking the device for a size, which would wait for it. Integers: any order gives the same.
    ones = torch.ones_like(numbers) if on is None else on.to(numbers.dtype)
    return torch.zeros(n, dtype=numbers.dtype, device=numbers.device).index_add_(0, numbers, ones)


class ByFeature:
    """The entries of a code sorted by feature, so that sums over rows become contiguous gathers."""

    def __init__(self, code: FlatCode, d_sae: int) -> None:
        # Stable: one summation order, so results are reproducible.
        self._order = torch.argsort(code.indices, stable=True)
        self._features, self._counts = code.indices, occurrences(code.indices, d_sae)
        # 32 bits: half the traffic of the list that the gather reads.
        self._rows = code.rows()[self._order].to(torch.int32)
        self._offsets = (self._counts.cumsum(0) - self._counts).to(torch.int32)

    def sum_rows(self, entries: Tensor, rows: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Z^T G with Z's (n,) entries and G = rows (B, d): a (d_sae, d) array, `out` if given."""
        return _bag_sum(self._rows, rows, self._offsets, entries[self._order], out)

    def sum_entries(self, entries: Tensor) -> Tensor:
        """Z^T 1: (d_sae,) sums of Z's (n,) entries."""
        if entries.is_cpu:
            return entries.new_zeros(self._counts.numel()).index_add_(0, self._features, entries)
        # There, index_add_ adds in whatever order its threads come.
        return torch.segment_reduce(entries[self._order], "sum", lengths=self._counts, unsafe=True)


def _bag_sum(indices: Tensor, table: Tensor, offsets: Tensor, weights: Tensor, out: Tensor | None) -> Tensor:
    """(bags, d): the weighted sum of the rows of `table` (rows, d) that each bag lists."""
    if by_triton(table, weights):
        from sae.numerics import triton_sums

        return triton_sums.bag_sum(indices, table, offsets, weights, out)
    width = _panel_width(table)
    if width >= table.shape[1] or (torch.is_grad_enabled() and (table.requires_grad or weights.requires_grad)):
        found = F.embedding_bag(indices, table, offsets, mode="sum", per_sample_weights=weights)
        return found if out is None else out.copy_(found)
    out = table.new_empty(offsets.numel(), table.shape[1]) if out is None else out
    for panel, target in zip(table.split(width, 1), out.split(width, 1), strict=True):
        target.copy_(F.embedding_bag(indices, panel.contiguous(), offsets, mode="sum", per_sample_weights=weights))
    return out


def _panel_width(table: Tensor) -> int:
    """Columns of a panel; all of them where panels do not help."""
    if table.device.type != "cpu":
        return table.shape[1]
    width = _PANEL_BYTES // max(1, table.shape[0] * table.element_size())
    return 1 << width.bit_length() - 1 if width >= _NARROWEST else table.shape[1]
