"""Which point of one image is this point of another? Nearest neighbours among feature maps (Tang et al. 2023).

The descriptor of a point is the source map at the point, bilinearly interpolated; the target map is interpolated to a
grid, and the match is the cell whose descriptor has the largest cosine with it. Points are (x, y) in [0, 1] from the
upper left corner, so the centre of cell (i, j) of an h x w map is ((j + 1/2) / w, (i + 1/2) / h).

PCK, the share of matches within alpha times the object's size of the truth, is the usual score (Yang & Ramanan 2013).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from probe.errors import InvalidRequest


class Matches(NamedTuple):
    """Matched points.

    Attributes:
        points: (n, 2) float64 (x, y) in [0, 1], centres of cells of the search grid.
        similarity: (n,) cosines.
    """

    points: np.ndarray
    similarity: np.ndarray


def correspond(
    source: np.ndarray, target: np.ndarray, points: np.ndarray, *, grid: tuple[int, int] | None = None
) -> Matches:
    """Match points of one map in another.

    Args:
        source, target: (channels, height, width) feature maps of two images.
        points: (n, 2) points of the source in [0, 1].
        grid: (height, width) at which the target is searched; its own if None.

    Raises:
        InvalidRequest: shapes that do not fit, or points outside.

    Example:
        >>> import numpy as np
        >>> from probe.canvas import render_batch
        >>> from probe.lenses import correspond, diffusion_features
        >>> from probe.model import load_pipeline
        >>> found = diffusion_features(load_pipeline("canvas"), render_batch(range(2)).images, "up_blocks.1", [2.0])
        >>> maps = found.maps["unet.up_blocks.1:out"][0]
        >>> correspond(maps[0], maps[1], np.array([[0.5, 0.4], [0.3, 0.6]]), grid=(32, 32)).points.shape
        (2, 2)
    """
    points = np.asarray(points, np.float64)
    if source.ndim != 3 or target.ndim != 3 or source.shape[0] != target.shape[0]:
        raise InvalidRequest(f"correspond: maps {source.shape} and {target.shape}; expected (channels, h, w) twice.")
    if points.ndim != 2 or points.shape[1] != 2 or not ((points >= 0) & (points <= 1)).all():
        raise InvalidRequest("correspond: points must be (n, 2), (x, y) in [0, 1].")
    wanted = F.normalize(sample(torch.from_numpy(source), points), dim=1)
    there = torch.from_numpy(target)
    if grid is not None and grid != target.shape[1:]:
        there = F.interpolate(there[None], size=grid, mode="bilinear", align_corners=False)[0]
    height, width = there.shape[1:]
    similarity = wanted @ F.normalize(there.flatten(1), dim=0)
    best = similarity.argmax(1).numpy()
    found = np.stack([(best % width + 0.5) / width, (best // width + 0.5) / height], 1)
    return Matches(found, similarity.max(1).values.numpy())


def sample(maps: torch.Tensor, points: np.ndarray) -> torch.Tensor:
    """Values of a map (channels, h, w) at points (n, 2) in [0, 1]: (n, channels), bilinear between cell centres."""
    where = torch.from_numpy(np.asarray(points, np.float64) * 2 - 1).to(maps)
    picked = F.grid_sample(maps[None], where[None, None], mode="bilinear", padding_mode="border", align_corners=False)
    return picked[0, :, 0].T


def pck(found: np.ndarray, truth: np.ndarray, size: np.ndarray | float, alpha: float = 0.1) -> np.ndarray:
    """(n,) bool: whether each match (n, 2) lies within alpha x size of the truth (n, 2).

    Args:
        size: longer side of the object's box in the target image, in the unit of the points; one, or one a point.
    """
    return np.hypot(*(np.asarray(found) - np.asarray(truth)).T) <= alpha * np.asarray(size)
