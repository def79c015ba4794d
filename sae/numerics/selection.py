"""Which features are on: the encoder product in chunks of rows, of which only the chosen entries survive.

    p = x encoder^T + bias          (B, d_sae), never whole: one chunk of rows at a time in one reused buffer

    encode_rows       the k largest entries of each row                 TopK
    largest_entries   the n largest positive entries of the batch       BatchTopK, Matryoshka
    entries_above     the entries above a threshold                     JumpReLU, and BatchTopK at inference

A coarse product (product.py) only *chooses* entries; the values of the chosen ones are then computed again in full
precision.
"""

import math

import torch
from torch import Tensor

from sae.numerics.peers import ALONE, Peers, nth_largest
from sae.numerics.product import pre_activations
from sae.numerics.sparse import FlatCode, TopKCode, row_dots


def top_k(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row, in no particular order; ties are broken arbitrarily but reproducibly.

    Exact, in stages: cut a row into n strided groups of g; the k largest entries lie in the k groups with the largest
    maxima, so it is enough to search the maxima (in the same way) and then k*g candidates. Strided groups make the
    maximum run along the fast axis. Plain torch.topk where a row does not divide or the groups would be too few.

    Args:
        pre: (rows, d_sae), contiguous.
        k: entries to keep, at most d_sae.
    """
    rows, d_sae = pre.shape
    # The group size that balances the two searches, but not above 8: the maxima are searched in stages too.
    size = min(8, 1 << round(math.log2(d_sae / k) / 2)) if k else 1
    if size < 4 or d_sae % size or d_sae // size < k:
        return tuple(pre.topk(k, sorted=False))  # type: ignore[return-value]
    n_groups = d_sae // size
    grouped = pre.view(rows, size, n_groups)
    groups = top_k(grouped.amax(1), k)[1]
    candidates = grouped.gather(2, groups.unsqueeze(1).expand(rows, size, k)).view(rows, size * k)
    values, at = candidates.topk(k, sorted=False)
    return values, groups.gather(1, at % k) + (at // k) * n_groups


def encode_rows(
    x: Tensor, encoder: Tensor, bias: Tensor, k: int, *, buffer: Tensor | None = None, matmul: str = "fp32"
) -> TopKCode:
    """ReLU(TopK_k(p)), (B, k); no gradient is recorded. Arguments as in `pre_activations`; k: features to keep."""
    values = x.new_empty(x.shape[0], k)
    indices = torch.empty(x.shape[0], k, dtype=torch.int64, device=x.device)
    with torch.no_grad():
        for rows, pre in pre_activations(x, encoder, bias, buffer=buffer, matmul=matmul):
            found, indices[rows] = top_k(pre, k)
            values[rows] = found.to(values.dtype)
        if matmul != "fp32":
            values = _exact(TopKCode(values, indices).flat(), x, encoder, bias).view_as(values)
        return TopKCode(values.relu_(), indices)


def entries_above(
    x: Tensor, encoder: Tensor, bias: Tensor, floor: Tensor, *, buffer: Tensor | None = None, matmul: str = "fp32"
) -> FlatCode:
    """Every entry with p > floor, by row, then by feature.

    Args:
        floor: () for all features or (d_sae,) for each.
    """
    values, indices, counts = [], [], []
    with torch.no_grad():
        for _, pre in pre_activations(x, encoder, bias, buffer=buffer, matmul=matmul):
            on = pre > floor
            row, feature = on.nonzero(as_tuple=True)
            values.append(pre[row, feature].to(x.dtype))
            indices.append(feature)
            counts.append(torch.bincount(row, minlength=pre.shape[0]))
        if not counts:
            empty = torch.empty(0, dtype=torch.int64, device=x.device)
            return FlatCode(x.new_empty(0), empty, empty)
        each = torch.cat(counts)
        code = FlatCode(torch.cat(values), torch.cat(indices), each.cumsum(0) - each)
        return code._replace(values=_exact(code, x, encoder, bias)) if matmul != "fp32" else code


def largest_entries(
    x: Tensor,
    encoder: Tensor,
    bias: Tensor,
    n: int,
    *,
    guess: float = 0.0,
    buffer: Tensor | None = None,
    matmul: str = "fp32",
    peers: Peers = ALONE,
) -> FlatCode:
    """The n largest positive entries of the whole batch (fewer if fewer are positive), by row.

    Where several processes share the batch, n is of the whole batch, and these are the ones among this process's.

    Exact for any `guess`, a lower bound tried first: with one a little below the n-th largest value, few entries
    more than n are ever held; where it is too high, the product is done again without it.
    """
    floor = x.new_tensor(max(guess, 0.0))
    code = entries_above(x, encoder, bias, floor, buffer=buffer, matmul=matmul)
    if int(peers.sum(floor.new_tensor(code.values.numel(), dtype=torch.int64))) < n and guess > 0:
        code = entries_above(x, encoder, bias, torch.zeros_like(floor), buffer=buffer, matmul=matmul)
    if matmul != "fp32":  # a value that rounded to above zero may be below it
        code = code._replace(values=code.values.relu())
    if int(peers.sum(floor.new_tensor(code.values.numel(), dtype=torch.int64))) <= n:
        return code
    nth, n_equal = nth_largest(code.values, n, peers)
    keep = code.values > nth
    ties = (code.values == nth).nonzero().squeeze(1)
    keep[ties[:n_equal]] = True  # of equal values, the first by row
    return code.keep(keep)


def _exact(code: FlatCode, x: Tensor, encoder: Tensor, bias: Tensor) -> Tensor:
    """(n,) pre-activations of the chosen entries in the precision of x."""
    return row_dots(code, x, encoder) + bias[code.indices]
