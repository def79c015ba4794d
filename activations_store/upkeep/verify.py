"""Checking a store against its commit records.

Every byte of a store is covered by something: `store.json` and the records by their own hash and single
spelling, `zarr.json` by the spec, the sample table and shard files by SHA-256, chunks by crc32c. So a
flipped bit, a truncation, a deleted, swapped, duplicated or stale shard is found, and named with what to
collect again.
"""

import hashlib
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from activations_store.errors import CorruptShard, InvalidMetadata, InvalidRecord, StoreError
from activations_store.format.groups import check_group, group_names
from activations_store.format.layout import Layout, StoreInfo, check_arrays, read_store_info
from activations_store.format.records import SiteRecord, committed_shards, read_record
from activations_store.format.samples import read_samples
from activations_store.format.shard_index import ShardReader
from activations_store.format.spec import SiteSpec
from activations_store.storage.reading import check_folder, entries, names_in, sha256_of
from activations_store.views.statistics_file import basis_of, read_file
from activations_store.writing.leftovers import temp_files, uncommitted_files


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it should be.

    Attributes:
        kind: "metadata", "samples", "record", "shard", "statistics" (damage), "uncommitted" or "leftover"
            (harmless; `gc` removes them), "stale" (statistics that are computed again when next asked for),
            "unexpected" (a file that is no part of the format).
        message: what was found.
        path: the file, relative to the store.
        shard: shard to collect again (after `StoreWriter.discard`), or None.
        site: the site concerned, or None.
        group: the site group it lies in, or None.
    """

    kind: str
    message: str
    path: str
    shard: int | None = None
    site: str | None = None
    group: str | None = None

    @property
    def is_damage(self) -> bool:
        """True when data or metadata are wrong, False for harmless leftovers."""
        return self.kind in ("metadata", "samples", "record", "shard", "statistics")


def verify_tree(layout: Layout, info: StoreInfo, *, full: bool = True) -> list[Problem]:
    """`verify_store` for a store and all of its groups."""
    problems = verify_store(layout, info, full=full)
    try:
        names = group_names(layout)
    except (StoreError, OSError) as error:
        return sorted([*problems, Problem("metadata", str(error), "groups")], key=lambda p: not p.is_damage)
    for name in names:
        place = f"{layout.groups.name}/{name}"
        inner = Layout(layout.group(name))
        try:
            group = read_store_info(inner.root)
            check_group(info, group, inner.root)
        except (StoreError, OSError) as error:
            problems.append(Problem("metadata", str(error), place, group=name))
            continue
        found = verify_store(inner, group, full=full)
        problems += [replace(p, path=f"{place}/{p.path}", group=name) for p in found]
    return sorted(problems, key=lambda p: not p.is_damage)


def verify_store(layout: Layout, info: StoreInfo, *, full: bool = True) -> list[Problem]:
    """Check everything that is committed.

    Args:
        layout, info: the store.
        full: read and hash every shard (about the disk's speed); otherwise metadata, records, file types and
            sizes only.

    Returns:
        Problems, damage first; empty for a sound store. Missing shards are no problem: see `complete`.
    """
    problems: list[Problem] = []
    try:
        if read_store_info(layout.root) != info:
            problems.append(Problem("metadata", "store.json changed since the store was opened", "store.json"))
        check_arrays(layout, info.spec)
    except (StoreError, OSError) as error:
        problems.append(Problem("metadata", str(error), "store.json or zarr.json"))
    try:
        read_samples(layout.samples, info.samples_sha256, info.spec.n_samples)
    except (InvalidMetadata, OSError) as error:
        problems.append(Problem("samples", str(error), "samples.parquet"))
    try:
        shards = committed_shards(layout, info.spec)
        problems += _strange_records(layout, shards)
    except OSError as error:  # no folder of records, say; nothing can be told about shards then
        return sorted([*problems, Problem("metadata", str(error), "commits")], key=lambda p: not p.is_damage)
    for shard in shards:
        try:
            record = read_record(layout, info, shard)
        except (InvalidRecord, OSError) as error:
            problems.append(Problem("record", str(error), layout.relative(layout.record(shard)), shard))
            continue
        for site in info.spec.sites:
            path = layout.shard(site, shard)
            try:
                _check_shard(layout, info, site, shard, record.sites[site.name], full=full)
            except (CorruptShard, StoreError, OSError) as error:
                problems.append(Problem("shard", str(error), layout.relative(path), shard, site.name))
    problems += _check_statistics(layout, info)
    problems += _strangers(layout, info)
    return sorted(problems, key=lambda p: not p.is_damage)


def _strange_records(layout: Layout, shards: list[int]) -> list[Problem]:
    """Files in the folder of records that are none of this store."""
    message = "a file that is no commit record of this store"
    known = {layout.record(shard).name for shard in shards}
    strange = [name for name in names_in(layout.commits) if name not in known and not name.startswith(".")]
    return [Problem("unexpected", message, f"commits/{name}") for name in strange]


def _check_shard(layout: Layout, info: StoreInfo, site: SiteSpec, shard: int, entry: SiteRecord, *, full: bool) -> None:
    """Raise `CorruptShard` (or another `StoreError`) with the first thing that is wrong."""
    path, grid = layout.shard(site, shard), info.spec.grid(site.name)
    reader = ShardReader(path, grid, shard, entry, info.spec.compression)  # type, size, index
    try:
        if not full:
            return
        # Every chunk is read, so the first bad one is named; values are hashed where the record has their hash.
        _check_chunks(reader, layout, info, site, shard, entry)
        n_bytes, digest = sha256_of(path)
        if (n_bytes, digest) != (entry.n_bytes, entry.sha256):
            raise CorruptShard(f"{path}: SHA-256 {digest} where the commit record says {entry.sha256}")
    finally:
        reader.close()


def _check_chunks(
    reader: ShardReader, layout: Layout, info: StoreInfo, site: SiteSpec, shard: int, entry: SiteRecord
) -> None:
    grid, path = info.spec.grid(site.name), layout.shard(site, shard)
    g, _, _, k, channels = grid.chunk_shape
    _, steps, branches, splits, _ = grid.chunks_per_shard
    n_samples = grid.samples_in(shard)
    digest = hashlib.sha256() if entry.array_sha256 else None
    # One sample block at a time, so that values come in C order: at most one chunk's samples with all their
    # steps in memory.
    block = np.empty((g, steps, branches, splits * k, channels), site.stored_dtype.stored)
    chunk = np.empty((g, k, channels), site.stored_dtype.stored)
    for first in range(0, n_samples, g):
        for step in range(steps):
            for branch in range(branches):
                for split in range(splits):
                    i = grid.linear(first // g, step, branch, split)
                    reader.read_chunk(i, chunk.reshape(-1).view(np.uint8))
                    if not reader.check_stored_crc(i):
                        raise CorruptShard(f"{path}: the stored checksum of chunk {i} is damaged")
                    block[:, step, branch, split * k : (split + 1) * k] = chunk
        if digest is not None:
            values = np.ascontiguousarray(block[: min(g, n_samples - first), :, :, : site.tokens])
            digest.update(values.data)
    if digest is not None and digest.hexdigest() != entry.array_sha256:
        raise CorruptShard(f"{path}: its values are not those of the commit record")


def _check_statistics(layout: Layout, info: StoreInfo) -> list[Problem]:
    """Statistics that are damaged, or about other shards than are committed."""
    try:
        check_folder(layout.statistics)
        names = [name for name in names_in(layout.statistics) if not name.startswith(".")]  # others are leftovers
    except FileNotFoundError:
        return []
    except StoreError as error:
        return [Problem("statistics", str(error), layout.statistics.name)]
    records = {}
    for shard in committed_shards(layout, info.spec):
        with suppress(InvalidRecord, OSError):  # reported above
            records[shard] = read_record(layout, info, shard)
    problems = []
    for path in (layout.statistics / name for name in names):
        try:
            found, basis = read_file(path, info.spec)
        except (StoreError, OSError) as error:
            problems.append(Problem("statistics", str(error), layout.relative(path)))
            continue
        values = {shard: r.sites[found.site].values_sha256 for shard, r in records.items() if found.site in r.sites}
        if basis != basis_of(info.hashes, found.site, values):
            problems.append(Problem("stale", "not about what is committed now", layout.relative(path)))
    return problems


def _strangers(layout: Layout, info: StoreInfo) -> list[Problem]:
    """Leftovers, and names inside the array folders that the format does not know."""
    problems = []
    try:
        for path in temp_files(layout, info.spec):
            problems.append(Problem("leftover", "left by a killed writer, or being written", layout.relative(path)))
        for site, shard, path in uncommitted_files(layout, info.spec):
            kind = "uncommitted" if shard < info.spec.n_shards else "unexpected"
            problems.append(Problem(kind, "a shard file without a commit record", layout.relative(path), shard, site))
        for site in info.spec.sites:
            for name, size in entries(layout.array(site)):
                known = name == "zarr.json" or layout.shard_number(name) is not None
                path = layout.relative(layout.array(site) / name)
                if not known and not name.endswith(".tmp"):
                    problems.append(Problem("unexpected", "not a part of the format", path, None, site.name))
                elif size is None:
                    problems.append(Problem("unexpected", "not a plain file", path, None, site.name))
    except (StoreError, OSError) as error:
        problems.append(Problem("metadata", str(error), "arrays"))
    return problems
