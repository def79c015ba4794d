"""Segments of an image from the model's own features: recursive normalised cut (Shi & Malik 2000; in diffusion
features, DiffCut, Couairon et al. 2024, arXiv 2406.02842).

Cells are the nodes of a graph with affinity

    A_ij = max(0, cos(f_i, f_j))^alpha,     f = features less their mean over the image

and a cut into S and its rest costs NCut = cut / assoc(S) + cut / assoc(rest). The second smallest generalised
eigenvector of (D - A) y = lambda D y, D = diag(A 1), orders the cells; of all thresholds along it, that with the
smallest NCut splits. Each part is split again until a split would cost more than ``limit``. Dense linear algebra:
time grows with cells^3.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh

from probe.errors import InvalidRequest

MAX_CELLS = 4096


def normalised_cut(
    features: np.ndarray,
    *,
    limit: float = 0.2,
    alpha: float = 2.0,
    max_segments: int | None = None,
    centred: bool = True,
) -> np.ndarray:
    """Segments of one feature map.

    Args:
        features: (channels, height, width), such as the output of a self-attention.
        limit: largest NCut, in [0, 2], at which a part is split.
        alpha: exponent of the affinity; larger values cut at smaller differences. The default is what finds canvas's
            objects best; DiffCut takes 10 with the features of Stable Diffusion, which cuts canvas's into crumbs.
        max_segments: stop there, the cheapest splits first; no bound if None.
        centred: take the mean over cells off first.

    Returns:
        (height, width) int64 numbers from 0, the largest segment first.

    Raises:
        InvalidRequest: not a map, not finite, or more than 4,096 cells.

    Example:
        >>> from probe.canvas import render_batch
        >>> from probe.lenses import diffusion_features, normalised_cut
        >>> from probe.model import load_pipeline
        >>> found = diffusion_features(load_pipeline("canvas"), render_batch(range(1)).images, "up_blocks.1", [2.0])
        >>> normalised_cut(found.maps["unet.up_blocks.1:out"][0, 0], max_segments=2).shape
        (16, 16)
    """
    if features.ndim != 3 or not np.isfinite(features).all() or not 2 <= features[0].size <= MAX_CELLS:
        raise InvalidRequest(
            f"normalised_cut: features {features.shape}; expected finite (channels, height, width) with 2 to "
            f"{MAX_CELLS} cells."
        )
    if not 0 <= limit <= 2 or not alpha > 0 or (max_segments is not None and max_segments < 1):
        raise InvalidRequest("normalised_cut: expected limit in [0, 2], alpha above 0, max_segments at least 1.")
    cells = features.reshape(len(features), -1).T.astype(np.float64)
    if centred:
        cells = cells - cells.mean(0)
    length = np.linalg.norm(cells, axis=1, keepdims=True)
    unit = cells / np.maximum(length, 1e-12)
    affinity = np.maximum(unit @ unit.T, 0.0) ** alpha
    np.fill_diagonal(affinity, 1.0)  # also where a cell is zero
    parts = [np.arange(len(cells))]
    splits = [_split(affinity, parts[0])]
    while max_segments is None or len(parts) < max_segments:
        cheapest = min(range(len(parts)), key=lambda i: splits[i][0])
        cost, left = splits[cheapest]
        if not cost <= limit:
            break
        whole = parts.pop(cheapest)
        splits.pop(cheapest)
        for part in (whole[left], whole[~left]):
            parts.append(part)
            splits.append(_split(affinity, part))
    labels = np.zeros(len(cells), np.int64)
    for number, part in enumerate(sorted(parts, key=lambda p: (-len(p), p[0]))):
        labels[part] = number
    return labels.reshape(features.shape[1:])


def background_segment(segments: np.ndarray) -> int:
    """The number of the segment that holds most of the border: what is usually behind the object."""
    border = np.concatenate([segments[0], segments[-1], segments[1:-1, 0], segments[1:-1, -1]])
    return int(np.bincount(border).argmax())


def _split(affinity: np.ndarray, part: np.ndarray) -> tuple[float, np.ndarray]:
    """(NCut, (len(part),) bool) of the best split of a part; infinite for a single cell."""
    if len(part) < 2:
        return np.inf, np.zeros(len(part), bool)
    a = affinity[np.ix_(part, part)]
    degree = a.sum(1)
    root = np.sqrt(degree)
    # The generalised problem, made symmetric by D^-1/2: its largest eigenvectors are the smallest of D - A. The first,
    # D^1/2 1, is taken off, since it would mix with the second where parts are not connected at all.
    symmetric = a / root[:, None] / root - np.outer(root, root) / degree.sum()
    _, vectors = eigh(symmetric, subset_by_index=[len(part) - 1, len(part) - 1])
    order = np.argsort(vectors[:, 0] / root, kind="stable")
    sorted_a = a[np.ix_(order, order)]
    inside = np.cumsum(degree[order])[:-1]  # assoc(S) for S the first k cells
    within = np.cumsum(2 * np.tril(sorted_a, -1).sum(1) + np.diag(sorted_a))[:-1]  # weight inside S
    cut = inside - within
    cost = cut / inside + cut / (degree.sum() - inside)
    best = int(cost.argmin())
    left = np.zeros(len(part), bool)
    left[order[: best + 1]] = True
    return float(max(cost[best], 0.0)), left
