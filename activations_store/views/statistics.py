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

The file (statistics_file.py) lists what it covers: it is void as soon as a shard is added, and then computed again.
"""

import errno
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from activations_store.errors import InvalidStatistics, MissingSamples, explain
from activations_store.views.selection import BranchSelection
from activations_store.views.statistics_file import LEVELS, SiteStatistics, read_statistics, write_statistics

if TYPE_CHECKING:
    from activations_store.store import ActivationStore

logger = logging.getLogger(__name__)
_BLOCK_ROWS = 16384
_PATTERNS = 2**16


def site_statistics(
    store: "ActivationStore", site: str, *, branches: BranchSelection = None, covariance: bool = True
) -> SiteStatistics:
    """Statistics of a site: read from the store when they cover what is committed now, else computed, and kept if the
    store can be written to.

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
    holder = store.holding(site)
    shards = holder.committed  # read once: a shard that is committed meanwhile is not among those counted
    result = compute_statistics(holder, site, shards, branches=branches, covariance=covariance)
    try:
        write_statistics(holder, result, shards)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        logger.warning("%s cannot be written to: the statistics of %s will be computed again", holder.place, site)
    return result


def compute_statistics(
    store: "ActivationStore",
    site: str,
    shards: Sequence[int],
    *,
    branches: BranchSelection = None,
    covariance: bool = True,
) -> SiteStatistics:
    """`site_statistics` of some committed shards, computed afresh and not kept. One pass; each map is read once."""
    view = store.site(site)
    names = view.sel(branch=branches).branches
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
