"""Shuffled rows that are read together: several sites, or several steps, at the same sample, branch and token.

The loader of a store shuffles single rows. A crosscoder reads the rows of several sites or steps at once, and a
residual dictionary a row with its predecessor; both get concatenated rows from here. What belongs together is given
as *kinds* of row: a kind is a list of (site, step), and its rows are

    x = [ site_1 at step_1 | site_2 at step_2 | ... ]      for every sample, branch and token

An epoch is all samples in an order of its own, cut into windows that fit a pool; the rows of a window are read whole,
the next window in the background, and permuted. The order is a pure function of (seed, position), so a run that stops
at a batch continues with the one after it.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Self

import numpy as np
import torch

from activations_store import ActivationStore
from activations_store.loading.torch_rows import TensorBatch
from sae.errors import ConfigError

Kind = tuple[int, tuple[tuple[str, int], ...]]
"""A step that names the kind in a batch, and what its rows consist of."""


class _Window(NamedTuple):
    x: dict[str, np.ndarray]  # site -> (samples, its steps, branches, tokens, d)
    samples: np.ndarray
    order: np.ndarray


class JointRows:
    """An endless stream of batches of joint rows.

    Args:
        store: where from; every map asked for is committed.
        kinds: the kinds of row, with the same sites in the same order.
        batch_size: rows a batch.
        seed: of the order.
        samples: sample numbers.
        branches: names of branches; None for all.
        pool_rows: rows of a window, about: at least those of one sample.
        rank, world: this reader's share of every batch; `batch_size` rows each.
        position: batches to skip.

    Raises:
        ConfigError: the sites do not have the same tokens.
    """

    def __init__(
        self,
        store: ActivationStore,
        kinds: Sequence[Kind],
        batch_size: int,
        *,
        seed: int,
        samples: np.ndarray,
        branches: Sequence[str] | None = None,
        pool_rows: int = 65_536,
        rank: int = 0,
        world: int = 1,
        position: int = 0,
    ) -> None:
        self._store, self._kinds, self._samples = store, list(kinds), np.asarray(samples)
        self._seed, self._position, self.batch_size = seed, position, batch_size
        self._rank, self._world = rank, world
        names = tuple(store.spec.branches) if branches is None else tuple(branches)
        self._branches = names
        self._branch_numbers = np.array([store.spec.branches.index(name) for name in names])
        sites = {site for _, reads in kinds for site, _ in reads}
        self._steps = {
            site: sorted({step for _, reads in kinds for name, step in reads if name == site}) for site in sites
        }
        self._tokens = shared_tokens(store, sorted(sites))
        self._per_sample = len(self._kinds) * len(names) * self._tokens
        self._per_window = max(1, pool_rows // self._per_sample)
        self._reader = ThreadPoolExecutor(1, "joint-reader")
        self._current: tuple[tuple[int, int], _Window] | None = None
        self._next: tuple[tuple[int, int], Future[_Window]] | None = None

    @property
    def rows_per_epoch(self) -> int:
        """Joint rows of one epoch."""
        return len(self._samples) * self._per_sample

    def tensors(self) -> Self:
        """These batches: they are tensors already."""
        return self

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TensorBatch:
        parts, missing = [], self.batch_size
        while missing:
            done = (self._position * self._world + self._rank + 1) * self.batch_size - missing
            epoch, offset = divmod(done, self.rows_per_epoch)
            window_rows = self._per_window * self._per_sample
            number, first = divmod(offset, window_rows)
            window = self._window(epoch, number)
            rows = window.order[first : first + missing]
            parts.append(self._gather(window, rows))
            missing -= len(rows)
        self._position += 1
        x, sample, step, branch, token = (np.concatenate(part) for part in zip(*parts, strict=True))
        return TensorBatch(*(torch.from_numpy(part) for part in (x, sample, step, branch, token)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the background reader."""
        self._reader.shutdown(wait=True, cancel_futures=True)

    def _window(self, epoch: int, number: int) -> _Window:
        if self._current is None or self._current[0] != (epoch, number):
            if self._next is None or self._next[0] != (epoch, number):
                self._next = ((epoch, number), self._reader.submit(self._read, epoch, number))
            self._current = ((epoch, number), self._next[1].result())
            last = (number + 1) * self._per_window >= len(self._samples)
            after = (epoch + 1, 0) if last else (epoch, number + 1)
            self._next = (after, self._reader.submit(self._read, *after))
        return self._current[1]

    def _read(self, epoch: int, number: int) -> _Window:
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._samples))
        samples = np.sort(self._samples[order[number * self._per_window : (number + 1) * self._per_window]])
        x = {
            site: self._store.site(site)
            .read(sample=samples, step=steps, branch=list(self._branches))
            .astype(np.float32, copy=False)
            for site, steps in self._steps.items()
        }
        rows = np.random.default_rng([self._seed, epoch, number + 1]).permutation(len(samples) * self._per_sample)
        return _Window(x, samples, rows)

    def _gather(self, window: _Window, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        at = np.unravel_index(rows, (len(window.samples), len(self._kinds), len(self._branches), self._tokens))
        sample, kind, branch, token = (np.asarray(index) for index in at)
        parts = []
        for read in range(len(self._kinds[0][1])):
            (site,) = {reads[read][0] for _, reads in self._kinds}
            step = np.array([self._steps[site].index(reads[read][1]) for _, reads in self._kinds])
            parts.append(window.x[site][sample, step[kind], branch, token])
        steps = np.array([step for step, _ in self._kinds])[kind]
        return np.concatenate(parts, 1), window.samples[sample], steps, self._branch_numbers[branch], token


def shared_tokens(store: ActivationStore, sites: Sequence[str]) -> int:
    """Tokens of some sites.

    Raises:
        ConfigError: they differ, in number or grid.
    """
    specs: list[Any] = [store.site(site).spec for site in sites]
    if len({(spec.tokens, spec.grid) for spec in specs}) > 1:
        found = ", ".join(f"{spec.name} has {spec.tokens} tokens in grid {spec.grid}" for spec in specs)
        raise ConfigError(
            f"Rows of {store.place} cannot be read together: {found}. A crosscoder reads the same cell of all its "
            "sites: choose sites on one token grid, or collect them with: denoscope collect --pool mean."
        )
    return specs[0].tokens
