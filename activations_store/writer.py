"""Writing a store, one whole shard at a time.

The protocol, for shard i: check shapes, dtypes and finiteness of every site; write each site's shard file
under a temporary name; rename them; then write the commit record and rename it. That last rename is the
commit. A process killed anywhere before leaves nothing that a reader sees; started again, it writes the same
bytes.

Any number of processes may write different shards of one store. Two that write the same shard either agree
(the second finds the first's record and keeps it) or the second fails with `ShardConflict`: a free test that
a run is reproducible.
"""

import errno
import hashlib
import logging
import shutil
import weakref
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from . import jsonio
from .errors import (
    DiskFull,
    FingerprintMismatch,
    InvalidRecord,
    NonFiniteActivations,
    PlanMismatch,
    ShardConflict,
    ShardMismatch,
    SpecMismatch,
    StoreExists,
    WriterClosed,
    explain,
)
from .fileio import Lock, TempFile, TempFolder, check_folder, read_small, sync_folder, write_atomic
from .groups import check_addition, check_name, group_names
from .layout import Layout, StoreInfo, array_metadata, check_arrays, group_metadata, read_store_info
from .leftovers import remove_dead_temp_files
from .records import CommitRecord, SiteRecord, read_record
from .samples import MAX_TABLE_BYTES, canonical_samples, table_bytes
from .shard_file import write_shard_file
from .spec import SiteSpec, StoreSpec

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)


