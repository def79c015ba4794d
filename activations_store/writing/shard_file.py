"""Writing one shard file: chunks with their checksums, then the index (zarr v3 `sharding_indexed`).

The bytes are made here and not by zarr for three reasons: every chunk is written (also one of zeros) and
none beyond the last sample; file hash, array hash and chunk checksums come from one pass; and the same
values give the same bytes under any zarr version. Tests open the result with zarr and read shards that zarr
wrote.

SHA-256 is most of what writing costs, so bytes are hashed once. Without compression the file is a function of its
values, and its hash speaks for both. With zstd it depends on the library's version, so the values are hashed too.
"""

import hashlib

import numpy as np
from google_crc32c import value as crc32c

from activations_store.format.chunking import ABSENT, ChunkGrid
from activations_store.format.layout import ZSTD_LEVEL
from activations_store.format.records import SiteRecord
from activations_store.format.spec import SiteSpec, StoreSpec
from activations_store.storage.fileio import NewObject, TempFile
from activations_store.writing.incoming import Incoming


def write_site(
    temp: TempFile | NewObject, spec: StoreSpec, site: SiteSpec, shard: int, incoming: Incoming
) -> SiteRecord:
    """Write one site's shard file into an open temporary file, finish it, and say what it holds."""
    values = incoming.values
    crcs = write_shard_file(temp, spec.grid(site.name), shard, values, site.stored_dtype.fill, spec.compression)
    array_sha256 = _sha256(values) if spec.compression else None
    nan, inf, overflow = (tuple(int(n) for n in row) for row in incoming.counts)
    return SiteRecord(temp.n_bytes, temp.finish(), array_sha256, crcs, nan, inf, overflow, incoming.present)


def write_shard_file(
    temp: TempFile | NewObject,
    grid: ChunkGrid,
    shard: int,
    values: np.ndarray,
    fill: np.generic,
    compression: str | None,
) -> np.ndarray:
    """Write a shard into an open temporary file.

    Args:
        temp: where to write; not finished here.
        grid: the site's arithmetic.
        shard: shard number.
        values: (n, steps, branches, tokens, channels) in the stored dtype, n = `grid.samples_in(shard)`.
        fill: what pads a chunk that reaches beyond the last sample or token.
        compression: None or "zstd".

    Returns:
        (n_chunks,) uint32: crc32c of each chunk's stored bytes, in file order.
    """
    g, _, _, k, channels = grid.chunk_shape
    index = np.full((int(np.prod(grid.chunks_per_shard)), 2), ABSENT, "<u8")
    crcs = np.empty(grid.chunks_in(shard), "<u4")
    padded = np.empty((g, k, channels), values.dtype)
    for i, (sample_block, step, branch, token_block) in enumerate(grid.iter_chunks(shard)):
        piece = values[sample_block * g : (sample_block + 1) * g, step, branch, token_block * k : (token_block + 1) * k]
        if piece.shape != padded.shape:
            padded[...] = fill
            padded[: piece.shape[0], : piece.shape[1]] = piece
            piece = padded
        data = np.ascontiguousarray(piece).reshape(-1).view(np.uint8)
        if compression == "zstd":
            data = np.frombuffer(_zstd_compress(data), np.uint8)
        crcs[i] = crc32c(data)  # type: ignore[arg-type]  # any buffer will do
        index[grid.linear(sample_block, step, branch, token_block)] = temp.n_bytes, len(data) + 4
        temp.write(data.data)
        temp.write(crcs[i : i + 1].tobytes())
    index_bytes = index.tobytes()
    temp.write(index_bytes)
    temp.write(np.array([crc32c(index_bytes)], "<u4").tobytes())
    return crcs


def _sha256(values: np.ndarray) -> str:
    digest = hashlib.sha256()
    for sample in values:  # one sample at a time: a non-contiguous array is never copied whole
        digest.update(np.ascontiguousarray(sample).data)
    return digest.hexdigest()


def _zstd_compress(data: np.ndarray) -> bytes:
    import numcodecs.zstd as zstd  # only compressed stores pay for this import

    return bytes(zstd.compress(data, ZSTD_LEVEL))
