"""The arithmetic of chunks and shards (normative text: docs/store-format.md, "Chunks and shards").

An array has dimensions (sample, step, branch, token, channel). A *map* is one (sample, step, branch): tokens
x channels. The inner chunk is one map when that has 256 KiB to 1 MiB. Smaller maps are joined over samples
(never over steps or branches, so a filter on step or branch reads nothing in vain, and a block of the
shuffled stream holds several images); larger maps are split over tokens. A shard is a block of samples with
all their steps, branches and tokens: one file.

Symbols: `g` samples a chunk, `k` tokens a chunk, `S` samples a shard.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod

MIN_CHUNK_BYTES = 256 * 1024
MAX_CHUNK_BYTES = 1024 * 1024
CRC_BYTES = 4
INDEX_ENTRY_BYTES = 16
ABSENT = 2**64 - 1
"""Offset and length, in a shard's index, of a chunk that is not in the file."""

Shape = tuple[int, int, int, int, int]


def divisors(n: int) -> list[int]:
    """All divisors of `n`, ascending."""
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return small + [n // d for d in reversed(small) if d * d != n]


def choose_chunk(samples_per_shard: int, tokens: int, row_bytes: int) -> tuple[int, int]:
    """Samples and tokens of an inner chunk, (g, k).

    Args:
        samples_per_shard: S; `g` divides it, because zarr wants a shard to be a whole number of chunks.
        tokens: tokens of a map.
        row_bytes: bytes of one row (channels x itemsize).

    Returns:
        (g, 1 < g) for a joined chunk, (1, k) for a split or single map. The joined chunk is the smallest
        that reaches 256 KiB without passing 1 MiB, else the largest that does not pass it: a small chunk
        wastes least when one sample is read. A split prefers a k that divides `tokens` into pieces of 256
        KiB or more, since then no chunk is padded.
    """
    map_bytes = tokens * row_bytes
    if map_bytes < MIN_CHUNK_BYTES:
        fitting = [g for g in divisors(samples_per_shard) if g * map_bytes <= MAX_CHUNK_BYTES]
        reaching = [g for g in fitting if g * map_bytes >= MIN_CHUNK_BYTES]
        return (reaching[0] if reaching else fitting[-1]), tokens
    if map_bytes <= MAX_CHUNK_BYTES:
        return 1, tokens
    even = [k for k in divisors(tokens) if MIN_CHUNK_BYTES <= k * row_bytes <= MAX_CHUNK_BYTES]
    if even:
        return 1, even[-1]
    most = max(1, MAX_CHUNK_BYTES // row_bytes)  # a single row may be larger than the bound
    return 1, ceil(tokens / ceil(tokens / most))


@dataclass(frozen=True)
class ChunkGrid:
    """Shapes and counts of one site's array."""

    n_samples: int
    n_steps: int
    n_branches: int
    tokens: int
    channels: int
    samples_per_shard: int
    itemsize: int

    @cached_property
    def chunk_shape(self) -> Shape:
        """Inner chunk (g, 1, 1, k, channels)."""
        g, k = choose_chunk(self.samples_per_shard, self.tokens, self.channels * self.itemsize)
        return (g, 1, 1, k, self.channels)

    @property
    def array_shape(self) -> Shape:
        """(n_samples, n_steps, n_branches, tokens, channels)."""
        return (self.n_samples, self.n_steps, self.n_branches, self.tokens, self.channels)

    @cached_property
    def chunks_per_shard(self) -> Shape:
        """Inner chunks of a whole shard along each dimension; the token dimension rounds up."""
        g, _, _, k, _ = self.chunk_shape
        return (self.samples_per_shard // g, self.n_steps, self.n_branches, ceil(self.tokens / k), 1)

    @cached_property
    def shard_shape(self) -> Shape:
        """Shape of a whole shard.

        Its token dimension may pass the array's when a map does not split evenly.
        """
        c, n = self.chunk_shape, self.chunks_per_shard
        return (c[0] * n[0], c[1] * n[1], c[2] * n[2], c[3] * n[3], c[4] * n[4])

    @property
    def n_shards(self) -> int:
        """Shards of the array; the last may hold fewer samples."""
        return ceil(self.n_samples / self.samples_per_shard)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one uncompressed inner chunk, without its checksum."""
        return prod(self.chunk_shape) * self.itemsize

    @property
    def index_bytes(self) -> int:
        """Bytes of the index at the end of a shard file, with its checksum."""
        return prod(self.chunks_per_shard) * INDEX_ENTRY_BYTES + CRC_BYTES

    def samples_in(self, shard: int) -> int:
        """Samples that shard `shard` really holds."""
        return min(self.samples_per_shard, self.n_samples - shard * self.samples_per_shard)

    def chunks_in(self, shard: int) -> int:
        """Inner chunks present in the file of `shard`.

        Chunks that lie wholly beyond the last sample are absent.
        """
        _, steps, branches, splits, _ = self.chunks_per_shard
        return ceil(self.samples_in(shard) / self.chunk_shape[0]) * steps * branches * splits

    def file_bytes(self, shard: int) -> int:
        """Exact size of the shard's file when it is not compressed."""
        return self.chunks_in(shard) * (self.chunk_bytes + CRC_BYTES) + self.index_bytes

    @property
    def total_bytes(self) -> int:
        """Exact size of all shard files when they are not compressed."""
        last = self.n_shards - 1
        return (self.file_bytes(0) * last if last else 0) + self.file_bytes(last)

    def linear(self, sample_block: int, step: int, branch: int, token_block: int) -> int:
        """Position of an inner chunk in its shard's index (C order)."""
        _, steps, branches, splits, _ = self.chunks_per_shard
        return ((sample_block * steps + step) * branches + branch) * splits + token_block

    def iter_chunks(self, shard: int) -> Iterator[tuple[int, int, int, int]]:
        """(sample block, step, branch, token block) of the chunks present in a shard, in file (C) order."""
        _, steps, branches, splits, _ = self.chunks_per_shard
        for sample_block in range(ceil(self.samples_in(shard) / self.chunk_shape[0])):
            for step in range(steps):
                for branch in range(branches):
                    for token_block in range(splits):
                        yield sample_block, step, branch, token_block
