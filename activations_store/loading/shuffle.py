"""The order in which rows are delivered: a pure function of (selection, seed), with random access.

A *block* is the selected part of one inner chunk. For epoch e the blocks are permuted over the whole store;
their rows, laid end to end, form one sequence of N rows. Rank r of W owns rows [rN/W, (r+1)N/W) of it. Each
rank cuts its part into windows of `pool_rows` rows and permutes each window. Every row is delivered exactly
once an epoch whatever W is, and row number n of a rank is found without replaying anything: its epoch and
window follow from n by division.

Permutations come from sorting 64-bit words of PCG64 seeded through SeedSequence. numpy promises both streams
stay as they are, which it does not for `Generator.permutation`.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from activations_store.format.chunking import ChunkGrid

_BLOCKS, _WINDOW = 0, 1


def permutation(n: int, *key: int) -> np.ndarray:
    """(n,) int64: a permutation that is a function of `n` and `key` (non-negative ints)."""
    words = np.random.PCG64(np.random.SeedSequence(key)).random_raw(n)
    return np.argsort(words, kind="stable")


@dataclass(frozen=True)
class Segments:
    """Runs of rows within blocks, in the order they are laid into a pool.

    Arrays of length n_segments, int64.
    """

    block: np.ndarray
    first: np.ndarray
    count: np.ndarray
    slot: np.ndarray


class RowOrder:
    """Blocks and rows of a selection of one site.

    Args:
        grid: the site's chunk arithmetic.
        samples, steps, branches, tokens: selected positions, int64, ascending and unique.
        seed: non-negative.
        present: (samples, steps, branches) bool over the selected positions, which maps there are; None for all.
            Rows of missing maps are no part of the sequence.
    """

    def __init__(
        self,
        grid: ChunkGrid,
        samples: np.ndarray,
        steps: np.ndarray,
        branches: np.ndarray,
        tokens: np.ndarray,
        seed: int,
        present: np.ndarray | None = None,
    ) -> None:
        self._grid = grid
        self._seed = seed
        self.samples, self.steps, self.branches, self.tokens = samples, steps, branches, tokens
        g, _, _, k, _ = grid.chunk_shape
        # Selected samples and tokens by block: block id, first selected position, how many.
        self._sample_block, self._sample_first, self._n_s = np.unique(
            samples // g, return_index=True, return_counts=True
        )
        self._token_block, self._token_first, self._n_t = np.unique(tokens // k, return_index=True, return_counts=True)
        self._dims = (len(self._sample_block), len(steps), len(branches), len(self._token_block))
        self._cached: tuple[int, np.ndarray, np.ndarray | None] | None = None
        self._present = present
        # (sample blocks, steps, branches): maps present in a block
        self._n_maps = None if present is None else np.add.reduceat(present.astype(np.int64), self._sample_first, 0)

    @property
    def n_rows(self) -> int:
        """Rows of the selection: N, one epoch over all ranks."""
        if self._n_maps is not None:
            return int(self._n_maps.sum()) * len(self.tokens)
        return len(self.samples) * len(self.steps) * len(self.branches) * len(self.tokens)

    @property
    def n_blocks(self) -> int:
        """Blocks of the selection."""
        return int(np.prod(self._dims))

    @cached_property
    def _uniform(self) -> int | None:
        """Rows of every block when all are alike (the usual case): no running sum over blocks then."""
        if self._n_maps is not None:
            return None
        alike = (self._n_s == self._n_s[0]).all() and (self._n_t == self._n_t[0]).all()
        return int(self._n_s[0] * self._n_t[0]) if alike else None

    def rows_of(self, block: np.ndarray) -> np.ndarray:
        """(n,) how many rows the blocks with these (n,) numbers have."""
        s, i, b, t = np.unravel_index(block, self._dims)
        maps = self._n_s[s] if self._n_maps is None else self._n_maps[s, i, b]
        return maps * self._n_t[t]

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Permuted blocks of an epoch, and where each begins in the row sequence (None when uniform)."""
        if self._cached is None or self._cached[0] != epoch:
            order = permutation(self.n_blocks, self._seed, _BLOCKS, epoch)
            starts = None
            if self._uniform is None:
                rows = self.rows_of(order)
                starts = np.cumsum(rows) - rows
            self._cached = (epoch, order, starts)
        return self._cached[1], self._cached[2]

    def segments(self, epoch: int, lo: int, hi: int) -> Segments:
        """The runs that make up rows [lo, hi) of an epoch's sequence, 0 <= lo < hi <= n_rows."""
        order, starts = self._epoch(epoch)
        if starts is None:
            size = self._uniform or 1
            at = np.arange(lo // size, (hi - 1) // size + 1)
            begin, rows = at * size, np.full(len(at), size)
        else:
            at = np.arange(np.searchsorted(starts, lo, "right") - 1, np.searchsorted(starts, hi, "left"))
            begin, rows = starts[at], self.rows_of(order[at])
        first = np.maximum(lo - begin, 0)
        count = np.minimum(hi - begin, rows) - first
        slot = np.maximum(begin, lo) - lo
        if self._n_maps is not None:  # a block without any map has no rows
            kept = count > 0
            at, first, count, slot = at[kept], first[kept], count[kept], slot[kept]
        return Segments(order[at], first, count, slot)

    def window_permutation(self, epoch: int, lo: int, n: int) -> np.ndarray:
        """(n,) int64, the order in which the slots of the window that begins at row `lo` of an epoch are delivered."""
        return permutation(n, self._seed, _WINDOW, epoch, lo)

    def chunk_of(self, block: int) -> tuple[int, int]:
        """(shard, position in the shard's index) of the chunk that holds a block."""
        s, i, b, t = np.unravel_index(block, self._dims)
        shard, local = divmod(int(self._sample_block[s]), self._grid.chunks_per_shard[0])
        return shard, self._grid.linear(local, int(self.steps[i]), int(self.branches[b]), int(self._token_block[t]))

    def rows_in_chunk(self, block: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(sample, token) positions inside the chunk of rows first .. first + count - 1 of a block."""
        g, _, _, k, _ = self._grid.chunk_shape
        s, i, b, t = np.unravel_index(block, self._dims)
        local_s, local_t = np.divmod(np.arange(first, first + count), self._n_t[t])
        if self._present is not None:
            local_s = self._maps_of(int(s), int(i), int(b))[local_s]
        sample = self.samples[self._sample_first[s] + local_s] - self._sample_block[s] * g
        token = self.tokens[self._token_first[t] + local_t] - self._token_block[t] * k
        return sample, token

    def _maps_of(self, sample_block: int, step: int, branch: int) -> np.ndarray:
        """Selected samples of a block that have the map, counted from the block's first selected sample."""
        assert self._present is not None  # only asked then
        first = self._sample_first[sample_block]
        return np.flatnonzero(self._present[first : first + self._n_s[sample_block], step, branch])

    def coordinates(self, segments: Segments) -> np.ndarray:
        """(4, n) int64: sample, step, branch, token of every row of the segments, in slot order."""
        s, i, b, t = np.unravel_index(segments.block, self._dims)
        count = segments.count
        within = np.arange(count.sum()) - np.repeat(segments.slot - segments.first, count)
        local_s, local_t = np.divmod(within, np.repeat(self._n_t[t], count))
        if self._present is not None:
            ends = np.cumsum(count)
            for p, end in enumerate(ends):
                rows = slice(end - count[p], end)
                local_s[rows] = self._maps_of(int(s[p]), int(i[p]), int(b[p]))[local_s[rows]]
        return np.stack(
            [
                self.samples[np.repeat(self._sample_first[s], count) + local_s],
                np.repeat(self.steps[i], count),
                np.repeat(self.branches[b], count),
                self.tokens[np.repeat(self._token_first[t], count) + local_t],
            ]
        )
