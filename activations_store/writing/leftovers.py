"""Leftovers of killed writers, and their removal.

A killed process can leave temporary files (never a half-written file under a final name) and shard files
whose commit record was not reached. Neither is ever read. A temporary file is dead when no writer holds the
store's lock and it was made on this machine, or when it is older than any write can take; what another
machine made recently is left alone, because locks do not cross every network file system.
"""

import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from activations_store.format.groups import group_names
from activations_store.format.layout import Layout, read_store_info
from activations_store.format.pictures import FOLDERS as PICTURES
from activations_store.format.spec import StoreSpec
from activations_store.storage.fileio import HOST_TAG
from activations_store.storage.locks import Lock
from activations_store.storage.objects import ObjectPath, Place, place
from activations_store.storage.reading import check_folder, exists, names_in, refuse_remote

_TEMP_NAME = re.compile(r"\..+\.([0-9a-f]{8})-\d+-\d+\.tmp")


def temp_files(layout: Layout, spec: StoreSpec) -> Iterator[Path]:
    """Temporary files in the store's own folders, and folders of groups that were being made; objects have none."""
    if isinstance(layout.root, ObjectPath):
        return
    beside = (layout.groups, layout.statistics, *(layout.root / name for name in PICTURES))
    optional = [folder for folder in beside if exists(folder)]
    own = (layout.root, layout.arrays, layout.commits, *(layout.array(site) for site in spec.sites))
    for folder in (*own, *optional):
        check_folder(folder.resolve() if folder == layout.root else folder)
        names = [name for name in names_in(folder) if _TEMP_NAME.fullmatch(name)]
        yield from (Path(str(folder)) / name for name in names)


def uncommitted_files(layout: Layout, spec: StoreSpec) -> Iterator[tuple[str, int, Place]]:
    """(site, shard, path) of shard files without a commit record."""
    committed = {layout.record_number(name) for name in names_in(layout.commits)}
    for site in spec.sites:
        shards = sorted(n for name in names_in(layout.array(site)) if (n := layout.shard_number(name)) is not None)
        yield from ((site.name, n, layout.shard(site, n)) for n in shards if n not in committed)


def remove_dead_temp_files(
    layout: Layout, spec: StoreSpec, *, lock_is_free: bool, older_than_hours: float
) -> list[Path]:
    """Remove temporary files that no writer can still be using; the paths removed."""
    removed = []
    for path in temp_files(layout, spec):
        match = _TEMP_NAME.fullmatch(path.name)
        try:
            info = os.lstat(path)
        except FileNotFoundError:  # its writer finished between listing and looking
            continue
        ours = lock_is_free and match is not None and match[1] == HOST_TAG
        old = time.time() - info.st_mtime > older_than_hours * 3600
        if not (ours or old):
            continue
        if stat.S_ISREG(info.st_mode):
            path.unlink(missing_ok=True)
            removed.append(path)
        elif stat.S_ISDIR(info.st_mode) and path.parent == layout.groups:
            shutil.rmtree(path)  # follows no link
            removed.append(path)
    return removed


def gc(path: str | Place, *, older_than_hours: float = 24.0) -> list[Path]:
    """Remove leftovers: dead temporary files, and shard files that were never committed.

    Args:
        path: the store.
        older_than_hours: age at which a temporary file of another machine, or of a store in use, counts as
            dead.

    Returns:
        The paths removed. Committed shards, records and metadata are never among them; uncommitted shard
        files only when no writer is at work on the store. Site groups are cleaned too.

    Raises:
        NotInObjectStore: the store lies in an object store, where nobody can know that no writer is at work.
    """
    layout = Layout(refuse_remote(place(path), "gc"))
    spec = read_store_info(layout.root).spec
    lock = Lock(layout.writers_lock)
    try:
        free = lock.acquire(exclusive=True, wait=False)
        removed = remove_dead_temp_files(layout, spec, lock_is_free=free, older_than_hours=older_than_hours)
        if free:
            for _, _, file in list(uncommitted_files(layout, spec)):
                file.unlink(missing_ok=True)
                removed.append(Path(str(file)))
    finally:
        lock.close()
    for name in group_names(layout):
        removed += gc(layout.group(name), older_than_hours=older_than_hours)
    return removed
