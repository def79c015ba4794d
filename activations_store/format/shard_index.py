"""Reading shard files by their own index with positioned reads, checking crc32c on the way.

A shard file ends with an index: for each inner chunk (C order over sample block, step, branch, token block)
its offset and length as little-endian uint64, both 2^64 - 1 for an absent chunk, then the crc32c of the
index. Reading a chunk is one positioned read and one checksum, straight into the caller's memory: raw-file
speed from a file that any zarr reader opens.
"""

import threading
from collections import OrderedDict

import numpy as np
from google_crc32c import value as crc32c

from activations_store.errors import CorruptShard, explain
from activations_store.format.chunking import ABSENT, CRC_BYTES, INDEX_ENTRY_BYTES, ChunkGrid
from activations_store.format.records import SiteRecord
from activations_store.storage.objects import Place
from activations_store.storage.reading import PlainFile

# A zstd frame may be slightly larger than its content; nothing honest is larger than this.
_MAX_EXPANSION = 1024


def parse_index(data: np.ndarray, n_chunks: int, file_bytes: int, path: Place) -> np.ndarray:
    """Check and parse the index of a shard file.

    Args:
        data: (16 n_chunks + 4,) uint8, the end of the file.
        n_chunks: chunks of a whole shard.
        file_bytes: size of the file.
        path: named in errors.

    Returns:
        (n_chunks, 2) uint64: offset and length; (2^64 - 1, 2^64 - 1) where absent.

    Raises:
        CorruptShard: bad checksum, or an entry outside the file.
    """
    body, stored = data[:-CRC_BYTES], int(data[-CRC_BYTES:].view("<u4")[0])
    if crc32c(body) != stored:  # type: ignore[arg-type]  # any buffer will do
        raise corrupt(path, "the shard index fails its checksum")
    entries = body.view("<u8").reshape(n_chunks, 2)
    present = ~(entries == ABSENT).all(axis=1)
    offsets, lengths = entries[present, 0], entries[present, 1]
    end = np.uint64(file_bytes - len(data))
    # offset + length could wrap around 2^64, so compare without adding
    if (offsets > end).any() or (lengths > end - np.minimum(offsets, end)).any() or (lengths <= CRC_BYTES).any():
        raise corrupt(path, "the shard index points outside the file")
    return entries


class ShardReader:
    """One open shard file of one site.

    Args:
        path: the file.
        grid: the site's arithmetic.
        shard: shard number.
        record: the site's part of the commit record.
        compression: None or "zstd".
    """

    def __init__(self, path: Place, grid: ChunkGrid, shard: int, record: SiteRecord, compression: str | None) -> None:
        self.path = path
        self._grid = grid
        self._compressed = compression is not None
        self._crcs = record.chunk_crc32c
        n_chunks = int(np.prod(grid.chunks_per_shard))
        try:
            self._file = PlainFile(path)
        except FileNotFoundError as error:
            raise corrupt(path, "the file is missing") from error
        try:
            size = self._file.size
            if size != record.n_bytes or size < grid.index_bytes:
                raise corrupt(path, f"{size} bytes where its commit record says {record.n_bytes}")
            tail = np.empty(n_chunks * INDEX_ENTRY_BYTES + CRC_BYTES, np.uint8)
            self._file.read_into(tail, size - len(tail))
            self._index = parse_index(tail, n_chunks, size, path)
        except BaseException:
            self.close()
            raise
        # Chunks beyond the last sample are absent, and they are the last ones in C order.
        if (self._index[: len(self._crcs)] == ABSENT).any() or (self._index[len(self._crcs) :] != ABSENT).any():
            self.close()
            raise corrupt(path, "the shard index lacks a chunk, or has one beyond the last sample")

    def read_chunk(self, i: int, out: np.ndarray) -> None:
        """Read chunk `i` (position in the index) into `out`, checked.

        Args:
            i: 0 to the number of present chunks - 1.
            out: (chunk_bytes,) uint8, C-contiguous; filled with the chunk's values as stored bytes.

        Raises:
            CorruptShard: the bytes are not those that were committed.
        """
        offset, length = int(self._index[i, 0]), int(self._index[i, 1]) - CRC_BYTES
        if not self._compressed:
            if length != len(out):
                raise corrupt(self.path, f"chunk {i} has {length} bytes, expected {len(out)}")
            self._file.read_into(out, offset)
            self._check(i, out)
            return
        if length > len(out) + _MAX_EXPANSION + len(out) // 128:
            raise corrupt(self.path, f"compressed chunk {i} has {length} bytes for {len(out)} of values")
        packed = np.empty(length, np.uint8)
        self._file.read_into(packed, offset)
        self._check(i, packed)
        _zstd_into(packed, out, self.path, i)

    def check_stored_crc(self, i: int) -> bool:
        """True when the checksum in the file agrees with the commit record's.

        Zarr checks the former, this package the latter.
        """
        stored = np.empty(CRC_BYTES, np.uint8)
        self._file.read_into(stored, int(self._index[i, 0] + self._index[i, 1]) - CRC_BYTES)
        return int(stored.view("<u4")[0]) == int(self._crcs[i])

    def _check(self, i: int, data: np.ndarray) -> None:
        if crc32c(data) != self._crcs[i]:  # type: ignore[arg-type]  # any buffer will do
            raise corrupt(self.path, f"chunk {i} fails its checksum")

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()


