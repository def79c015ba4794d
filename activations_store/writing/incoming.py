"""What a caller gives for a shard, made ready to be written: checked, in the stored dtype, and counted.

Nothing is on disk yet when something here is refused.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from activations_store.errors import NonFiniteActivations, ShardMismatch, explain
from activations_store.format.spec import SiteSpec, StoreSpec


class Incoming(NamedTuple):
    """One site's part of a shard.

    Attributes:
        values: (n, steps, branches, tokens, stored channels) in the stored dtype.
        counts: (3, steps) int64, NaN, infinite and overflowed values at each step.
        present: (n, steps, branches) bool, which maps were recorded; None when all were.
    """

    values: np.ndarray
    counts: np.ndarray
    present: np.ndarray | None


def prepare(
    spec: StoreSpec,
    shard: int,
    arrays: Mapping[str, np.ndarray],
    present: Mapping[str, np.ndarray],
    *,
    allow_nonfinite: bool,
) -> dict[str, Incoming]:
    """Check and encode one shard; see `StoreWriter.write_shard` for the arguments.

    Returns:
        By site name, in the order of the spec.

    Raises:
        ShardMismatch: wrong sites, shape or dtype, or missing maps in a store that is not ragged.
        NonFiniteActivations: NaN, infinity or overflow, unless `allow_nonfinite`.
    """
    masks = _checked_masks(spec, shard, present)
    names = {site.name for site in spec.sites}
    if set(arrays) != names:
        raise ShardMismatch(
            explain(f"Shard {shard} needs every site once", found=sorted(arrays), expected=sorted(names))
        )
    incoming = {site.name: _encoded(spec, site, shard, arrays[site.name], masks.get(site.name)) for site in spec.sites}
    if not allow_nonfinite:
        _refuse_nonfinite(shard, {name: one.counts for name, one in incoming.items() if one.counts.any()})
    return incoming


def _checked_masks(spec: StoreSpec, shard: int, present: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Masks of the sites that lack a map in this shard."""
    masks = {}
    for name, mask in present.items():
        shape = spec.shard_shape(name, shard)[:3]  # an unknown name raises UnknownSite
        if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != shape:
            found = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise ShardMismatch(
                explain(f"The mask of site {name} does not fit shard {shard}", found=found, expected=f"bool {shape}")
            )
        if not mask.all():
            masks[name] = mask
    if masks and not spec.ragged:
        raise ShardMismatch(
            explain(
                f"Shard {shard} lacks maps of {', '.join(masks)}",
                expected="every map, since the store is not ragged",
                next_step="create the store with StoreSpec(..., ragged=True)",
            )
        )
    return masks


def _encoded(spec: StoreSpec, site: SiteSpec, shard: int, x: np.ndarray, mask: np.ndarray | None) -> Incoming:
    dtype, shape = site.stored_dtype, spec.shard_shape(site.name, shard)
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
    if mask is not None:  # what is missing is neither counted nor stored, whatever the caller left there
        x = np.where(mask[..., None, None], x, x.dtype.type(0))
    values = dtype.encode(x)
    counts = _count_by_step(site, x, values)
    if mask is not None:
        values = np.where(mask[..., None, None], values, dtype.fill)
    return Incoming(values, counts, mask)


def _count_by_step(site: SiteSpec, given: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """(3, steps) int64: NaN, infinite and overflowed values at each step."""
    dtype = site.stored_dtype
    counts = np.zeros((3, stored.shape[1]), np.int64)
    for step in range(stored.shape[1]):
        for sample in range(stored.shape[0]):  # small pieces: they stay in the processor's cache
            n_nan, n_inf = dtype.count_nonfinite(given[sample, step], stored[sample, step])
            counts[0, step] += n_nan
            counts[1, step] += n_inf
            if n_inf:
                x = given[sample, step]
                was_infinite = np.isinf(x).sum() if x.dtype.kind == "f" else n_inf
                counts[2, step] += n_inf - int(was_infinite)
    return counts


def _refuse_nonfinite(shard: int, bad: Mapping[str, np.ndarray]) -> None:
    lines = [
        f"site {name} step {step}: {c[0, step]} NaN, {c[1, step]} infinite ({c[2, step]} by overflow)"
        for name, c in bad.items()
        for step in np.flatnonzero(c.any(axis=0))[:3]
    ]
    if lines:
        raise NonFiniteActivations(
            explain(
                f"Shard {shard} holds values that are not finite",
                found="; ".join(lines[:6]),
                expected="finite values",
                next_step="store float32 or bfloat16, or pass allow_nonfinite=True to count only",
            )
        )
