"""Processes as threads: the exchanges of `Peers` without processes, for tests of what is exchanged."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from sae.numerics.peers import Peers


class ThreadPeers(Peers):
    """One of several threads that meet at a barrier."""

    def __init__(self, rank: int, world: int, table: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.world = rank, world
        self._table, self._barrier = table, barrier

    def sum(self, x: Tensor) -> Tensor:
        return self.gather(x).sum(0)

    def smallest(self, x: Tensor) -> Tensor:
        return self.gather(x).amin(0)

    def gather(self, x: Tensor) -> Tensor:
        self._table[self.rank] = x.clone()
        self._barrier.wait(5)
        everyone = torch.stack(self._table)  # raises where shapes differ, as gloo would
        self._barrier.wait(5)
        return everyone

    def copy_first(self, x: Tensor) -> None:
        x.copy_(self.gather(x)[0])

    def collect(self, x: Tensor) -> Tensor:
        return self.gather(x).flatten(0, 1)


def together(world: int, work: Callable[[Peers], Any]) -> list[Any]:
    """Runs `work` in each of `world` threads; their results by rank."""
    table: list[Any] = [None] * world
    barrier = threading.Barrier(world)

    def run(rank: int) -> Any:
        try:
            return work(ThreadPeers(rank, world, table, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(run, range(world)))