class StoreWriter:
    """Writes shards into one store. Made by `create` or `resume`.

    A context manager, and `close` is safe to call twice.
    """

    def __init__(self, layout: Layout, info: StoreInfo, *, allow_nonfinite: bool, fsync: bool) -> None:
        self._layout = layout
        self._info = info
        self._allow_nonfinite = allow_nonfinite
        self._fsync = fsync
        self._live = Lock(layout.writers_lock)
        self._closer = weakref.finalize(self, self._live.close)
        if self._live.acquire(exclusive=True, wait=False):
            # No other writer is alive, so temporary files of this machine are those of a killed one.
            for path in remove_dead_temp_files(layout, info.spec, lock_is_free=True, older_than_hours=24.0):
                logger.info("removed %s, left by a killed writer", path)
        # Shared from here on: gc and the next writer see that somebody is at work. Trading exclusive for
        # shared can let another writer in between, which is harmless: it finds no temporary file of ours yet.
        self._live.acquire(exclusive=False, wait=True)

    @classmethod
    def create(
        cls,
        path: str | Path,
        spec: StoreSpec,
        samples: "pa.Table",
        *,
        fingerprint: Mapping[str, Any],
        plan: Mapping[str, Any],
        allow_nonfinite: bool = False,
        fsync: bool = False,
        check_space: bool = True,
    ) -> Self:
        """Make an empty store and open it for writing.

        Args:
            path: a folder that does not exist yet or holds no store.
            spec: what will be stored.
            samples: the sample table (samples.py).
            fingerprint: the model, as JSON values.
            plan: what is collected, as JSON values; with the spec it fixes every byte of the store.
            allow_nonfinite: count NaN and infinity in the records instead of refusing them.
            fsync: make committed shards survive a power cut, not only a killed process.
            check_space: refuse when the uncompressed size does not fit the free space.

        Raises:
            StoreExists: there is a store at `path`.
            InvalidSamples: the table does not fit the spec.
            DiskFull: the store would not fit.
        """
        layout = Layout(Path(path))
        _refuse_existing(layout)
        samples = canonical_samples(samples, spec.n_samples)
        model, planned = jsonio.normalise(dict(fingerprint)), jsonio.normalise(dict(plan))
        # Metadata that cannot be written should fail before there is a folder.
        StoreInfo(spec, model, planned, "0" * 64).to_bytes()
        layout.root.mkdir(parents=True, exist_ok=True)
        if check_space:
            _check_space(layout.root, spec)
        lock = Lock(layout.commit_lock)
        try:
            lock.acquire(exclusive=True, wait=True)
            _refuse_existing(layout)  # another process may have created one since
            info = _write_metadata(layout, spec, model, planned, table_bytes(samples), fsync=fsync)
        finally:
            lock.close()
        return cls(layout, info, allow_nonfinite=allow_nonfinite, fsync=fsync)

    @classmethod
    def extend(
        cls,
        path: str | Path,
        group: str,
        spec: StoreSpec,
        *,
        fingerprint: Mapping[str, Any],
        plan: Mapping[str, Any],
        allow_nonfinite: bool = False,
        fsync: bool = False,
        check_space: bool = True,
    ) -> Self:
        """Add a group of sites to an existing store, or go on with one, and open it for writing.

        The group appears whole or not at all, and nothing of the store itself is touched.

        Args:
            path: the store.
            group: name of the group, letters a-z, digits, _ and -.
            spec: the new sites, with the store's samples, steps and branches; shards, compression and `ragged`
                are the group's own.
            fingerprint: the model, which must be the store's.
            plan: what is collected; it may differ from the store's plan.
            allow_nonfinite, fsync, check_space: see `create`.

        Raises:
            NotAStore: there is no store at `path`.
            InvalidSpec: a name that cannot name a group.
            SpecMismatch: other samples, steps or branches, a site that the store has already, or the group exists
                with another spec.
            FingerprintMismatch, PlanMismatch: another model; the group exists with another plan.
            DiskFull: the group would not fit.
        """
        check_name(group)
        base = Layout(Path(path))
        info = read_store_info(base.root)
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
            if not target.store_json.exists():
                if check_space:
                    _check_space(base.root, spec)
                base.groups.mkdir(exist_ok=True)
                check_folder(base.groups)
                table = read_small(base.samples, MAX_TABLE_BYTES)
                with TempFolder(target.root, fsync=fsync) as temp:
                    planned = jsonio.normalise(dict(plan))
                    _write_metadata(Layout(temp.path), spec, info.fingerprint, planned, table, fsync=fsync)
                    temp.publish()
        finally:
            lock.close()
            work.close()
        return cls.resume(
            target.root, spec=spec, fingerprint=fingerprint, plan=plan, allow_nonfinite=allow_nonfinite, fsync=fsync
        )

    @classmethod
    def resume(
        cls,
        path: str | Path,
        *,
        spec: StoreSpec,
        fingerprint: Mapping[str, Any],
        plan: Mapping[str, Any],
        allow_nonfinite: bool = False,
        fsync: bool = False,
    ) -> Self:
        """Open an existing store for writing its pending shards.

        Raises:
            NotAStore: there is none at `path`.
            SpecMismatch, PlanMismatch, FingerprintMismatch: the store was created for something else; the
                message names the fields that differ, with both values.
        """
        layout = Layout(Path(path))
        info = read_store_info(layout.root)
        check_arrays(layout, info.spec)
        given = {"fingerprint": jsonio.normalise(dict(fingerprint)), "plan": jsonio.normalise(dict(plan))}
        for what, stored, new, error in (
            ("plan", info.plan, given["plan"], PlanMismatch),
            ("spec", info.spec.to_dict(), spec.to_dict(), SpecMismatch),
            ("fingerprint", info.fingerprint, given["fingerprint"], FingerprintMismatch),
        ):
            lines = jsonio.differences(stored, new)
            if lines:
                raise error(
                    explain(
                        f"The store {path} was created with another {what}",
                        found="; ".join(lines),
                        expected=f"the same {what} as in its store.json",
                        next_step="resume with what it was created with, or collect into another folder",
                    )
                )
        return cls(layout, info, allow_nonfinite=allow_nonfinite, fsync=fsync)

    @property
    def path(self) -> Path:
        """The store's folder."""
        return self._layout.root

    @property
    def spec(self) -> StoreSpec:
        """What is stored."""
        return self._info.spec

    def pending(self) -> list[int]:
        """Shards without a valid commit record, ascending. A record that is damaged counts as none."""
        return [shard for shard in range(self.spec.n_shards) if self._valid_record(shard) is None]

    def write_shard(
        self, shard: int, arrays: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray] | None = None
    ) -> CommitRecord:
        """Write one shard of all sites and commit it.

        Args:
            shard: shard number; `spec.shard_samples(shard)` are its samples.
            arrays: site name -> (n, steps, branches, tokens, channels) in the site's dtype. float32 is also
                taken for float16 and bfloat16 sites and rounded to nearest even, so that overflow can be
                counted. uint16 is taken as bfloat16 bits. int8 sites take float32 or
                float16, or int8 rows of channels + 4 as they are stored (`SiteView.read_stored`).
            present: for a ragged store, site name -> (n, steps, branches) bool, which maps were recorded; a site
                that is not named is complete. What `arrays` holds in a missing map is ignored.

        Returns:
            The commit record. When the shard is committed already with the same values, its record stays as
            it is.

        Raises:
            ShardMismatch: wrong sites, shape or dtype, or missing maps in a store that is not ragged.
            NonFiniteActivations: NaN, infinity or overflow, unless `allow_nonfinite`.
            ShardConflict: the shard is committed already with other values.
            DiskFull: no room; nothing of this shard is left on disk.
        """
        if not self._closer.alive:
            raise WriterClosed(explain(f"The writer of {self.path} is closed", next_step="open it with resume"))
        masks = self._checked_masks(shard, present or {})
        stored, counts = self._checked(shard, arrays, masks)
        with ExitStack() as stack:
            temps: list[TempFile] = []
            sites: dict[str, SiteRecord] = {}
            for site in self.spec.sites:
                temp = stack.enter_context(TempFile(self._layout.shard(site, shard), fsync=self._fsync))
                temps.append(temp)
                values, mask = stored.pop(site.name), masks.get(site.name)
                sites[site.name] = self._write_site(temp, site, shard, values, counts[site.name], mask)
            record = CommitRecord(shard, self.spec.shard_samples(shard), sites, self._info.hashes)
            return self._commit(record, temps)

    def discard(self, shards: Iterable[int]) -> None:
        """Remove the commit records of damaged shards, which makes them pending.

        Their files stay until rewritten.
        """
        for shard in shards:
            self.spec.shard_samples(shard)  # refuses a number that is no shard
            self._layout.record(shard).unlink(missing_ok=True)

    def close(self) -> None:
        """Give up the store's lock. Committed shards need no closing."""
        self._closer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _valid_record(self, shard: int) -> CommitRecord | None:
        try:
            return read_record(self._layout, self._info, shard)
        except FileNotFoundError:
            return None
        except InvalidRecord as error:
            logger.warning("%s", error)
            return None

    def _checked_masks(self, shard: int, present: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Masks of the sites that lack a map in this shard."""
        masks = {}
        for name, mask in present.items():
            shape = self.spec.shard_shape(name, shard)[:3]  # an unknown name raises UnknownSite
            if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != shape:
                found = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
                raise ShardMismatch(
                    explain(
                        f"The mask of site {name} does not fit shard {shard}", found=found, expected=f"bool {shape}"
                    )
                )
            if not mask.all():
                masks[name] = mask
        if masks and not self.spec.ragged:
            raise ShardMismatch(
                explain(
                    f"Shard {shard} lacks maps of {', '.join(masks)}",
                    expected="every map, since the store is not ragged",
                    next_step="create the store with StoreSpec(..., ragged=True)",
                )
            )
        return masks

    def _checked(
        self, shard: int, arrays: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Arrays in the stored dtype, and (3, steps) counts of NaN, infinity and overflow, by site."""
        names = {site.name for site in self.spec.sites}
        if set(arrays) != names:
            raise ShardMismatch(
                explain(f"Shard {shard} needs every site once", found=sorted(arrays), expected=sorted(names))
            )
        stored: dict[str, np.ndarray] = {}
        counts: dict[str, np.ndarray] = {}
        for site in self.spec.sites:
            x, dtype = arrays[site.name], site.stored_dtype
            shape = self.spec.shard_shape(site.name, shard)
            if isinstance(x, np.ndarray) and x.dtype == np.int8:
                shape = (*shape[:-1], site.stored_channels)
            if not isinstance(x, np.ndarray) or x.shape != shape or x.dtype not in dtype.accepts:
                found = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
                accepted = " or ".join(str(d) for d in dtype.accepts)
                raise ShardMismatch(
                    explain(
                        f"The array of site {site.name} does not fit shard {shard}",
                        found=found,
                        expected=f"{accepted} {shape}: sample, step, branch, token, channel",
                    )
                )
            mask = masks.get(site.name)
            if mask is not None:  # what is missing is neither counted nor stored, whatever the caller left there
                x = np.where(mask[..., None, None], x, x.dtype.type(0))
            stored[site.name] = dtype.encode(x)
            counts[site.name] = _count_by_step(site, x, stored[site.name])
            if mask is not None:
                stored[site.name] = np.where(mask[..., None, None], stored[site.name], dtype.fill)
        bad = {name: c for name, c in counts.items() if c.any()}
        if bad and not self._allow_nonfinite:
            lines = [
                f"site {name} step {step}: {c[0, step]} NaN, {c[1, step]} infinite ({c[2, step]} by overflow)"
                for name, c in bad.items()
                for step in np.flatnonzero(c.any(axis=0))[:3]
            ]
            raise NonFiniteActivations(
                explain(
                    f"Shard {shard} holds values that are not finite",
                    found="; ".join(lines[:6]),
                    expected="finite values",
                    next_step="store float32 or bfloat16, or pass allow_nonfinite=True to count only",
                )
            )
        return stored, counts

    def _write_site(
        self,
        temp: TempFile,
        site: SiteSpec,
        shard: int,
        values: np.ndarray,
        counts: np.ndarray,
        present: np.ndarray | None,
    ) -> SiteRecord:
        grid, fill = self.spec.grid(site.name), site.stored_dtype.fill
        crcs = write_shard_file(temp, grid, shard, values, fill, self.spec.compression)
        digest = hashlib.sha256()
        for sample in values:  # one sample at a time: a non-contiguous array is never copied whole
            digest.update(np.ascontiguousarray(sample).data)
        nan, inf, overflow = (tuple(int(n) for n in row) for row in counts)
        return SiteRecord(temp.n_bytes, temp.finish(), digest.hexdigest(), crcs, nan, inf, overflow, present)

    def _commit(self, record: CommitRecord, temps: list[TempFile]) -> CommitRecord:
        """Publish files and record, or find that another writer was first.

        The lock is held for a few renames only.
        """
        lock = Lock(self._layout.commit_lock)
        try:
            lock.acquire(exclusive=True, wait=True)
            existing = self._valid_record(record.shard)
            if existing is not None:
                different = record.different_sites(existing)
                if not different:
                    if existing.to_bytes() == record.to_bytes():
                        # Equal bytes over equal bytes: no reader can tell, and a damaged file is mended.
                        for temp in temps:
                            temp.publish()
                    return existing
                raise ShardConflict(
                    explain(
                        f"Shard {record.shard} of {self.path} is committed already with other values",
                        found=f"different values at {', '.join(different)}",
                        expected="the same bytes from the same plan",
                        next_step="find out why the run differs: device, versions, batch size",
                    )
                )
            for temp in temps:
                temp.publish()
            write_atomic(self._layout.record(record.shard), record.to_bytes(), fsync=self._fsync)
            return record
        finally:
            lock.close()


def _count_by_step(site: SiteSpec, given: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """(3, steps) int64: NaN, infinite and overflowed values at each step."""
    dtype = site.stored_dtype
    counts = np.zeros((3, stored.shape[1]), np.int64)
    for step in range(stored.shape[1]):
        for sample in range(stored.shape[0]):  # small pieces: the bit masks stay in cache
            n_nan, n_inf = dtype.count_nonfinite(given[sample, step], stored[sample, step])
            counts[0, step] += n_nan
            counts[1, step] += n_inf
            if n_inf:
                x = given[sample, step]
                was_infinite = np.isinf(x).sum() if x.dtype.kind == "f" else n_inf
                counts[2, step] += n_inf - int(was_infinite)
    return counts


def _write_metadata(
    layout: Layout, spec: StoreSpec, model: dict[str, Any], plan: dict[str, Any], table: bytes, *, fsync: bool
) -> StoreInfo:
    """Everything of a store but its shards. A creation that is killed leaves no store.json, which comes last."""
    for folder in (layout.arrays, layout.commits, *(layout.array(site) for site in spec.sites)):
        folder.mkdir(exist_ok=True)
        check_folder(folder)
    write_atomic(layout.arrays / "zarr.json", group_metadata(), fsync=fsync)
    for site in spec.sites:
        write_atomic(layout.array(site) / "zarr.json", array_metadata(spec, site), fsync=fsync)
    write_atomic(layout.samples, table, fsync=fsync)
    info = StoreInfo(spec, model, plan, hashlib.sha256(table).hexdigest())
    if fsync:
        for folder in (layout.arrays, layout.root, layout.root.resolve().parent):
            sync_folder(folder)
    write_atomic(layout.store_json, info.to_bytes(), fsync=fsync)
    return info


def _refuse_existing(layout: Layout) -> None:
    if layout.store_json.exists() or layout.store_json.is_symlink():
        raise StoreExists(
            explain(
                f"There is a store at {layout.root} already",
                next_step="use StoreWriter.resume to go on with it, or choose another folder",
            )
        )
    if layout.commits.is_dir() and any(layout.record_number(p.name) is not None for p in layout.commits.iterdir()):
        raise StoreExists(
            explain(
                f"{layout.root} holds commit records but no store.json",
                expected="an empty folder",
                next_step="restore store.json from a copy, or choose another folder",
            )
        )


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
