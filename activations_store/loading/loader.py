"""Shuffled rows for training, at the speed of the disk.

Batches are gathered from pools of rows that are read ahead (windows.py). The order is that of shuffle.py and does not
depend on the number of threads.

Memory: 2 x pool_rows x (row bytes + 40). Good shuffling needs a pool that holds many images: 65,536 rows are
256 maps of 256 tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from activations_store.errors import InvalidSelection, MissingSamples, explain
from activations_store.loading.recycled import RecycledArrays
from activations_store.loading.shuffle import RowOrder
from activations_store.loading.windows import Windows
from activations_store.store import ActivationStore
from activations_store.views.selection import BranchSelection, Selection, resolve, resolve_branches

if TYPE_CHECKING:
    from activations_store.loading.torch_rows import TensorRows


Cast = Callable[[np.ndarray, np.ndarray], None]
"""Called with (target, source) of equal shapes."""

_PIECE = 2**20
"""Values gathered and cast at a time. With fewer, threads spend their time on handing the interpreter to each other."""


class RowBatch(NamedTuple):
    """B rows of one site.

    Attributes:
        x: (B, d) float32.
        sample, step, branch, token: (B,) int64; where each row comes from. `branch` indexes `spec.branches`.
    """

    x: np.ndarray
    sample: np.ndarray
    step: np.ndarray
    branch: np.ndarray
    token: np.ndarray


class RowLoader:
    """An endless stream of shuffled batches, a pure function of (store, selection, seed, rank, world,
    batch_size, pool_rows, position).

    Args:
        store: where from.
        site: site name.
        batch_size: rows a batch, B. Batches are always full and may span two epochs.
        seed: of the order, 0 or more.
        steps, tokens: what to keep; None for all.
        branches: names or numbers to keep; None for all.
        samples: numbers or mask to keep; None for all, which needs a complete store.
        labels: factor -> a label or several; keeps the samples that have them (see `ActivationStore.where`).
        pool_rows: rows of a pool.
        rank, world: this reader's share: row sequences of ranks are disjoint and together complete.
        position: batches to skip, at no cost: the `position` of the run that is resumed.
        threads: reads in flight.

    Raises:
        UnknownSite, InvalidSelection: something the store does not have, or more ranks than rows.
        MissingSamples: a sample that is not committed.

    Iterating raises `CorruptShard` when bytes are not those that were committed.
    """

    def __init__(
        self,
        store: ActivationStore,
        site: str,
        batch_size: int,
        *,
        seed: int = 0,
        steps: Selection = None,
        branches: BranchSelection = None,
        samples: Selection = None,
        tokens: Selection = None,
        labels: Mapping[str, str | Sequence[str]] | None = None,
        pool_rows: int = 65536,
        rank: int = 0,
        world: int = 1,
        position: int = 0,
        threads: int = 4,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("pool_rows", pool_rows, 1),
            ("world", world, 1),
            ("position", position, 0),
            ("threads", threads, 1),
        ):
            if value < least:
                raise InvalidSelection(explain(f"{name} is too small", found=value, expected=f"{least} or more"))
        if not 0 <= rank < world:
            raise InvalidSelection(explain("rank is out of range", found=rank, expected=f"0 to {world - 1}"))
        labelled = store.where(**labels) if labels else None
        store = store.holding(site)
        self._site = store.spec.site(site)
        spec = store.spec
        chosen = np.unique(resolve(samples, spec.n_samples, "sample"))
        if labelled is not None:
            chosen = np.intersect1d(chosen, labelled)
            if not len(chosen):
                raise InvalidSelection(explain("No chosen sample has the labels", found=dict(labels or {})))
        missing = np.setdiff1d(np.unique(chosen // spec.samples_per_shard), store.committed)
        if len(missing):
            raise MissingSamples(
                explain(
                    f"{len(missing)} shards that the loader needs are not committed in {store.place}",
                    found=f"shard {missing[0]} missing, among others"
                    if len(missing) > 1
                    else f"shard {missing[0]} missing",
                    next_step="resume the collection, or pass samples=store.committed_samples()",
                )
            )
        kept_steps = np.unique(resolve(steps, spec.n_steps, "step"))
        kept_branches = np.unique(resolve_branches(branches, spec.branches))
        # Only a ragged store has records with missing maps, so only there must all of them be read first.
        present = store.site(site).present(chosen, kept_steps, kept_branches.tolist()) if spec.ragged else None
        self._order = RowOrder(
            spec.grid(site),
            chosen,
            kept_steps,
            kept_branches,
            np.unique(resolve(tokens, self._site.tokens, "token")),
            seed,
            present,
        )
        n_rows = self._order.n_rows
        self._lo, self._hi = n_rows * rank // world, n_rows * (rank + 1) // world
        if n_rows < world:  # on every rank alike, not only on those that would have nothing
            raise InvalidSelection(explain("There are more ranks than rows", found=f"{world} ranks, {n_rows} rows"))
        self.batch_size = batch_size
        self._position = position
        self._pool_rows = min(pool_rows, self._hi - self._lo)
        self._windows = Windows(store, self._site, self._order, self._lo, self._hi, self._pool_rows, threads)
        width = self._site.stored_channels
        piece = min(batch_size, max(1, _PIECE // width))
        self._scratch = [np.empty((piece, width), self._site.stored_dtype.stored) for _ in range(2)]
        self._arrays = RecycledArrays((batch_size, self._site.channels))
        self._gatherer = ThreadPoolExecutor(1, "row-gatherer")
        self._closed = False

    @property
    def position(self) -> int:
        """Batches delivered so far; pass it as `position` to go on from here."""
        return self._position

    @property
    def rows_per_epoch(self) -> int:
        """Rows of one epoch, over all ranks."""
        return self._order.n_rows

    @property
    def rank_rows_per_epoch(self) -> int:
        """Rows of one epoch that this rank delivers."""
        return self._hi - self._lo

    @property
    def n_samples(self) -> int:
        """Images that the rows come from."""
        return len(self._order.samples)

    @property
    def d(self) -> int:
        """Length of a row."""
        return self._site.channels

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> RowBatch:
        x = self.new_rows()
        return RowBatch(x, *self.next_into(x))

    def new_rows(self) -> np.ndarray:
        """(batch_size, d) float32 to fill, in memory of an earlier batch that nobody holds any more if there is one."""
        return self._arrays.get()

    def next_into(self, x: np.ndarray, cast: Cast = np.copyto) -> np.ndarray:
        """Deliver the next batch into memory of the caller's choice, such as pinned memory.

        Args:
            x: (batch_size, d) float32, C-contiguous; filled.
            cast: copies float16 or float32 rows into a float32 array of the same shape; torch does that
                faster than numpy.

        Returns:
            (4, batch_size) int64: sample, step, branch and token of every row.
        """
        if self._closed:
            raise ValueError(explain("The loader is closed", next_step=f"make one with position={self._position}"))
        where = np.empty((4, self.batch_size), np.int64)
        done = 0
        while done < self.batch_size:
            epoch, offset = divmod(self._position * self.batch_size + done, self.rank_rows_per_epoch)
            at = offset % self._pool_rows
            window = self._windows.get(epoch, self._lo + offset - at)
            slots = window.order[at : at + self.batch_size - done]
            part = slice(done, done + len(slots))
            half = len(slots) // 2 if len(slots) * x.shape[1] > _PIECE else 0
            other = self._gatherer.submit(self._gather, window.pool, slots[:half], x[part][:half], cast, 1)
            self._gather(window.pool, slots[half:], x[part][half:], cast, 0)
            window.where.take(slots, axis=1, out=where[:, part])
            other.result()
            done += len(slots)
        self._position += 1
        return where

    def _gather(self, pool: np.ndarray, slots: np.ndarray, target: np.ndarray, cast: Cast, thread: int) -> None:
        """Copy rows of a pool, a piece at a time. `thread`: 0 or 1, whose scratch space to use."""
        scratch = self._scratch[thread]
        for first in range(0, len(slots), len(scratch)):
            chosen = slots[first : first + len(scratch)]
            rows = scratch[: len(chosen)]
            pool.take(chosen, axis=0, out=rows, mode="clip")  # without "clip" numpy makes a copy first
            cast(target[first : first + len(chosen)], self._site.stored_dtype.decode(rows))

    def coordinates(self, position: int) -> np.ndarray:
        """Where the rows of a batch come from, computed without reading any.

        Args:
            position: number of the batch, 0 or more.

        Returns:
            (4, batch_size) int64: sample, step, branch and token, in the order delivered.
        """
        parts, done = [], 0
        while done < self.batch_size:
            epoch, offset = divmod(position * self.batch_size + done, self.rank_rows_per_epoch)
            at = offset % self._pool_rows
            lo = self._lo + offset - at
            n = min(self._pool_rows, self._hi - lo)
            slots = self._order.window_permutation(epoch, lo, n)[at : at + self.batch_size - done]
            parts.append(self._order.coordinates(self._order.segments(epoch, lo, lo + n))[:, slots])
            done += len(slots)
        return np.concatenate(parts, axis=1)

    def tensors(self) -> "TensorRows":
        """The same batches as torch tensors, in pinned memory when CUDA is there. Needs torch."""
        from activations_store.loading.torch_rows import TensorRows  # torch is not needed to read a store

        return TensorRows(self)

    def close(self) -> None:
        """Stop the threads and free the pools; the loader cannot be used afterwards."""
        self._closed = True
        self._windows.close()
        self._gatherer.shutdown(wait=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
