"""Sizes of a site at each step, from a store: what strength 1 means for ``AddDirection``."""

from __future__ import annotations

import numpy as np

from activations_store import ActivationStore
from probe.errors import InvalidRequest


def site_scale(
    store: ActivationStore, site: str, unit: str, *, branches: str | tuple[str, ...] | None = None
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Size of a unit at each step of a store.

    Args:
        store: the store.
        site: one of its sites.
        unit: ``std``, the standard deviation of a channel (root of the mean variance over channels), or ``rms``, the
            root mean square of the rows' norm.
        branches: whose rows; None for all.

    Returns:
        (n_steps,) float64, and the steps' timesteps. Costs one pass over the site, the first time.
    """
    if unit not in ("std", "rms"):
        raise InvalidRequest(f"site_scale: unit {unit!r}; expected std or rms.")
    found = store.statistics(site, branches=branches, covariance=False)
    variance = found.variance.mean(1) if unit == "std" else (found.variance + found.mean**2).sum(1)
    return np.sqrt(variance), tuple(int(t) for t in store.spec.timesteps)
