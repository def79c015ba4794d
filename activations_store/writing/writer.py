"""Writing a store, one whole shard at a time.

The protocol, for shard i: check shapes, dtypes and finiteness of every site (incoming.py); write each site's shard
file under a temporary name (shard_file.py); rename them; then write the commit record and rename it. That last rename
is the commit. A process killed anywhere before leaves nothing that a reader sees; started again, it writes the same
bytes. In an object store there is no rename: each file is one put, the record's last (objects.py).

Any number of processes may write different shards of one store. Two that write the same shard either agree
(the second finds the first's record and keeps it) or the second fails with `ShardConflict`: a free test that
a run is reproducible.
"""

import logging
import weakref
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from activations_store.errors import InvalidRecord, ShardConflict, WriterClosed, explain
from activations_store.format.groups import check_name
from activations_store.format.layout import Layout, StoreInfo
from activations_store.format.records import CommitRecord, SiteRecord, read_record
from activations_store.format.spec import StoreSpec
from activations_store.storage.fileio import NewObject, TempFile, new_file, write_atomic
from activations_store.storage.locks import Lock
from activations_store.storage.objects import ObjectPath, Place, place
from activations_store.storage.reading import refuse_remote
from activations_store.writing.creation import add_group, create_store, read_same
from activations_store.writing.incoming import prepare
from activations_store.writing.leftovers import remove_dead_temp_files
from activations_store.writing.shard_file import write_site

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
        path: str | Place,
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
            path: a folder that does not exist yet or holds no store, or `s3://bucket/key` (objects.py).
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
        layout = Layout(place(path))
        info = create_store(layout, spec, samples, fingerprint, plan, fsync=fsync, check_space=check_space)
        return cls(layout, info, allow_nonfinite=allow_nonfinite, fsync=fsync)

    @classmethod
    def extend(
        cls,
        path: str | Place,
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
        base = Layout(place(path))
        target = add_group(base, group, spec, fingerprint, plan, fsync=fsync, check_space=check_space)
        info = read_same(target, spec, fingerprint, plan)
        return cls(target, info, allow_nonfinite=allow_nonfinite, fsync=fsync)

    @classmethod
    def resume(
        cls,
        path: str | Place,
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
        layout = Layout(place(path))
        info = read_same(layout, spec, fingerprint, plan)
        return cls(layout, info, allow_nonfinite=allow_nonfinite, fsync=fsync)

    @property
    def place(self) -> Place:
        """Where the store is: a folder, or a place in an object store."""
        return self._layout.root

    @property
    def path(self) -> Path:
        """The store's folder; raises `NotInObjectStore` when it is no folder of this machine."""
        return refuse_remote(self._layout.root, "The path of a store")

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
            raise WriterClosed(explain(f"The writer of {self.place} is closed", next_step="open it with resume"))
        allow = self._allow_nonfinite
        incoming = prepare(self.spec, shard, arrays, present or {}, allow_nonfinite=allow)
        with ExitStack() as stack:
            temps: list[TempFile | NewObject] = []
            sites: dict[str, SiteRecord] = {}
            for site in self.spec.sites:
                temps.append(stack.enter_context(new_file(self._layout.shard(site, shard), fsync=self._fsync)))
                # Popped: what was encoded for this site is free before the next one is written.
                sites[site.name] = write_site(temps[-1], self.spec, site, shard, incoming.pop(site.name))
            record = CommitRecord(shard, self.spec.shard_samples(shard), sites, self._info.hashes)
            return self._commit(record, temps)

    def discard(self, shards: Iterable[int]) -> None:
        """Remove the commit records of damaged shards, which makes them pending.

        Their files stay until rewritten; objects, which are never overwritten, are removed after the record.
        """
        for shard in shards:
            self.spec.shard_samples(shard)  # refuses a number that is no shard
            self._layout.record(shard).unlink(missing_ok=True)
            if isinstance(self.place, ObjectPath):
                for site in self.spec.sites:
                    self._layout.shard(site, shard).unlink(missing_ok=True)

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

    def _commit(self, record: CommitRecord, temps: list[TempFile | NewObject]) -> CommitRecord:
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
                        f"Shard {record.shard} of {self.place} is committed already with other values",
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
