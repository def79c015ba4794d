"""The file of a site's statistics: safetensors, `<store>/statistics/<site>.safetensors`.

One JSON entry in its header says what the arrays are and carries a hash of everything in the file, and of what they
cover: the store's hashes and the values of the shards that were committed. A file that covers other shards than are
committed now is void.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from activations_store.errors import InvalidMetadata, InvalidStatistics, explain
from activations_store.format.layout import Layout
from activations_store.format.spec import StoreSpec
from activations_store.storage import jsonio
from activations_store.storage.fileio import write_atomic
from activations_store.storage.locks import Lock
from activations_store.storage.objects import Place
from activations_store.storage.reading import check_folder, read_small
from activations_store.views.selection import BranchSelection

if TYPE_CHECKING:
    from activations_store.store import ActivationStore

FORMAT = "denoscope-statistics"
VERSION = 1
LEVELS = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
"""Quantile levels that are kept."""
_FIELDS = ("n_rows", "n_skipped", "mean", "variance", "covariance", "values", "norm_mean", "norms")


@dataclass(frozen=True)
class SiteStatistics:
    """Statistics of one site. Arrays have a row a step, n steps, C channels, Q levels.

    Attributes:
        site: its name.
        branches: what was pooled.
        levels: (Q,) quantile levels, from 0 to 1.
        n_rows: (n,) int64, rows counted; 0 where nothing was recorded, and then all else is NaN.
        n_skipped: (n,) int64, rows left out because they hold NaN or infinity.
        mean, variance: (n, C) float64; the variance divides by the number of rows.
        covariance: (n, C, C) float32, or None when it was not asked for; divides by the number of rows.
        values: (n, Q) float32, quantiles of single values over all channels.
        norm_mean: (n,) float64, mean Euclidean norm of a row.
        norms: (n, Q) float32, quantiles of row norms.
    """

    site: str
    branches: tuple[str, ...]
    levels: tuple[float, ...]
    n_rows: np.ndarray
    n_skipped: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    covariance: np.ndarray | None
    values: np.ndarray
    norm_mean: np.ndarray
    norms: np.ndarray


def read_statistics(store: "ActivationStore", site: str, *, branches: BranchSelection = None) -> SiteStatistics:
    """Statistics that were kept.

    Raises:
        FileNotFoundError: there are none.
        InvalidStatistics: the file is damaged, or shards were committed or replaced since.
    """
    names = store.site(site).sel(branch=branches).branches
    store = store.holding(site)
    path = _path(store, site, names)
    result, basis = read_file(path, store.spec)
    if (result.site, result.branches) != (site, names) or basis != basis_of(
        store.hashes, site, _values(store, site, store.committed)
    ):
        raise InvalidStatistics(
            explain(f"{path} is not about what is committed now", next_step="store.statistics(...) computes it again")
        )
    return result


def write_statistics(store: "ActivationStore", result: SiteStatistics, shards: Sequence[int]) -> None:
    """Keep statistics in the store.

    Args:
        store: the store that holds the site's own arrays.
        result: what to keep.
        shards: the shards that were counted; another may have been committed since.
    """
    layout = Layout(store.place)
    layout.statistics.mkdir(exist_ok=True)
    check_folder(layout.statistics)
    lock = Lock(layout.writers_lock)
    try:
        lock.acquire(exclusive=False, wait=True)  # gc leaves the temporary file alone
        basis = basis_of(store.hashes, result.site, _values(store, result.site, shards))
        write_atomic(_path(store, result.site, result.branches), _to_bytes(result, basis), replace=True)
    finally:
        lock.close()


def read_file(path: Place, spec: StoreSpec) -> tuple[SiteStatistics, str]:
    """What a file of statistics says, and the hash of what it covers (`basis_of`).

    Raises:
        FileNotFoundError: there is none.
        InvalidStatistics: it is damaged.
    """
    try:
        data = read_small(path, _size_limit(spec))
        result, basis = _parse(data)
        if _to_bytes(result, basis) != data:
            raise ValueError("its bytes differ from its own hash")
    except (InvalidMetadata, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidStatistics(
            explain(f"{path} cannot be used", found=str(error)[:200], next_step="delete it: it is computed again")
        ) from error
    return result, basis


def basis_of(hashes: Mapping[str, str], site: str, values: Mapping[int, str]) -> str:
    """Hash of what statistics cover: the store's hashes, and by committed shard the hash of the site's values."""
    return jsonio.content_hash({"store": dict(hashes), "site": site, "shards": sorted(values.items())})


def _size_limit(spec: StoreSpec) -> int:
    """Bytes that no honest file of this store passes."""
    c = max(site.channels for site in spec.sites)
    return 2**20 + spec.n_steps * (4 * c * c + 16 * c + 8 * len(LEVELS) + 64)


def _values(store: "ActivationStore", site: str, shards: Iterable[int]) -> dict[int, str]:
    return {shard: store.record(shard).sites[site].values_sha256 for shard in shards}


def _path(store: "ActivationStore", site: str, branches: Sequence[str]) -> Place:
    suffix = "" if tuple(branches) == store.spec.branches else "." + "+".join(branches)
    return Layout(store.place).statistics / f"{store.spec.site(site).dir_name}{suffix}.safetensors"


def _to_bytes(result: SiteStatistics, basis: str) -> bytes:
    """The file: safetensors, with one JSON entry in its header that carries a hash of everything."""
    from safetensors.numpy import save

    tensors = {name: getattr(result, name) for name in _FIELDS if getattr(result, name) is not None}
    body = {
        "format": FORMAT,
        "version": VERSION,
        "site": result.site,
        "branches": result.branches,
        "levels": result.levels,
        "basis": basis,
    }
    digest = hashlib.sha256(jsonio.canonical(body))
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(jsonio.canonical([name, str(array.dtype), array.shape]))
        digest.update(array.data)
    text = jsonio.canonical({**body, "sha256": digest.hexdigest()}).decode()
    return save(tensors, {"denoscope": text})


def _parse(data: bytes) -> tuple[SiteStatistics, str]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        size = int.from_bytes(data[:8], "little")
        header = jsonio.parse(data[8 : 8 + size], "the header") if 0 < size <= 2**20 else None
        meta = jsonio.parse(header["__metadata__"]["denoscope"], "the header") if isinstance(header, dict) else None
        if not isinstance(meta, dict) or meta.get("format") != FORMAT or meta.get("version") != VERSION:
            raise ValueError("no statistics of a version that is known here")
        tensors = load(data)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if set(tensors) | {"covariance"} != set(_FIELDS):
        raise ValueError(f"it holds {sorted(tensors)}")
    values = {name: tensors.get(name) for name in _FIELDS}
    levels = tuple(float(level) for level in meta["levels"])
    return SiteStatistics(str(meta["site"]), tuple(meta["branches"]), levels, **values), str(meta["basis"])  # type: ignore[arg-type]
