"""What limits the maps of the object's word? Position, outline, noise levels, smoothing, and what the grid allows.

Objects of canvas sit near the middle, so that a map that knows nothing of its image can overlap with the mask: the mean
mask of other images (``position alone``), or another image's map. Overlap and AUC cannot tell such a map from one that
sees the object. Position is set aside by comparing images at one and the same cell (shuffled AUC, after Tatler 2007,
https://doi.org/10.1167/7.14.4; Zhang et al. 2008, https://doi.org/10.1167/8.7.32):

    matched AUC    of two images of which the object covers a cell in one and not in the other, how often the map,
                   divided by its mean, is higher at that cell in the first; all cells and pairs alike

It is a half for every map that is the same in all images. Ceilings are maps that know the mask: blurred by a cell,
grown by a cell, or its outline alone. ``chosen`` maps leave out the levels above ``below`` and are smoothed by ``blur``
cells; both, and the threshold, are those with the best overlap on the first half of the images. All is measured on the
second half.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter

from apps.bench.information_maps import THRESHOLDS, overlap

if TYPE_CHECKING:
    from apps.bench.information import World
    from probe.information import NodeTable

BELOW = (-1.0, 0.0, 1.0, 2.0, 3.0, np.inf)
BLUR = (0.0, 0.7, 1.0, 1.5)
_RESAMPLES = 400
MAPS = {  # what is said, and what is known
    "MI": ("word:object", "empty"),
    "CMI": ("caption", "caption-object"),
    "null": ("swap:object", "caption-object"),
    "caption over nothing": ("caption", "empty"),
    "CMI of the colour": ("caption", "caption-colour"),
    "CMI of the background": ("caption", "caption-background"),
}


def limit_rows(table: NodeTable, world: World) -> list[dict[str, Any]]:
    """One row a map: overlap, AUC, matched AUC, and where its nats lie."""
    masks, grid = world.masks, table.grid
    assert grid is not None
    chosen = np.arange(len(masks)) < len(masks) // 2
    shaped = masks.reshape(-1, *grid)
    grown: np.ndarray = np.stack([binary_dilation(m) for m in shaped]).reshape(masks.shape)
    inner: np.ndarray = np.stack([binary_erosion(m) for m in shaped]).reshape(masks.shape)
    parts = {"inside": inner, "outline": grown & ~inner, "outside": ~grown}

    def row(method: str, kind: str, maps: np.ndarray, **about: Any) -> dict[str, Any]:
        total = maps.sum(1, keepdims=True)
        share = np.divide(maps, total, out=np.zeros_like(maps), where=total > 0)
        where = {f"share_{name}": float((share * part).sum(1).mean()) for name, part in parts.items()}
        scores = overlap(maps, masks, chosen) | matched_auc(maps[~chosen], masks[~chosen])
        return {"part": "limits", "method": method, "kind": kind} | scores | where | about

    order = np.roll(np.arange(len(masks)), 1)
    rows = [
        row("position alone", "baseline", np.tile(masks[chosen].mean(0), (len(masks), 1))),
        row("everywhere", "baseline", np.ones(masks.shape)),
        row("mask blurred by a cell", "ceiling", _smooth(masks.astype(float), 1.0, grid)),
        row("mask grown by a cell", "ceiling", grown.astype(float)),
        row("outline of the mask", "ceiling", parts["outline"].astype(float)),
    ]
    few = np.zeros(table.n_nodes)
    few[:: max(1, table.n_nodes // 3)] = 1.0
    for name, (column, given) in MAPS.items():
        plain = _map(table, column, given)
        rows.append(row(name, "as it is", plain))
        below, blur, best = max(_choices(table, column, given), key=lambda c: _choosing_iou(c[2], masks, chosen))
        rows.append(row(name, "chosen", best, below=None if below == np.inf else below, blur=blur))
        if name in ("MI", "CMI"):
            rows.append(row(name, "another image's", plain[order]))
            rows.append(row(name, "standard form", np.maximum(_map(table, column, given, form="standard"), 0.0)))
            rows.append(row(name, f"{int(few.sum())} levels", _map(table, column, given, keep=few)))
    return rows


def matched_auc(maps: np.ndarray, masks: np.ndarray) -> dict[str, Any]:
    """Matched AUC of maps (images, tokens), 0 or more, with masks (images, tokens) bool; bootstrap over images.

    NaN where no cell is covered in one image and free in another.
    """
    mean = maps.mean(1, keepdims=True)
    v = np.divide(maps, mean, out=np.zeros_like(maps), where=mean > 0)
    pairs = masks.astype(float) @ (~masks).T.astype(float)  # (covered in i, free in j) cells
    wins = np.empty(pairs.shape)
    for i in range(len(maps)):
        higher = (v[i] > v) + 0.5 * (v[i] == v)
        wins[i] = (higher * (masks[i] & ~masks)).sum(1)
    rng = np.random.default_rng(0)
    counts = [np.bincount(rng.integers(len(v), size=len(v)), minlength=len(v)).astype(float) for _ in range(_RESAMPLES)]
    found = np.array([_share(float(c @ wins @ c), float(c @ pairs @ c)) for c in counts])
    value = _share(float(wins.sum()), float(pairs.sum()))
    known = found[np.isfinite(found)]
    low, high = np.quantile(known, (0.025, 0.975)) if len(known) else (np.nan, np.nan)
    return {"matched": value, "matched_low": float(low), "matched_high": float(high)}


def _share(wins: float, pairs: float) -> float:
    return wins / pairs if pairs > 0 else float("nan")


def _map(table: NodeTable, column: str, given: str, *, form: str = "orthogonal", keep: np.ndarray | None = None) -> Any:
    """(images, tokens) nats of the nodes that are kept."""
    from probe.information.mutual import integrand

    half = 0.5 * table.weight * (1.0 if keep is None else keep)
    return np.einsum("ij,ijt->it", half, integrand(table, column, given, form).astype(np.float64))  # type: ignore[arg-type]


def _choices(table: NodeTable, column: str, given: str) -> Iterator[tuple[float, float, np.ndarray]]:
    for below in BELOW:
        keep = (table.log_snr[0] < below).astype(float)
        if keep.any():
            maps = _map(table, column, given, keep=keep)
            for blur in BLUR:
                yield below, blur, _smooth(maps, blur, table.grid)


def _smooth(maps: np.ndarray, blur: float, grid: Any) -> np.ndarray:
    if not blur:
        return maps
    return gaussian_filter(maps.reshape(-1, *grid), (0, blur, blur), mode="nearest").reshape(maps.shape)


def _choosing_iou(maps: np.ndarray, masks: np.ndarray, chosen: np.ndarray) -> float:
    """Mean overlap on the choosing images at the best threshold for them."""
    top = maps[chosen].max(1, keepdims=True)
    share = np.divide(maps[chosen], top, out=np.zeros_like(maps[chosen]), where=top > 0)
    on = share[None] >= THRESHOLDS[:, None, None]
    truth = masks[chosen]
    return float(((on & truth).sum(2) / np.maximum((on | truth).sum(2), 1)).mean(1).max())
