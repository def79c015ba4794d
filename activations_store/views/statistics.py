"""Statistics of a site by step, in one pass over the store, kept beside the arrays.

For every step, over the rows of all committed samples and the chosen branches: the mean, the variance or covariance,
and quantiles of single values and of row norms.

Moments: a block of rows X with mean m is centred, S = (X - m)^T (X - m), and blocks are joined by

    n = n_a + n_b,  d = m_b - m_a,  m = m_a + d n_b / n,  S = S_a + S_b + d d^T n_a n_b / n

in float64 (Chan, Golub and LeVeque 1979), so a large mean does not swallow a small variance.

Quantiles: values are counted by the 65,536 bit patterns of a 16-bit float. For float16 that is every value there is,
and the quantiles are exact; else it is the upper half of the float32, and they are right to 2^-8 of their size (exact
for bfloat16). Norms are counted by the upper 16 bits below the sign: right to 2^-9. Counts of parts add up, so the
result does not depend on the order of reading.

The file lists what it covers: it is void as soon as a shard is added, and then computed again.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from activations_store.errors import InvalidMetadata, InvalidStatistics, MissingSamples, explain
from activations_store.format.layout import Layout
from activations_store.format.spec import StoreSpec
from activations_store.storage import jsonio
from activations_store.storage.fileio import write_atomic
from activations_store.storage.locks import Lock
from activations_store.storage.objects import Place
from activations_store.storage.reading import check_folder, read_small
from activations_store.views.selection import BranchSelection, resolve_branches

if TYPE_CHECKING:
    from activations_store.store import ActivationStore
    from activations_store.views.site_view import SiteView

FORMAT = "denoscope-statistics"
VERSION = 1
LEVELS = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
"""Quantile levels that are kept."""
_BLOCK_ROWS = 16384
_PATTERNS = 2**16
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


def site_statistics(
    store: "ActivationStore", site: str, *, branches: BranchSelection = None, covariance: bool = True
) -> SiteStatistics:
    """Statistics of a site: read from the store when they cover what is committed now, else computed and kept.

    Args:
        store: the store.
        site: site name.
        branches: what to pool; None for all.
        covariance: whether to have the covariance by step: 4 n C^2 bytes on disk and 8 n C^2 in memory, and most of
            the time.

    Raises:
        UnknownSite, InvalidSelection: something the store does not have.
        MissingSamples: nothing is committed yet.
        CorruptShard, InvalidRecord: the store is damaged.
    """
    try:
        found = read_statistics(store, site, branches=branches)
        if found.covariance is not None or not covariance:
            return found
    except (FileNotFoundError, InvalidStatistics):
        pass  # nothing yet, or no longer true: both mean computing
    result = compute_statistics(store, site, branches=branches, covariance=covariance)
    _write(store, result)
    return result


def compute_statistics(
    store: "ActivationStore", site: str, *, branches: BranchSelection = None, covariance: bool = True
) -> SiteStatistics:
    """`site_statistics` computed afresh and not kept. One pass; each map is read once."""
    view = store.site(site)
    store = store.holding(site)
    names = view.sel(branch=branches).branches
    shards = store.committed
    if not shards:
        raise MissingSamples(explain(f"No shard of {site} is committed in {store.place}", next_step="collect first"))
    steps = [_Accumulator(view.spec.channels, covariance, view.spec.dtype) for _ in range(store.spec.n_steps)]
    per_read = max(1, _BLOCK_ROWS // (view.spec.tokens * len(names)))
    per_read = -(-per_read // (g := store.spec.grid(site).chunk_shape[0])) * g  # no chunk is read twice
    for shard in shards:
        samples = np.array(store.spec.shard_samples(shard))
        for start in range(0, len(samples), per_read):
            block = view.sel(sample=samples[start : start + per_read], branch=list(names))
            present = block.present()
            for step, accumulator in enumerate(steps):
                maps = block.read(step=step, missing="nan")[:, 0]
                accumulator.add(maps[present[:, step]].reshape(-1, view.spec.channels))
    return SiteStatistics(site, names, LEVELS, *_stacked(steps, covariance))


def read_statistics(store: "ActivationStore", site: str, *, branches: BranchSelection = None) -> SiteStatistics:
    """Statistics that were kept.

    Raises:
        FileNotFoundError: there are none.
        InvalidStatistics: the file is damaged, or shards were committed or replaced since.
    """
    view = store.site(site)
    store = store.holding(site)
    names = view.sel(branch=branches).branches
    path = _path(store, view, list(names))
    result, basis = read_file(path, store.spec)
    if (result.site, result.branches) != (site, names) or basis != basis_of(store.hashes, site, _values(store, site)):
        raise InvalidStatistics(
            explain(f"{path} is not about what is committed now", next_step="store.statistics(...) computes it again")
        )
    return result


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


class _Accumulator:
    """Moments and counts of one step."""

    def __init__(self, channels: int, covariance: bool, dtype: str) -> None:
        self.n = self.skipped = 0
        self.mean = np.zeros(channels)
        self.scatter = np.zeros((channels, channels) if covariance else channels)
        self.norm_sum = 0.0
        self.values = np.zeros(_PATTERNS, np.int64)
        self.norms = np.zeros(_PATTERNS, np.int64)
        self._dtype = dtype

    def add(self, rows: np.ndarray) -> None:
        """Count rows (n, C), float16 or float32."""
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            self.skipped += int((~finite).sum())
            rows = rows[finite]
        n = len(rows)
        if not n:
            return
        x = rows.astype(np.float32, copy=False)
        mean = x.mean(axis=0, dtype=np.float64)
        centred = x - mean.astype(np.float32)
        # The float32 mean is off by its rounding: what is left of the mean is taken out of the scatter exactly.
        rest = mean - mean.astype(np.float32)
        delta, total = mean - self.mean, self.n + n
        weight = self.n * n / total
        if self.scatter.ndim == 2:
            self.scatter += (centred.T @ centred).astype(np.float64) - n * np.outer(rest, rest)
            self.scatter += np.outer(delta, delta) * weight
        else:
            self.scatter += np.einsum("ij,ij->j", centred, centred, dtype=np.float64) - n * rest**2
            self.scatter += delta**2 * weight
        self.mean += delta * (n / total)
        self.n = total
        half = self._dtype == "float16"
        bits = np.ascontiguousarray(rows).view(np.uint16) if half else x.view(np.uint32) >> np.uint32(16)
        self.values += np.bincount(bits.reshape(-1), minlength=_PATTERNS)
        norms = np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64))
        self.norm_sum += float(norms.sum())
        keys = norms.astype(np.float32).view(np.uint32) >> np.uint32(15)
        self.norms += np.bincount(keys, minlength=_PATTERNS)

    def value_quantiles(self) -> np.ndarray:
        """(Q,) float32."""
        patterns = np.arange(_PATTERNS, dtype=np.uint32)
        if self._dtype == "float16":
            return _quantiles(patterns.astype(np.uint16).view(np.float16).astype(np.float32), self.values)
        bits = patterns << np.uint32(16)
        if self._dtype != "bfloat16":
            bits[(patterns & 0x7FFF) != 0] |= np.uint32(0x8000)  # the middle of what a pattern stands for
        values = bits.view(np.float32)
        return _quantiles(values, self.values)

    def norm_quantiles(self) -> np.ndarray:
        """(Q,) float32."""
        keys = np.arange(_PATTERNS, dtype=np.uint32)
        return _quantiles(((keys << np.uint32(15)) | np.uint32(1 << 14)).view(np.float32), self.norms)


def _quantiles(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Smallest value whose cumulative share reaches each level (numpy's method "inverted_cdf")."""
    used = np.flatnonzero(counts)
    if not len(used):
        return np.full(len(LEVELS), np.nan, np.float32)
    order = used[np.argsort(values[used], kind="stable")]
    total = np.cumsum(counts[order])
    # ceil(q n) as numpy does it, guarded against q n lying a rounding error above a whole number
    wanted = np.ceil(np.array(LEVELS) * total[-1] - 1e-9).clip(1, total[-1])
    return values[order][np.searchsorted(total, wanted)]


