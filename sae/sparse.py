"""Sparse codes and the few products that a sparse dictionary needs, in plain PyTorch.

A code is kept as the k values and indices that are not zero, never as a (rows, d_sae) array. With Z the (B,
m) code matrix, W (m, d) a dictionary with one feature a row, and G (B, d):

    decode       Z W                      gather-sum over the k features of a row         `gather_sum`
    row dots     G W^T at Z's entries     gather-dot; the gradient of the code            `GatherSum`
    column sums  Z^T G                    sort the entries by feature once, gather-sum    `ByFeature.sum_rows`

The encoder product x W_enc + b is done for a chunk of rows at a time into one reused buffer, and only its top
k survive.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class TopKCode(NamedTuple):
    """A sparse code: for every row the features that are on.

    Attributes:
        values: (..., k) float, >= 0. A value of 0 is an unused slot, so rows may have fewer than k features.
        indices: (..., k) int64, features in [0, d_sae); distinct within a row.
    """

    values: Tensor
    indices: Tensor

    def to_dense(self, d_sae: int) -> Tensor:
        """The same code as a (..., d_sae) array. Costs rows x d_sae memory: for small batches only."""
        dense = self.values.new_zeros(*self.values.shape[:-1], d_sae)
        return dense.scatter(-1, self.indices, self.values)


def chunk_rows_for(d_sae: int) -> int:
    """Rows of pre-activations to hold at a time: about 4 MB of float32, which stays in a core's cache."""
    return max(64, min(4096, 2**20 // d_sae))


def row_chunks(n_rows: int, chunk_rows: int) -> Iterator[slice]:
    """Consecutive slices that cover range(n_rows)."""
    for start in range(0, n_rows, chunk_rows):
        yield slice(start, min(start + chunk_rows, n_rows))


def top_k(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row, in no particular order; ties are broken arbitrarily but
    reproducibly.

    Exact, in two stages: cut a row into n strided groups of g; the k largest entries lie in the k groups with
    the largest maxima, so a top-k over n maxima and one over k*g candidates replace one over n*g entries.
    Strided groups make the maximum run along the fast axis. Plain torch.topk where a row does not divide or
    the groups would be too few.

    Args:
        pre: (rows, d_sae), contiguous.
        k: entries to keep, at most d_sae.
    """
    rows, d_sae = pre.shape
    size = 1 << round(math.log2(d_sae / k) / 2)  # the group size that balances the two stages
    if size < 4 or d_sae % size or d_sae // size < k:
        return tuple(pre.topk(k, sorted=False))  # type: ignore[return-value]
    n_groups = d_sae // size
    grouped = pre.view(rows, size, n_groups)
    groups = grouped.amax(1).topk(k, sorted=False).indices
    candidates = grouped.gather(2, groups.unsqueeze(1).expand(rows, size, k)).view(rows, size * k)
    values, at = candidates.topk(k, sorted=False)
    return values, groups.gather(1, at % k) + (at // k) * n_groups


def encode_rows(x: Tensor, encoder: Tensor, bias: Tensor, k: int, *, buffer: Tensor | None = None) -> TopKCode:
    """ReLU(TopK_k(x encoder^T + bias)) in chunks of rows; no gradient is recorded.

    Args:
        x: (B, d_in), already scaled and centred.
        encoder: (d_sae, d_in), one feature a row (W_enc transposed).
        bias: (d_sae,).
        k: features to keep.
        buffer: (rows, d_sae) scratch space to reuse between calls; its first axis sets the chunk.
    """
    d_sae = encoder.shape[0]
    if buffer is None:
        buffer = x.new_empty(min(chunk_rows_for(d_sae), max(1, x.shape[0])), d_sae)
    values = x.new_empty(x.shape[0], k)
    indices = torch.empty(x.shape[0], k, dtype=torch.int64, device=x.device)
    with torch.no_grad():
        for rows in row_chunks(x.shape[0], buffer.shape[0]):
            pre = buffer[: rows.stop - rows.start]
            torch.addmm(bias, x[rows], encoder.T, out=pre)
            values[rows], indices[rows] = top_k(pre, k)
        return TopKCode(values.relu_(), indices)


def gather_sum(code: TopKCode, dictionary: Tensor) -> Tensor:
    """Z W: (B, k) code and (d_sae, d) dictionary to (B, d)."""
    return F.embedding_bag(code.indices, dictionary, mode="sum", per_sample_weights=code.values)


class GatherSum:
    """Z W together with the gradient of its code, each touching only the k features of a row."""

    def __init__(self, code: TopKCode, dictionary: Tensor) -> None:
        # Autograd of this one operation, with the values as its only leaf, runs PyTorch's native gather-dot
        # kernel; no
        # gradient of the dictionary is formed here.
        with torch.enable_grad():
            self._values = code.values.detach().requires_grad_(True)
            self._output = gather_sum(TopKCode(self._values, code.indices), dictionary.detach())
        self.output = self._output.detach()

    def code_gradient(self, grad_output: Tensor) -> Tensor:
        """(G W^T) at the code's entries, (B, k), for G = grad_output (B, d). Can be called once."""
        return torch.autograd.grad(self._output, self._values, grad_output)[0]


class ByFeature:
    """The entries of a code sorted by feature, so that sums over rows become contiguous gathers."""

    def __init__(self, indices: Tensor, d_sae: int) -> None:
        flat = indices.reshape(-1)
        self._order = torch.argsort(flat, stable=True)  # stable: one summation order, so results are reproducible
        self._rows = self._order // indices.shape[-1]
        counts = torch.bincount(flat, minlength=d_sae)
        self._offsets = counts.cumsum(0) - counts

    def sum_rows(self, entries: Tensor, rows: Tensor) -> Tensor:
        """Z^T G with Z's (B, k) entries and G = rows (B, d): a (d_sae, d) array."""
        weights = entries.reshape(-1)[self._order]
        return F.embedding_bag(self._rows, rows, self._offsets, mode="sum", per_sample_weights=weights)