class ReaderCache:
    """Shard readers that were used last, by (site, shard). Safe to use from several threads.

    A reader dropped from the cache closes its file when the last thread using it lets go.
    """

    def __init__(self, capacity: int = 128) -> None:
        self._capacity = capacity
        self._readers: OrderedDict[tuple[str, int], ShardReader] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int]) -> ShardReader | None:
        """The reader, or None when it is not open."""
        with self._lock:
            reader = self._readers.get(key)
            if reader is not None:
                self._readers.move_to_end(key)
            return reader

    def put(self, key: tuple[str, int], reader: ShardReader) -> ShardReader:
        """Keep a reader; the one that is kept (another thread may have been first)."""
        with self._lock:
            kept = self._readers.setdefault(key, reader)
            self._readers.move_to_end(key)
            while len(self._readers) > self._capacity:
                self._readers.popitem(last=False)
            return kept

    def clear(self) -> None:
        """Forget all readers."""
        with self._lock:
            self._readers.clear()


def corrupt(path: Place, found: str) -> CorruptShard:
    """The error for a damaged shard file."""
    return CorruptShard(
        explain(
            f"The shard file {path} is damaged",
            found=found,
            expected="what its commit record says",
            next_step="run store.verify(), then StoreWriter.discard and collect the shard again",
        )
    )


def _zstd_into(packed: np.ndarray, out: np.ndarray, path: Place, i: int) -> None:
    """Decompress into exactly `out`.

    The declared size is compared first, so a bomb is refused before it inflates.
    """
    import numcodecs.zstd as zstd  # only compressed stores pay for this import

    if _zstd_content_size(packed) != len(out):
        raise corrupt(path, f"compressed chunk {i} declares another size than {len(out)} bytes")
    try:
        zstd.decompress(packed, out)
    except (RuntimeError, ValueError) as error:
        raise corrupt(path, f"compressed chunk {i} does not decompress: {error}") from error


def _zstd_content_size(packed: np.ndarray) -> int | None:
    """Frame_Content_Size of a zstd frame (RFC 8878, 3.1.1.1); None when absent or no zstd frame."""
    head = packed[:18].tobytes()
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd":
        return None
    descriptor = head[4]
    flag, single_segment = descriptor >> 6, bool(descriptor & 0x20)
    size_bytes = (1 if single_segment else 0, 2, 4, 8)[flag]
    if not size_bytes:
        return None
    start = 5 + (0 if single_segment else 1) + (0, 1, 2, 4)[descriptor & 3]
    size = int.from_bytes(head[start : start + size_bytes], "little")
    return size + 256 if size_bytes == 2 else size