def _stacked(steps: list[_Accumulator], covariance: bool) -> tuple[Any, ...]:
    n = np.array([s.n for s in steps], np.int64)
    empty = n == 0
    mean = np.stack([s.mean for s in steps])
    scatter = np.stack([s.scatter / max(1, s.n) for s in steps])
    norm_mean = np.array([s.norm_sum / max(1, s.n) for s in steps])
    for array in (mean, scatter, norm_mean):
        array[empty] = np.nan
    variance = np.ascontiguousarray(np.diagonal(scatter, axis1=1, axis2=2)) if covariance else scatter
    return (
        n,
        np.array([s.skipped for s in steps], np.int64),
        mean,
        variance,
        scatter.astype(np.float32) if covariance else None,
        np.stack([s.value_quantiles() for s in steps]),
        norm_mean,
        np.stack([s.norm_quantiles() for s in steps]),
    )


def _size_limit(spec: StoreSpec) -> int:
    """Bytes that no honest file of this store passes."""
    c = max(site.channels for site in spec.sites)
    return 2**20 + spec.n_steps * (4 * c * c + 16 * c + 8 * len(LEVELS) + 64)


def _values(store: "ActivationStore", site: str) -> dict[int, str]:
    return {shard: store.record(shard).sites[site].values_sha256 for shard in store.committed}


def _path(store: "ActivationStore", view: "SiteView", branches: BranchSelection) -> Place:
    spec = store.spec
    chosen = [spec.branches[b] for b in resolve_branches(branches, spec.branches)]
    suffix = "" if chosen == list(spec.branches) else "." + "+".join(chosen)
    return Layout(store.place).statistics / f"{view.spec.dir_name}{suffix}.safetensors"


def _write(store: "ActivationStore", result: SiteStatistics) -> None:
    basis_store = store.holding(result.site)
    layout = Layout(basis_store.place)
    layout.statistics.mkdir(exist_ok=True)
    check_folder(layout.statistics)
    lock = Lock(layout.writers_lock)
    try:
        lock.acquire(exclusive=False, wait=True)  # gc leaves the temporary file alone
        path = _path(basis_store, basis_store.site(result.site), list(result.branches))
        basis = basis_of(basis_store.hashes, result.site, _values(basis_store, result.site))
        write_atomic(path, _to_bytes(result, basis), replace=True)
    finally:
        lock.close()


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
