"""Reading a store.

`ActivationStore.open` checks the metadata and opens nothing else. A shard is read only through its commit
record: the record is checked when the shard is first needed, the file's size and index when it is opened,
and each chunk against its committed checksum when it is read (site_view.py).

Sites that were added later live in groups (groups.py): each is a store of its own inside this one. Here they are
found by name like any other site.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from activations_store.errors import (
    InvalidSelection,
    InvalidStatistics,
    MissingSamples,
    UnknownLabel,
    UnknownSite,
    explain,
)
from activations_store.format.groups import check_group, check_name, group_names
from activations_store.format.layout import Layout, StoreInfo, check_arrays, read_store_info
from activations_store.format.records import CommitRecord, committed_shards, read_record
from activations_store.format.samples import read_samples
from activations_store.format.shard_index import ReaderCache, ShardReader
from activations_store.format.spec import StoreSpec
from activations_store.storage.objects import Place, place
from activations_store.storage.reading import entries, refuse_remote
from activations_store.upkeep import verify as _verify
from activations_store.views.selection import BranchSelection
from activations_store.views.site_view import SiteView
from activations_store.views.statistics import site_statistics
from activations_store.views.statistics_file import SiteStatistics, read_statistics

if TYPE_CHECKING:
    import pyarrow as pa
    import xarray as xr


class ActivationStore:
    """A store opened for reading. Cheap to open and to keep: samples, records and shard files are read when
    needed.

    Reading from several threads is safe. Shards committed after opening are seen.
    """

    def __init__(self, layout: Layout, info: StoreInfo) -> None:
        self._layout = layout
        self._info = info
        self._readers = ReaderCache()
        self._samples: pa.Table | None = None
        self._groups: dict[str, ActivationStore] = {}
        # Of a function that does not hold the store: else it and its open files would wait for the garbage collector.
        self._record = lru_cache(maxsize=1024)(partial(read_record, layout, info))

    @classmethod
    def open(cls, path: str | Place) -> Self:
        """Open the store at `path`: a folder, or `s3://bucket/key` (objects.py).

        Raises:
            NotAStore: there is none.
            NewerFormat: it was written by a newer version.
            InvalidMetadata: `store.json` or a `zarr.json` is damaged or hostile.
            UnsafePath: a part of it is a link or no plain file.
        """
        layout = Layout(place(path))
        info = read_store_info(layout.root)
        check_arrays(layout, info.spec)
        return cls(layout, info)

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
        """Sites, samples, steps, branches, shards; without the sites of groups."""
        return self._info.spec

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The model the activations came from."""
        return self._info.fingerprint

    @property
    def plan(self) -> dict[str, Any]:
        """What was to be collected."""
        return self._info.plan

    @property
    def hashes(self) -> dict[str, str]:
        """Content hashes (SHA-256 hex) of spec, plan, fingerprint and samples, to name in artefacts."""
        return dict(self._info.hashes)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the recorded sites, those of groups last."""
        own = tuple(site.name for site in self.spec.sites)
        return own + tuple(name for group in self.groups.values() for name in group.sites)

    @property
    def groups(self) -> "dict[str, ActivationStore]":
        """Site groups that were added later, by name; each a store of its own. Listed anew at every call.

        Raises:
            InvalidMetadata: a group does not belong to this store.
        """
        names = group_names(self._layout)
        for name in names:
            if name not in self._groups:
                group = type(self).open(self._layout.group(name))
                check_group(self._info, group._info, self._layout.group(name))
                self._groups[name] = group
        return {name: self._groups[name] for name in names}

    def group_path(self, name: str) -> Path:
        """Folder of a site group, whether it is there or not; a name that cannot be one raises `InvalidSpec`."""
        check_name(name)
        return refuse_remote(self._layout.group(name), "The path of a group")

    @property
    def samples(self) -> "pa.Table":
        """The sample table: sample, prompt, seed, label_<factor>, ... ; read and checked once."""
        if self._samples is None:
            self._samples = read_samples(self._layout.samples, self._info.samples_sha256, self.spec.n_samples)
        return self._samples

    @property
    def factors(self) -> tuple[str, ...]:
        """Factors that have a label column."""
        return tuple(n.removeprefix("label_") for n in self.samples.column_names if n.startswith("label_"))

    def labels(self, factor: str) -> np.ndarray:
        """(n_samples,) array of str: column `label_<factor>`; a missing label is the empty string."""
        if factor not in self.factors:
            raise UnknownLabel(
                explain(
                    f"No labels of factor {factor!r}",
                    expected="one of " + (", ".join(self.factors) or "none"),
                )
            )
        return np.array([label or "" for label in self.samples.column(f"label_{factor}").to_pylist()], dtype=str)

    def where(self, **labels: str | Sequence[str]) -> np.ndarray:
        """Samples whose labels are among those given.

        Args:
            **labels: factor = a label, or several of which any will do.

        Returns:
            (n,) int64, ascending; those that satisfy every factor.

        Raises:
            UnknownLabel: no such factor.
            InvalidSelection: a label that no sample has.
        """
        kept = np.ones(self.spec.n_samples, bool)
        for factor, given in labels.items():
            wanted, found = [given] if isinstance(given, str) else list(given), self.labels(factor)
            unknown = sorted(set(wanted) - set(found.tolist()))
            if unknown:
                raise InvalidSelection(
                    explain(
                        f"No sample has the {factor} {unknown[0]!r}",
                        expected="one of " + ", ".join(sorted(set(found.tolist()))[:20]),
                    )
                )
            kept &= np.isin(found, wanted)
        return np.flatnonzero(kept)

    @property
    def committed(self) -> list[int]:
        """Shards that have a commit record, ascending; listed anew at every call."""
        return committed_shards(self._layout, self.spec)

    @property
    def complete(self) -> bool:
        """True when every shard is committed."""
        return len(self.committed) == self.spec.n_shards

    @property
    def n_committed_samples(self) -> int:
        """Samples in committed shards."""
        return sum(len(self.spec.shard_samples(i)) for i in self.committed)

    def committed_samples(self) -> np.ndarray:
        """(n,) int64: numbers of the samples in committed shards, ascending."""
        return np.concatenate(
            [
                np.empty(0, np.int64),
                *(np.arange(r.start, r.stop) for r in map(self.spec.shard_samples, self.committed)),
            ]
        )

    def record(self, shard: int) -> CommitRecord:
        """The commit record of a shard: hashes, checksums, counts of NaN and infinity.

        Raises:
            MissingSamples: the shard is not committed.
            InvalidRecord: the record is damaged or foreign.
        """
        try:
            return self._record(shard)
        except FileNotFoundError:
            samples = self.spec.shard_samples(shard)
            raise MissingSamples(
                explain(
                    f"Samples {samples.start} to {samples.stop - 1} of {self.place} have not been collected",
                    found=f"{len(self.committed)} of {self.spec.n_shards} shards, without shard {shard}",
                    next_step="resume the collection, or read store.committed_samples() only",
                )
            ) from None

    def site(self, name: str) -> SiteView:
        """One site's activations; an unknown name raises `UnknownSite` with the names there are."""
        store = self.holding(name)
        return SiteView(store, store.spec.site(name))

    def holding(self, site: str) -> "ActivationStore":
        """The store that a site's arrays are in: this one, or one of its groups.

        Raises:
            UnknownSite: neither has it.
        """
        if any(own.name == site for own in self.spec.sites):
            return self
        for group in self.groups.values():
            if any(own.name == site for own in group.spec.sites):
                return group
        raise UnknownSite(explain(f"No site {site!r} in the store", expected="one of " + ", ".join(self.sites)))

    def n_bytes(self, site: str) -> int:
        """Bytes of a site's files as they are now: shards, committed or not, and metadata."""
        holder = self.holding(site)
        return sum(size or 0 for _, size in entries(holder._layout.array(holder.spec.site(site))))

    def to_xarray(self) -> "xr.Dataset":
        """The store as a lazy `xarray.Dataset`; see `xarray_view.store_to_xarray`. Needs xarray."""
        from activations_store.views.xarray_view import store_to_xarray  # xarray is optional

        return store_to_xarray(self)

    def statistics(self, site: str, *, branches: BranchSelection = None, covariance: bool = True) -> SiteStatistics:
        """Mean, covariance, norms and quantiles of a site by step; see `statistics.site_statistics`.

        Kept in the store, and computed again when shards were added.
        """
        return site_statistics(self, site, branches=branches, covariance=covariance)

    def has_statistics(self, site: str) -> bool:
        """Whether statistics of a site, over all branches, are kept and true of what is committed now."""
        try:
            read_statistics(self, site)
        except (FileNotFoundError, InvalidStatistics):
            return False
        return True

    def verify(self, *, full: bool = True) -> list[_verify.Problem]:
        """Compare the store and its groups with their records; see `verify.verify_store`."""
        return _verify.verify_tree(self._layout, self._info, full=full)

    def open_shard(self, site: str, shard: int) -> ShardReader:
        """The open shard file of a site, checked against its record; kept open for the next call."""
        reader = self._readers.get((site, shard))
        if reader is None:
            entry = self.record(shard).sites[site]
            spec = self.spec.site(site)
            reader = self._readers.put(
                (site, shard),
                ShardReader(self._layout.shard(spec, shard), self.spec.grid(site), shard, entry, self.spec.compression),
            )
        return reader

    def close(self) -> None:
        """Forget records and shard files that are open; the store stays usable, and sees replaced shards."""
        self._readers.clear()
        self._record.cache_clear()
        for group in self._groups.values():
            group.close()
