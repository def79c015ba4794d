"""A store's numbers as plain files for programs that know no store.

    <out>/<site>.npy               format "npy": (samples, steps, branches, tokens, channels), memory-mappable
    <out>/<site>-00000.safetensors format "safetensors": tensors x (rows, channels), sample, step, branch, token
    <out>/samples.parquet          the sample table of what was exported, with the numbers of the store
    <out>/images, masks            pictures that lie beside the store, by the store's sample numbers
    <out>/export.json              shapes, steps, t, log_snr, branches, sites, hashes of the store

Values are decoded: float16 sites as float16, all others as float32. Maps that were never recorded are NaN in npy
and left out of safetensors. The folder appears whole or not at all.
"""

import errno
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from activations_store.errors import DiskFull, InvalidSelection, StoreExists, explain
from activations_store.format.pictures import copy_pictures, find_pictures
from activations_store.storage import jsonio
from activations_store.storage.fileio import TempFolder, write_atomic
from activations_store.storage.reading import file_size
from activations_store.store import ActivationStore
from activations_store.upkeep.rewrite import Progress, committed_samples
from activations_store.views.selection import BranchSelection, Selection, resolve
from activations_store.views.site_view import SiteView

Format = Literal["npy", "safetensors"]
SHARD_BYTES = 512 * 2**20
"""Bound on the values in one safetensors file."""


def export(
    store: ActivationStore,
    out: str | Path,
    *,
    file_format: Format = "npy",
    sites: Sequence[str] | None = None,
    samples: Selection = None,
    steps: Selection = None,
    branches: BranchSelection = None,
    progress: Progress | None = None,
) -> Path:
    """Write plain files.

    Args:
        store: the source.
        out: folder to make; it must not exist.
        file_format: "npy" or "safetensors".
        sites: names; None for all.
        samples, steps, branches: what to keep; None for all (of the samples, all that are committed).
        progress: called with (maps written, maps in all).

    Returns:
        The folder.

    Raises:
        StoreExists: there is something at `out`.
        UnknownSite, InvalidSelection, MissingSamples: something the store does not have.
        DiskFull: it would not fit.
    """
    out = Path(out)
    if file_format not in ("npy", "safetensors"):
        raise InvalidSelection(explain("Unknown format", found=repr(file_format), expected="npy or safetensors"))
    if out.exists() or out.is_symlink():
        raise StoreExists(explain(f"{out} exists already", next_step="choose another folder"))
    chosen = (
        committed_samples(store) if samples is None else np.unique(resolve(samples, store.spec.n_samples, "sample"))
    )
    names = store.sites if sites is None else tuple(dict.fromkeys(sites))
    if not names:
        raise InvalidSelection(explain("No site is chosen", expected="some of " + ", ".join(store.sites)))
    views = [store.site(name).sel(sample=chosen, step=steps, branch=branches) for name in names]
    out.parent.mkdir(parents=True, exist_ok=True)
    _check_space(out, views, sum(file_size(path) for _, path in find_pictures(store.place, chosen.tolist())))
    n_maps = sum(int(np.prod(view.shape[:3])) for view in views)
    done = 0
    with TempFolder(out, fsync=False) as temp:
        for view in views:
            writer = _write_npy if file_format == "npy" else _write_safetensors
            for n in writer(temp.path, view):
                done += n
                if progress is not None:
                    progress(done, n_maps)
        copy_pictures(store.place, {int(n): int(n) for n in chosen}, temp.path)
        _write_table(temp.path, store, chosen)
        write_atomic(temp.path / "export.json", jsonio.canonical(_describe(store, views, file_format)))
        temp.publish()
    return out


def _write_npy(folder: Path, view: SiteView) -> Any:
    array = np.lib.format.open_memmap(folder / f"{view.spec.dir_name}.npy", "w+", view.dtype, view.shape)
    for at in _blocks(view, 1):
        array[at] = view.read(sample=at, missing="nan")
        yield len(at) * view.shape[1] * view.shape[2]
    array.flush()


def _write_safetensors(folder: Path, view: SiteView) -> Any:
    from safetensors.numpy import save_file

    for number, at in enumerate(_blocks(view, SHARD_BYTES)):
        part = view.sel(sample=at)
        present = part.present()
        sample, step, branch = np.nonzero(present)
        tokens = view.shape[3]
        tensors = {
            "x": part.read(missing="nan")[present].reshape(-1, view.shape[4]),
            "sample": np.repeat(part.samples[sample], tokens),
            "step": np.repeat(part.steps[step], tokens),
            "branch": np.repeat(branch, tokens),
            "token": np.tile(part.tokens, len(sample)),
        }
        save_file(tensors, folder / f"{view.spec.dir_name}-{number:05d}.safetensors")
        yield int(np.prod(part.shape[:3]))


def _blocks(view: SiteView, n_bytes: int) -> list[np.ndarray]:
    """Samples in runs of about `n_bytes` of values, at least one sample."""
    one = int(np.prod(view.shape[1:])) * view.dtype.itemsize
    size = max(1, n_bytes // one)
    return [np.arange(i, min(i + size, view.shape[0])) for i in range(0, view.shape[0], size)]


def _write_table(folder: Path, store: ActivationStore, samples: np.ndarray) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(store.samples.take(pa.array(samples)), folder / "samples.parquet", compression="zstd")


def _describe(store: ActivationStore, views: list[SiteView], file_format: str) -> dict[str, Any]:
    first = views[0]
    return {
        "format": file_format,
        "store": store.hashes,
        "dimensions": ["sample", "step", "branch", "token", "channel"],
        "samples": first.samples.tolist(),
        "steps": first.steps.tolist(),
        "timesteps": [store.spec.timesteps[s] for s in first.steps],
        "log_snr": [store.spec.log_snr[s] for s in first.steps],
        "branches": first.branches,
        "sites": {
            view.spec.name: {
                "file": view.spec.dir_name,
                "shape": view.shape,
                "grid": view.spec.grid,
                "dtype": str(view.dtype),
                "stored_dtype": view.spec.dtype,
            }
            for view in views
        },
    }


def _check_space(out: Path, views: list[SiteView], other_bytes: int) -> None:
    needed = sum(int(np.prod(view.shape)) * view.dtype.itemsize for view in views) + other_bytes
    free = shutil.disk_usage(out.parent).free
    if needed > free:
        raise DiskFull(
            errno.ENOSPC,
            explain(f"The export does not fit the disk of {out}", found=f"{free} bytes free", expected=f"{needed}"),
        )
