"""Reading a store.

`ActivationStore.open` checks the metadata and opens nothing else. A shard is read only through its commit
record: the record is checked when the shard is first needed, the file's size and index when it is opened,
and each chunk against its committed checksum when it is read.
"""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from . import verify as _verify
from .chunking import ChunkGrid
from .errors import MissingSamples, UnknownLabel, explain
from .layout import Layout, StoreInfo, check_arrays, read_store_info
from .records import CommitRecord, read_record
from .samples import read_samples
from .selection import BranchSelection, Selection, resolve, resolve_branches
from .shard_index import ReaderCache, ShardReader
from .spec import SiteSpec, StoreSpec

if TYPE_CHECKING:
    import pyarrow as pa
    import zarr


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
        self._record = lru_cache(maxsize=1024)(self._read_record)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open the store at `path`.

        Raises:
            NotAStore: there is none.
            NewerFormat: it was written by a newer version.
            InvalidMetadata: `store.json` or a `zarr.json` is damaged or hostile.
            UnsafePath: a part of it is a link or no plain file.
        """
        layout = Layout(Path(path))
        info = read_store_info(layout.root)
        check_arrays(layout, info.spec)
        return cls(layout, info)

    @property
    def path(self) -> Path:
        """The store's folder."""
        return self._layout.root

    @property
    def spec(self) -> StoreSpec:
        """Sites, samples, steps, branches, shards."""
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
        """Names of the recorded sites."""
        return tuple(site.name for site in self.spec.sites)

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

    @property
    def committed(self) -> list[int]:
        """Shards that have a commit record, ascending; listed anew at every call."""
        numbers = (self._layout.record_number(p.name) for p in self._layout.commits.iterdir())
        return sorted(n for n in numbers if n is not None and n < self.spec.n_shards)

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
        return self._record(shard)

    def site(self, name: str) -> "SiteView":
        """One site's activations; an unknown name raises `UnknownSite` with the names there are."""
        return SiteView(self, self.spec.site(name))

    def verify(self, *, full: bool = True) -> list[_verify.Problem]:
        """Compare the store with its records; see `verify.verify_store`."""
        return _verify.verify_store(self._layout, self._info, full=full)

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
        """Close shard files that are open; the store stays usable."""
        self._readers.clear()

    def _read_record(self, shard: int) -> CommitRecord:
        samples = self.spec.shard_samples(shard)
        try:
            return read_record(self._layout, self._info, shard)
        except FileNotFoundError:
            raise MissingSamples(
                explain(
                    f"Samples {samples.start} to {samples.stop - 1} of {self.path} have not been collected",
                    found=f"{len(self.committed)} of {self.spec.n_shards} shards, without shard {shard}",
                    next_step="resume the collection, or read store.committed_samples() only",
                )
            ) from None


class SiteView:
    """The activations of one site, dimensions (sample, step, branch, token, channel)."""

    def __init__(self, store: ActivationStore, spec: SiteSpec) -> None:
        self._store = store
        self.spec = spec
        self._grid: ChunkGrid = store.spec.grid(spec.name)

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(n_samples, n_steps, n_branches, tokens, channels), whether committed or not."""
        return self._grid.array_shape

    def read(
        self,
        sample: Selection = None,
        step: Selection = None,
        branch: BranchSelection = None,
        token: Selection = None,
    ) -> np.ndarray:
        """Read a selection into memory; no dimension is dropped.

        Args:
            sample, step, token: None (all), int, slice, ints or boolean mask.
            branch: None, a name, a number, or several.

        Returns:
            (samples, steps, branches, tokens, channels) float16 or float32; bfloat16 sites come as float32,
            exactly.

        Raises:
            InvalidSelection: something the site does not have.
            MissingSamples: a sample whose shard is not committed.
            CorruptShard: bytes that are not those committed.
        """
        spec, grid = self._store.spec, self._grid
        samples = resolve(sample, spec.n_samples, "sample")
        steps = resolve(step, spec.n_steps, "step")
        branches = resolve_branches(branch, spec.branches)
        tokens = resolve(token, self.spec.tokens, "token")
        shards = np.unique(samples // spec.samples_per_shard)
        for shard in shards:
            self._store.record(int(shard))  # missing samples are reported before memory is taken
        dtype = self.spec.stored_dtype
        out = np.empty((len(samples), len(steps), len(branches), len(tokens), self.spec.channels), dtype.stored)
        g, _, _, k, channels = grid.chunk_shape
        scratch = np.empty((g, k, channels), dtype.stored)
        scratch_bytes = scratch.reshape(-1).view(np.uint8)
        token_parts = _parts(tokens, k)
        for sample_block, sample_at, sample_in in _parts(samples, g):
            shard, local_block = divmod(sample_block, grid.chunks_per_shard[0])
            reader = self._store.open_shard(self.spec.name, shard)
            for i, s in enumerate(steps):
                for j, b in enumerate(branches):
                    for token_block, token_at, token_in in token_parts:
                        chunk = grid.linear(local_block, int(s), int(b), token_block)
                        whole = g == 1 and len(sample_at) == 1 and _is_run(token_at, token_in, k)
                        if whole:
                            target = out[sample_at[0], i, j, token_at[0] : token_at[0] + k]
                            reader.read_chunk(chunk, target.reshape(-1).view(np.uint8))
                        else:
                            reader.read_chunk(chunk, scratch_bytes)
                            out[sample_at[:, None], i, j, token_at[None, :]] = scratch[
                                sample_in[:, None], token_in[None, :]
                            ]
        return dtype.decode(out)

    def zarr(self) -> "zarr.Array":
        """The zarr array, read-only, for other libraries. It knows no commit records.

        Uncommitted samples read as NaN.
        """
        import zarr

        return zarr.open_array(self._store.path / "arrays" / self.spec.dir_name, mode="r", zarr_format=3)


def _parts(chosen: np.ndarray, size: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Positions grouped by block of `size`: (block, where in `chosen`, where in the block)."""
    blocks = chosen // size
    return [(int(b), at, chosen[at] - b * size) for b in np.unique(blocks) for at in (np.flatnonzero(blocks == b),)]


def _is_run(at: np.ndarray, inside: np.ndarray, size: int) -> bool:
    """True when a whole block is wanted, in order, in one piece."""
    return len(at) == size and at[-1] - at[0] == size - 1 and bool((inside == np.arange(size)).all())
