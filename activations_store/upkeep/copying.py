"""Copying a store to another place, file by file, between this machine and an object store or within either.

What is copied is checked on the way: metadata and records by their own hashes, the sample table and shard files by
those of `store.json` and the records. Metadata are copied first, a shard's record after its files: a copy that was
stopped is a store without some shards, and goes on when it is asked for again. Records are the only evidence, here
too: what the source has not committed is not copied.

Copied with it: groups, statistics, and images and masks that lie beside the store. A copy is equal byte for byte.
"""

from collections.abc import Callable

from activations_store.errors import CorruptShard, StoreExists, explain
from activations_store.format.groups import check_group, group_names
from activations_store.format.layout import Layout, StoreInfo, check_arrays, read_store_info
from activations_store.format.pictures import copy_pictures
from activations_store.format.records import committed_shards, read_record
from activations_store.format.samples import read_samples
from activations_store.storage.fileio import TempFolder, new_file, write_atomic
from activations_store.storage.locks import Lock
from activations_store.storage.objects import ObjectPath, Place, place
from activations_store.storage.reading import check_folder, exists, names_in, pieces, read_small
from activations_store.writing.creation import write_arrays

MAX_STATISTICS_BYTES = 8 * 2**30

Progress = Callable[[int, int], None]
"""Called with (shards copied, shards in all), groups included."""


def copy(source: str | Place, out: str | Place, *, progress: Progress | None = None, fsync: bool = False) -> Place:
    """Copy what is committed.

    Args:
        source: a store: a folder, or `s3://bucket/key`.
        out: a folder or `s3://bucket/key` without a store, or with one that the same call began.
        progress: told after every shard.
        fsync: make the copy on this machine survive a power cut.

    Returns:
        The place of the copy.

    Raises:
        NotAStore, InvalidMetadata, InvalidRecord, CorruptShard: the source is none, or damaged; what was copied of it
            before is sound.
        StoreExists: there is another store at `out`.
        DiskFull, StorageUnavailable: no room, or no answer; the copy goes on later.

    Memory: a shard file of one site when `out` is in an object store, else some MB.
    """
    here, there = Layout(place(source)), Layout(place(out))
    info = read_store_info(here.root)
    check_arrays(here, info.spec)
    parts = [(here, there, info)]
    for name in group_names(here):
        group = Layout(here.group(name))
        parts.append((group, Layout(there.group(name)), read_store_info(group.root)))
        check_group(info, parts[-1][2], group.root)
        check_arrays(group, parts[-1][2].spec)
    for _, target, what in parts:
        if exists(target.store_json) and read_store_info(target.root) != what:
            raise StoreExists(
                explain(f"There is another store at {target.root}", next_step="choose another place for the copy")
            )
    shards = {id(origin): committed_shards(origin, what.spec) for origin, _, what in parts}
    n, done = sum(map(len, shards.values())), 0
    there.root.mkdir(parents=True, exist_ok=True)
    for origin, target, what in reversed(parts):  # the store's own store.json, without which it is none, comes last
        if origin is here or isinstance(target.root, ObjectPath) or exists(target.root):
            _copy_metadata(origin, target, what, fsync=fsync)
        else:
            there.groups.mkdir(exist_ok=True)
            check_folder(there.groups)
            with TempFolder(target.root, fsync=fsync) as temp:  # a group appears whole in a store that is there
                _copy_metadata(origin, Layout(temp.path), what, fsync=fsync)
                temp.publish()
    for origin, target, what in parts:
        work = Lock(target.writers_lock)
        try:
            work.acquire(exclusive=False, wait=True)  # gc leaves alone what is being copied
            for shard in shards[id(origin)]:
                _copy_shard(origin, target, what, shard, fsync=fsync)
                done += 1
                if progress is not None:
                    progress(done, n)
            _copy_statistics(origin, target, fsync=fsync)
        finally:
            work.close()
    return there.root


def _copy_metadata(here: Layout, there: Layout, info: StoreInfo, *, fsync: bool) -> None:
    if exists(there.store_json):
        check_arrays(there, info.spec)
        return
    read_samples(here.samples, info.samples_sha256, info.spec.n_samples)  # a damaged table is not copied
    write_arrays(there, info.spec, fsync=fsync)
    _copy_file(here.samples, there.samples, info.samples_sha256, fsync=fsync)
    write_atomic(there.store_json, info.to_bytes(), fsync=fsync)


def _copy_shard(here: Layout, there: Layout, info: StoreInfo, shard: int, *, fsync: bool) -> None:
    record = read_record(here, info, shard)
    if exists(there.record(shard)) and read_record(there, info, shard).to_bytes() == record.to_bytes():
        return
    copy_pictures(here.root, {n: n for n in record.samples}, there.root, fsync=fsync)
    for site in info.spec.sites:
        expected = record.sites[site.name].sha256
        _copy_file(here.shard(site, shard), there.shard(site, shard), expected, fsync=fsync)
    write_atomic(there.record(shard), record.to_bytes(), fsync=fsync)


def _copy_statistics(here: Layout, there: Layout, *, fsync: bool) -> None:
    """Copied unread: they carry a hash of their own, and stale or damaged ones are computed again."""
    if not isinstance(here.root, ObjectPath) and not exists(here.statistics):
        return
    check_folder(here.statistics)
    for name in names_in(here.statistics):
        if not name.startswith("."):
            there.statistics.mkdir(exist_ok=True)
            check_folder(there.statistics)
            data = read_small(here.statistics / name, MAX_STATISTICS_BYTES)
            write_atomic(there.statistics / name, data, fsync=fsync, replace=True)


def _copy_file(source: Place, target: Place, sha256: str, *, fsync: bool) -> None:
    """Copy a file that must have this hash; it does not appear otherwise."""
    with new_file(target, fsync=fsync) as new:
        for piece in pieces(source):
            new.write(piece)
        found = new.finish()
        if found != sha256:
            raise CorruptShard(
                explain(
                    f"{source} is damaged",
                    found=f"SHA-256 {found}",
                    expected=f"{sha256}, as its store says",
                    next_step="run store.verify(), and mend the source first",
                )
            )
        new.publish()
