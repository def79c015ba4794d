"""Making what is written once: folders, `zarr.json`, the sample table and, last, `store.json`.

A creation that is killed leaves no `store.json`, hence no store; it is made again. A group of sites that is added to
a store is made under a temporary name and renamed whole.
"""

import errno
import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from activations_store.errors import (
    DiskFull,
    FingerprintMismatch,
    PlanMismatch,
    ShardConflict,
    SpecMismatch,
    StoreExists,
    explain,
)
from activations_store.format.groups import check_addition, group_names
from activations_store.format.layout import (
    Layout,
    StoreInfo,
    array_metadata,
    check_arrays,
    group_metadata,
    read_store_info,
)
from activations_store.format.samples import MAX_TABLE_BYTES, canonical_samples, table_bytes
from activations_store.format.spec import StoreSpec
from activations_store.storage import jsonio
from activations_store.storage.fileio import TempFolder, sync_folder, write_atomic
from activations_store.storage.locks import Lock
from activations_store.storage.objects import ObjectPath
from activations_store.storage.reading import check_folder, names_in, read_small, refuse_remote

if TYPE_CHECKING:
    import pyarrow as pa


def create_store(
    layout: Layout,
    spec: StoreSpec,
    samples: "pa.Table",
    fingerprint: Mapping[str, Any],
    plan: Mapping[str, Any],
    *,
    fsync: bool,
    check_space: bool,
) -> StoreInfo:
    """Make an empty store; see `StoreWriter.create`."""
    refuse_existing(layout)
    samples = canonical_samples(samples, spec.n_samples)
    model, planned = jsonio.normalise(dict(fingerprint)), jsonio.normalise(dict(plan))
    # Metadata that cannot be written should fail before there is a folder.
    StoreInfo(spec, model, planned, "0" * 64).to_bytes()
    layout.root.mkdir(parents=True, exist_ok=True)
    if check_space and not isinstance(layout.root, ObjectPath):
        _check_space(layout.root, spec)
    lock = Lock(layout.commit_lock)
    try:
        lock.acquire(exclusive=True, wait=True)
        refuse_existing(layout)  # another process may have created one since
        return _write_metadata(layout, spec, model, planned, table_bytes(samples), fsync=fsync)
    except ShardConflict as error:
        raise StoreExists(
            explain(
                f"{layout.root} holds parts of another store",
                found=str(error),
                next_step="remove them, or choose another place",
            )
        ) from error
    finally:
        lock.close()


def add_group(
    base: Layout,
    group: str,
    spec: StoreSpec,
    fingerprint: Mapping[str, Any],
    plan: Mapping[str, Any],
    *,
    fsync: bool,
    check_space: bool,
) -> Layout:
    """Make an empty group of a store unless it is there, and return where it is; see `StoreWriter.extend`."""
    root = refuse_remote(base.root, "Adding a group of sites")
    info = read_store_info(root)
    check_arrays(base, info.spec)
    target = Layout(base.group(group))
    work, lock = Lock(base.writers_lock), Lock(base.commit_lock)
    try:
        work.acquire(exclusive=False, wait=True)  # gc leaves alone what a writer may be making
        lock.acquire(exclusive=True, wait=True)
        others = [name for name in group_names(base) if name != group]
        specs = [info.spec, *(read_store_info(base.group(name)).spec for name in others)]
        taken = {site.dir_name.casefold() for one in specs for site in one.sites}
        check_addition(info, spec, taken, dict(fingerprint))
        if target.store_json.exists():
            return target
        if check_space:
            _check_space(root, spec)
        base.groups.mkdir(exist_ok=True)
        check_folder(base.groups)
        table = read_small(base.samples, MAX_TABLE_BYTES)
        with TempFolder(root / base.groups.name / group, fsync=fsync) as temp:
            planned = jsonio.normalise(dict(plan))
            _write_metadata(Layout(temp.path), spec, info.fingerprint, planned, table, fsync=fsync)
            temp.publish()
        return target
    finally:
        lock.close()
        work.close()


def read_same(layout: Layout, spec: StoreSpec, fingerprint: Mapping[str, Any], plan: Mapping[str, Any]) -> StoreInfo:
    """What an existing store is, checked to be what is asked for; see `StoreWriter.resume`."""
    info = read_store_info(layout.root)
    check_arrays(layout, info.spec)
    for what, stored, given, error in (
        ("plan", info.plan, jsonio.normalise(dict(plan)), PlanMismatch),
        ("spec", info.spec.to_dict(), spec.to_dict(), SpecMismatch),
        ("fingerprint", info.fingerprint, jsonio.normalise(dict(fingerprint)), FingerprintMismatch),
    ):
        lines = jsonio.differences(stored, given)
        if lines:
            raise error(
                explain(
                    f"The store {layout.root} was created with another {what}",
                    found="; ".join(lines),
                    expected=f"the same {what} as in its store.json",
                    next_step="resume with what it was created with, or collect into another folder",
                )
            )
    return info


def refuse_existing(layout: Layout) -> None:
    """Raise `StoreExists` where a store is, or the records of one that lost its `store.json`."""
    if layout.store_json.exists() or layout.store_json.is_symlink():
        raise StoreExists(
            explain(
                f"There is a store at {layout.root} already",
                next_step="use StoreWriter.resume to go on with it, or choose another folder",
            )
        )
    if layout.commits.is_dir() and any(layout.record_number(name) is not None for name in names_in(layout.commits)):
        raise StoreExists(
            explain(
                f"{layout.root} holds commit records but no store.json",
                expected="an empty folder",
                next_step="restore store.json from a copy, or choose another folder",
            )
        )


def write_arrays(layout: Layout, spec: StoreSpec, *, fsync: bool) -> None:
    """What follows from the spec: folders and every `zarr.json`."""
    for folder in (layout.arrays, layout.commits, *(layout.array(site) for site in spec.sites)):
        folder.mkdir(exist_ok=True)
        check_folder(folder)
    write_atomic(layout.arrays / "zarr.json", group_metadata(), fsync=fsync)
    for site in spec.sites:
        write_atomic(layout.array(site) / "zarr.json", array_metadata(spec, site), fsync=fsync)


def _write_metadata(
    layout: Layout, spec: StoreSpec, model: dict[str, Any], plan: dict[str, Any], table: bytes, *, fsync: bool
) -> StoreInfo:
    """Everything of a store but its shards."""
    write_arrays(layout, spec, fsync=fsync)
    write_atomic(layout.samples, table, fsync=fsync)
    info = StoreInfo(spec, model, plan, hashlib.sha256(table).hexdigest())
    if fsync:
        for folder in (layout.arrays, layout.root, layout.root.resolve().parent):
            sync_folder(folder)
    write_atomic(layout.store_json, info.to_bytes(), fsync=fsync)
    return info


def _check_space(root: Path, spec: StoreSpec) -> None:
    free = shutil.disk_usage(root).free
    if spec.n_bytes > free:
        sites = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in spec.bytes_by_site().items())
        raise DiskFull(
            errno.ENOSPC,
            explain(
                f"The store does not fit the disk of {root}",
                found=f"{free / 1e9:.2f} GB free",
                expected=f"{spec.n_bytes / 1e9:.2f} GB ({sites})",
                next_step="record fewer sites, steps, samples or branches, or float16, or use another disk",
            ),
        )
