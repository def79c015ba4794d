"""The processes that share a batch of rows, as one of them sees them.

A batch of B rows may lie on W processes, B / W rows on each. What an architecture computes is a sum over rows, divided
by other sums over rows, so a process needs little of the others: a few sums before it forms its gradient, and the n-th
largest entry of the batch where entries compete. With one process every method returns its argument, so an
architecture is written once and alone it costs nothing.

Losses and gradients of a process are its *share*: summed over the processes they are those of the whole batch.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_DIGITS = ((20, 11), (9, 11), (0, 9))  # (shift, bits) of the three digits of a float's 31 bits, highest first


class Peers:
    """A process by itself; `processes.ProcessPeers` overrides the three collectives.

    Every process calls the same methods in the same order, with tensors of the same shape.

    Attributes:
        rank: number of this process, in [0, world).
        world: number of processes.
    """

    rank: int = 0
    world: int = 1

    def sum(self, x: Tensor) -> Tensor:
        """Sum of `x` over the processes; may overwrite it. The same bits on every process."""
        return x

    def total(self, n: int) -> int:
        """Sum of `n` over the processes; of rows, which they need not hold equally many of."""
        return n if self.world == 1 else int(self.sum(torch.tensor(n)))

    def smallest(self, x: Tensor) -> Tensor:
        """Elementwise minimum of `x` over the processes; may overwrite it."""
        return x

    def gather(self, x: Tensor) -> Tensor:
        """(W, *x.shape): `x` of every process, by rank."""
        return x.unsqueeze(0)

    def copy_first(self, x: Tensor) -> None:
        """Gives `x` the values that it has in the first process."""

    def first(self, work: Callable[[], Any]) -> Any:
        """Does `work` in the first process and returns its result, JSON values, in all.

        Raises:
            ProcessFailed: in the others, if it raised in the first.
        """
        return work()

    def collect(self, x: Tensor) -> Tensor | None:
        """The processes' `x` one after another along the first axis, on the CPU, in the first process."""
        return x.detach().cpu()

    def scatter(self, whole: Tensor | None, into: Tensor) -> None:
        """The reverse of `collect`: cuts `whole`, given in the first process, into equal parts."""
        if whole is not None:
            into.copy_(whole)


ALONE = Peers()


def among_largest(values: Tensor, k: int, shards: Peers) -> Tensor:
    """Sets to 0 what is not among the k largest of its row over all processes.

    Args:
        values: (rows, n) >= 0, the min(k, own) largest of this process's features; n may differ between processes
            and be 0.
        k: entries to keep.
        shards: the processes that hold the other features.

    Cost: every process receives the values of all, W x rows x n.
    """
    if shards.world == 1:
        return values
    rows, n = values.shape
    width = int(shards.gather(torch.tensor(n, device=values.device)).max())
    padded = values.new_full((rows, width), -1.0)
    padded[:, :n] = values
    everyone = shards.gather(padded).transpose(0, 1).reshape(rows, -1)
    chosen = everyone.topk(k, sorted=False).indices
    keep = torch.zeros_like(everyone, dtype=torch.bool).scatter_(1, chosen, True)
    return values * keep[:, shards.rank * width :][:, :n]


def nth_largest(values: Tensor, n: int, peers: Peers) -> tuple[Tensor, int]:
    """The n-th largest of all processes' values, and how many of those equal to it are to be kept here.

    Exact. A non-negative float orders as the integer with its bits, so the value is found digit by digit: the
    processes sum their histograms of the highest digit, choose the bin in which the n-th largest lies, and go on
    inside it. That costs three sums of at most 2,048 counts, whatever the number of values.

    Args:
        values: (m,) of this process, all >= 0; m may differ between processes and be 0. Several processes need
        float32.
        n: at least 1, at most the number of values of all processes.

    Returns:
        () the value, and the number of entries equal to it that this process keeps, so that all keep n together:
        the lowest ranks first.
    """
    if peers.world == 1:
        nth = values.kthvalue(values.numel() - n + 1).values
        return nth, n - int((values > nth).sum())
    bits = values.detach().view(torch.int32).to(torch.int64)
    found, wanted = 0, n  # digits found so far; the position sought among the values that have them
    for shift, width in _DIGITS:
        counts = peers.sum(torch.bincount((bits >> shift) & (2**width - 1), minlength=2**width))
        above = counts.flip(0).cumsum(0).flip(0)  # values in this bin or a higher one
        digit = int((above >= wanted).nonzero()[-1])
        wanted -= int(above[digit] - counts[digit])
        found |= digit << shift
        bits = bits[((bits >> shift) & (2**width - 1)) == digit]
    before = int(peers.gather(bits.new_tensor(bits.numel()))[: peers.rank].sum())
    keep = min(max(wanted - before, 0), bits.numel())
    return torch.tensor(found, dtype=torch.int32, device=values.device).view(values.dtype), keep
