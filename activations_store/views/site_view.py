"""One site's activations: chosen lazily, read from committed shards only.

A view is a site and, for each dimension, the positions chosen so far. `sel` narrows it without touching the disk;
`read` brings it to memory, chunk by chunk, each checked against its committed checksum. No dimension is ever
dropped: the result is always (sample, step, branch, token, channel).
"""

from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from activations_store.errors import InvalidSelection, MissingEntries, explain
from activations_store.format.chunking import ChunkGrid
from activations_store.format.spec import SiteSpec
from activations_store.storage.objects import ObjectPath
from activations_store.views.selection import BranchSelection, Selection, resolve, resolve_branches

if TYPE_CHECKING:
    import xarray as xr
    import zarr

    from activations_store.store import ActivationStore

Missing = Literal["raise", "nan"]
"""What to do about maps that were never recorded: refuse, or give them as NaN."""


class SiteView:
    """The activations of one site, dimensions (sample, step, branch, token, channel). Made by `store.site(name)`."""

    def __init__(
        self, store: "ActivationStore", spec: SiteSpec, chosen: tuple[np.ndarray | None, ...] = (None,) * 4
    ) -> None:
        self._store = store
        self.spec = spec
        self._chosen = chosen
        self._grid: ChunkGrid = store.spec.grid(spec.name)

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        whole = self._grid.array_shape
        a, b, c, d = (whole[i] if chosen is None else len(chosen) for i, chosen in enumerate(self._chosen))
        return a, b, c, d

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(samples, steps, branches, tokens, channels) of what is chosen, whether committed or not."""
        return (*self._sizes, self.spec.channels)

    @property
    def dtype(self) -> np.dtype:
        """What `read` gives: float16 for float16 sites, float32 for all others."""
        return self.spec.stored_dtype.decoded

    @property
    def samples(self) -> np.ndarray:
        """(n,) int64: numbers of the chosen samples."""
        return self._positions(0)

    @property
    def steps(self) -> np.ndarray:
        """(n,) int64: the chosen steps."""
        return self._positions(1)

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the chosen branches."""
        return tuple(self._store.spec.branches[b] for b in self._positions(2))

    @property
    def tokens(self) -> np.ndarray:
        """(n,) int64: the chosen tokens."""
        return self._positions(3)

    def sel(
        self,
        sample: Selection = None,
        step: Selection = None,
        branch: BranchSelection = None,
        token: Selection = None,
    ) -> Self:
        """A part of this view; nothing is read.

        Args:
            sample, step, token: positions within this view: None (all), int, slice, ints or boolean mask.
            branch: None, a name, a number, or several.

        Raises:
            InvalidSelection: something the view does not have.
        """
        given: tuple[Any, ...] = (sample, step, branch, token)
        parts: list[np.ndarray | None] = []
        for dim, (selection, n, what) in enumerate(
            zip(given, self._sizes, ("sample", "step", "branch", "token"), strict=True)
        ):
            if selection is None:
                parts.append(self._chosen[dim])
                continue
            at = resolve_branches(selection, self.branches) if dim == 2 else resolve(selection, n, what)
            chosen = self._chosen[dim]
            parts.append(at if chosen is None else chosen[at])
        return type(self)(self._store, self.spec, tuple(parts))

    def present(self, sample: Selection = None, step: Selection = None, branch: BranchSelection = None) -> np.ndarray:
        """Which maps were recorded; all of them unless the store is ragged.

        Returns:
            (samples, steps, branches) bool.

        Raises:
            MissingSamples: a sample whose shard is not committed.
        """
        view = self.sel(sample, step, branch)
        samples, steps, branches = (view._positions(dim) for dim in range(3))
        spec = self._store.spec
        out = np.ones((len(samples), len(steps), len(branches)), bool)
        shards = samples // spec.samples_per_shard
        for shard in np.unique(shards):
            mask = self._store.record(int(shard)).sites[self.spec.name].present
            if mask is not None:
                at = np.flatnonzero(shards == shard)
                local = samples[at] - shard * spec.samples_per_shard
                out[at] = mask[np.ix_(local, steps, branches)]
        return out

    def read(
        self,
        sample: Selection = None,
        step: Selection = None,
        branch: BranchSelection = None,
        token: Selection = None,
        *,
        missing: Missing = "raise",
    ) -> np.ndarray:
        """Read a selection into memory; no dimension is dropped.

        Args:
            sample, step, token: None (all), int, slice, ints or boolean mask.
            branch: None, a name, a number, or several.
            missing: "raise", or "nan" to get maps that were never recorded as NaN.

        Returns:
            (samples, steps, branches, tokens, channels) float16 or float32; bfloat16 sites come as float32,
            exactly, int8 sites as float32 times their row's scale.

        Raises:
            InvalidSelection: something the site does not have.
            MissingSamples: a sample whose shard is not committed.
            MissingEntries: a map that was not recorded, unless `missing` is "nan".
            CorruptShard: bytes that are not those committed.
        """
        return self.spec.stored_dtype.decode(self.read_stored(sample, step, branch, token, missing=missing))

    def read_stored(
        self,
        sample: Selection = None,
        step: Selection = None,
        branch: BranchSelection = None,
        token: Selection = None,
        *,
        missing: Missing = "raise",
    ) -> np.ndarray:
        """`read` without decoding: the stored words, for an exact copy.

        Returns:
            (samples, steps, branches, tokens, stored channels) in the stored dtype: float32, float16, uint16 for
            bfloat16, int8 with the scale's four bytes at the end of a row.
        """
        if missing not in ("raise", "nan"):
            raise InvalidSelection(explain("Unknown choice of missing", found=repr(missing), expected="raise or nan"))
        view = self.sel(sample, step, branch, token)
        samples, steps, branches, tokens = (view._positions(dim) for dim in range(4))
        present = view.present()  # missing samples and maps are reported before memory is taken
        if missing == "raise" and not present.all():
            raise self._missing(samples, steps, branches, present)
        dtype, grid = self.spec.stored_dtype, self._grid
        g, _, _, k, width = grid.chunk_shape
        out = np.empty((len(samples), len(steps), len(branches), len(tokens), width), dtype.stored)
        scratch = np.empty((g, k, width), dtype.stored)
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
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """What is chosen, read (`numpy.asarray(view)`); missing maps raise `MissingEntries`."""
        if copy is False:
            raise ValueError(explain("A view cannot become an array without a copy", next_step="leave out copy=False"))
        x = self.read()
        return x if dtype is None else x.astype(dtype, copy=False)

    def to_xarray(self) -> "xr.DataArray":
        """What is chosen as a lazy `xarray.DataArray`; see `xarray_view.site_to_xarray`. Needs xarray."""
        from activations_store.views.xarray_view import site_to_xarray

        return site_to_xarray(self._store, self)

    def zarr(self) -> "zarr.Array":
        """The zarr array, read-only, for other libraries. It knows no commit records.

        Uncommitted samples and missing maps read as the fill value, which decodes to NaN.
        """
        import zarr

        place = self._store.place / "arrays" / self.spec.dir_name
        if isinstance(place, ObjectPath):
            from zarr.storage import ObjectStore

            objects = ObjectStore(place.client, read_only=True)
            return zarr.open_array(objects, path=place.key, mode="r", zarr_format=3)
        return zarr.open_array(place, mode="r", zarr_format=3)

    def _positions(self, dim: int) -> np.ndarray:
        chosen = self._chosen[dim]
        return np.arange(self._grid.array_shape[dim]) if chosen is None else chosen

    def _missing(self, samples: np.ndarray, steps: np.ndarray, branches: np.ndarray, present: np.ndarray) -> Exception:
        i, j, b = np.argwhere(~present)[0]
        first = f"sample {samples[i]}, step {steps[j]}, branch {self._store.spec.branches[branches[b]]}"
        return MissingEntries(
            explain(
                f"{int((~present).sum())} of the maps asked for were not recorded at site {self.spec.name}",
                found=f"none for {first}",
                next_step="choose by view.present(), or read(..., missing='nan') to have them as NaN",
            )
        )


def _parts(chosen: np.ndarray, size: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Positions grouped by block of `size`: (block, where in `chosen`, where in the block)."""
    blocks = chosen // size
    order = np.argsort(blocks, kind="stable")
    starts = np.flatnonzero(np.diff(blocks[order], prepend=-1))
    return [(int(blocks[at[0]]), at, chosen[at] - blocks[at[0]] * size) for at in np.split(order, starts[1:])]


def _is_run(at: np.ndarray, inside: np.ndarray, size: int) -> bool:
    """True when a whole block is wanted, in order, in one piece."""
    return len(at) == size and at[-1] - at[0] == size - 1 and bool((inside == np.arange(size)).all())
