"""Windows of shuffled rows, read ahead: the disk's half of a loader.

Two pools of rows are allocated once. While batches are drawn from one, reader threads fill the other: each block is one
positioned read straight into the pool, checked by crc32c. When the first is used up they swap.
"""

from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from activations_store.format.site_spec import SiteSpec
from activations_store.loading.shuffle import RowOrder, Segments
from activations_store.store import ActivationStore


@dataclass
class Window:
    """A pool with the rows [lo, lo + n) of one epoch in it.

    Attributes:
        pool: (pool_rows, stored channels), rows in the order they were read.
        order: (n,) int64, the slots of the pool in the order of delivery.
        where: (4, n) int64, sample, step, branch and token of each slot.
    """

    epoch: int
    lo: int
    n: int
    pool: np.ndarray
    order: np.ndarray
    where: np.ndarray


class _Started(NamedTuple):
    """A window that is being read: where it begins, and the pool that it has."""

    epoch: int
    lo: int
    pool: np.ndarray
    future: Future[Window]


class Windows:
    """The windows of rows [lo, hi) of every epoch, one after another.

    Args:
        store: the store that holds the site's own arrays.
        site: the site.
        order: which rows, and in which order.
        lo, hi: the share of every epoch that is read.
        pool_rows: rows of a window, at most hi - lo; the last of an epoch may hold fewer.
        threads: reads in flight.
    """

    def __init__(
        self, store: ActivationStore, site: SiteSpec, order: RowOrder, lo: int, hi: int, pool_rows: int, threads: int
    ) -> None:
        self._store, self._site, self._order = store, site, order
        self._lo, self._hi, self._pool_rows = lo, hi, pool_rows
        shape = (pool_rows, site.stored_channels)
        self._free = [np.empty(shape, site.stored_dtype.stored) for _ in range(2)]
        self._current: Window | None = None
        self._next: _Started | None = None
        # The planner waits for the readers, so it must not be one of them.
        self._planner = ThreadPoolExecutor(1, "row-planner")
        self._readers = ThreadPoolExecutor(threads, "row-reader")
        self._threads = threads
        self._closed = False

    def get(self, epoch: int, lo: int) -> Window:
        """The window that begins at row `lo`, with the one after it under way in the background.

        Any window may be asked for at any time; in order they are read ahead.
        """
        if self._current is not None and (self._current.epoch, self._current.lo) == (epoch, lo):
            return self._current
        if self._current is not None:
            self._free.append(self._current.pool)
            self._current = None
        started, self._next = self._next, None
        if started is not None and started[:2] != (epoch, lo):  # a batch that failed halfway is asked for again
            wait([started.future])
            self._free.append(started.pool)
            started = None
        started = started or self._start(epoch, lo)
        try:
            window = started.future.result()
        except BaseException:
            self._free.append(started.pool)
            raise
        self._current = window
        after = window.lo + window.n
        self._next = self._start(epoch + 1, self._lo) if after == self._hi else self._start(epoch, after)
        return window

    def close(self) -> None:
        """Stop the threads and free the pools."""
        # Not by cancelling: `wait` never returns for a task that was cancelled before it began.
        self._closed = True
        self._planner.shutdown(wait=True)
        self._readers.shutdown(wait=True)
        self._current, self._next, self._free = None, None, []

    def _start(self, epoch: int, lo: int) -> _Started:
        pool = self._free.pop()
        return _Started(epoch, lo, pool, self._planner.submit(self._fill, epoch, lo, pool))

    def _fill(self, epoch: int, lo: int, pool: np.ndarray) -> Window:
        """Plan one window and read it; runs in the planner's thread."""
        n = min(self._pool_rows, self._hi - lo)
        segments = self._order.segments(epoch, lo, lo + n)
        # Several tasks a thread: shards differ in how fast they come.
        pieces = np.array_split(np.arange(len(segments.block)), min(4 * self._threads, len(segments.block)))
        tasks = [self._readers.submit(self._read, segments, piece, pool) for piece in pieces]
        try:
            order = self._order.window_permutation(epoch, lo, n)
            where = self._order.coordinates(segments)
        finally:
            wait(tasks)
        for task in tasks:
            task.result()
        return Window(epoch, lo, n, pool, order, where)

    def _read(self, segments: Segments, piece: np.ndarray, pool: np.ndarray) -> None:
        """Read some segments into their slots of the pool; runs in a reader's thread."""
        g, _, _, k, channels = self._store.spec.grid(self._site.name).chunk_shape
        scratch: np.ndarray | None = None
        for p in piece:
            if self._closed:
                return
            block, first, count, slot = (
                int(a[p]) for a in (segments.block, segments.first, segments.count, segments.slot)
            )
            shard, chunk = self._order.chunk_of(block)
            reader = self._store.open_shard(self._site.name, shard)
            target = pool[slot : slot + count]
            if count == g * k:  # a whole chunk, in its own order: straight into the pool
                reader.read_chunk(chunk, target.reshape(-1).view(np.uint8))
                continue
            if scratch is None:
                scratch = np.empty((g, k, channels), pool.dtype)
            reader.read_chunk(chunk, scratch.reshape(-1).view(np.uint8))
            sample, token = self._order.rows_in_chunk(block, first, count)
            target[...] = scratch[sample, token]
