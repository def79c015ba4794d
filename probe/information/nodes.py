"""Where along the noise the denoiser is asked: nodes for integrals over a = log SNR.

Every quantity of this package is an integral I = 1/2 INT f(a) da, f a mean over noise. The window [lo, hi] is cut into
n cells with edges at equal steps of a placement distribution F, and one node is put into each cell:

    F = (1 - p) Logistic(location, scale), cut to the window  +  p Uniform(window),     p = 0.2
    I ~ 1/2 sum_j w_j f(a_j),      w_j = edge_{j+1} - edge_j

Because the weight is the cell's own width, constants are integrated exactly, whatever the placement; with a_j uniform
in its cell the sum is unbiased for every f. The logistic part puts nodes where f is (Kong et al. 2023,
https://arxiv.org/abs/2302.03792: location the median of the gap curve, scale half its interquartile range), the uniform
part bounds the widest cell (a defensive mixture, Hesterberg 1995).

Three ways to put the nodes into their cells:

    gauss       two to a cell of twice the width, at its Gauss points, the same for every image: quadrature of fourth
                order, no randomness in a
    jitter      uniform in the cell, the same for every image: unbiased; images and conditions are compared node by node
    dealt       each cell is cut again, one part for every image: the images together have I n cells, which is best for
                averages (one node an image is enough) and useless for a single image
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from probe.errors import InvalidRequest
from probe.model.eps_model import EpsModel

Placement = Literal["gauss", "jitter", "dealt"]
UNIFORM_SHARE = 0.2
_GRID = 8193


class GapCurve(NamedTuple):
    """An integrand: f at levels, and the width that each level stands for.

    Attributes:
        log_snr: (n,) ascending.
        gap: (n,) f in nats per unit of log SNR, twice the information density.
        width: (n,) cells.
    """

    log_snr: np.ndarray
    gap: np.ndarray
    width: np.ndarray


@dataclass(frozen=True)
class Nodes:
    """A set of nodes.

    Attributes:
        n: nodes an image, 1 or more.
        window: (lo, hi) in log SNR.
        location: centre of the logistic part; None for equal cells.
        scale: its scale, > 0; None for equal cells.
        placement: "gauss", "jitter" or "dealt".
        seed: of the places in the cells, apart from the seed of the noise.
        model_range: levels that the model knows, for the record.
    """

    n: int
    window: tuple[float, float]
    location: float | None = None
    scale: float | None = None
    placement: Placement = "jitter"
    seed: int = 0
    model_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        lo, hi = self.window
        if not isinstance(self.n, int) or self.n < 1:
            raise InvalidRequest(f"Nodes: n is {self.n!r}; expected a whole number from 1.")
        if not (np.isfinite(lo) and np.isfinite(hi) and lo < hi):
            raise InvalidRequest(f"Nodes: window ({lo:g}, {hi:g}); expected two finite levels, the lower first.")
        if (self.location is None) != (self.scale is None) or (self.scale is not None and not self.scale > 0):
            raise InvalidRequest(
                f"Nodes: location {self.location!r} and scale {self.scale!r}; give both, the scale above zero, or none."
            )
        if self.location is not None and not lo <= self.location <= hi:
            raise InvalidRequest(f"Nodes: location {self.location:g} lies outside the window ({lo:g}, {hi:g}).")
        if self.placement not in get_args(Placement):
            raise InvalidRequest(
                f"Nodes: placement {self.placement!r}; expected one of {', '.join(get_args(Placement))}."
            )
        if self.model_range is not None and not (self.model_range[0] <= lo and hi <= self.model_range[1]):
            low, high = self.model_range
            raise InvalidRequest(
                f"Nodes: window ({lo:g}, {hi:g}) leaves the model's own range ({low:g}, {high:g}); cut it to that."
            )

    @classmethod
    def logistic(
        cls,
        n: int,
        location: float,
        scale: float,
        clip: float = 8.0,
        *,
        model: EpsModel | None = None,
        placement: Placement = "jitter",
        seed: int = 0,
    ) -> Nodes:
        """Nodes around a location, in the window location +- clip scale cut to what the model knows.

        Raises:
            InvalidRequest: the window has no part in the model's range.
        """
        lo, hi = location - clip * scale, location + clip * scale
        known = None if model is None else model.log_snr_range
        if known is not None:
            lo, hi = max(lo, known[0]), min(hi, known[1])
        return cls(n, (lo, hi), location, scale, placement, seed, known)

    @classmethod
    def fitted(
        cls,
        n: int,
        curve: GapCurve,
        *,
        clip: float = 8.0,
        model: EpsModel | None = None,
        placement: Placement = "jitter",
        seed: int = 0,
    ) -> Nodes:
        """Nodes where a measured gap is: location its median, scale half its interquartile range.

        Raises:
            InvalidRequest: the curve is nowhere above zero: there is nothing to place nodes by.
        """
        location, scale = location_scale(curve)
        return cls.logistic(n, location, scale, clip, model=model, placement=placement, seed=seed)

    @property
    def shared(self) -> bool:
        """Whether all images have the same nodes."""
        return self.placement != "dealt"

    def edges(self, n: int | None = None) -> np.ndarray:
        """(n + 1,) float64: edges of the cells, from lo to hi exactly."""
        lo, hi = self.window
        share = np.linspace(0.0, 1.0, (n or self.n) + 1)
        if self.location is None or self.scale is None:
            found = lo + share * (hi - lo)
        else:
            # The grid of the inverse is fine where the logistic is narrow: its own quantiles beside equal steps.
            cut = np.tanh((np.array(self.window) - self.location) / (2.0 * self.scale))
            inner = self.location + 2.0 * self.scale * np.arctanh(np.linspace(cut[0], cut[1], _GRID)[1:-1])
            grid = np.unique(np.concatenate([np.linspace(lo, hi, _GRID), inner.clip(lo, hi)]))
            logistic = (np.tanh((grid - self.location) / (2.0 * self.scale)) - cut[0]) / (cut[1] - cut[0])
            cdf = (1.0 - UNIFORM_SHARE) * logistic + UNIFORM_SHARE * (grid - lo) / (hi - lo)
            found = np.interp(share, cdf, grid)
        found[0], found[-1] = lo, hi
        return found

    def place(self, n_images: int) -> tuple[np.ndarray, np.ndarray]:
        """Levels and weights of every image.

        Returns:
            log_snr (n_images, n) float64, ascending in a row; weight (n_images, n), whose mean over images of the sums
            is hi - lo.
        """
        if n_images < 1:
            raise InvalidRequest(f"Nodes: {n_images} images; expected at least one.")
        rng = np.random.default_rng(self.seed)
        if self.placement == "dealt":
            edges = self.edges(n_images * self.n)
            level = edges[:-1] + rng.random(n_images * self.n) * np.diff(edges)
            order = rng.permuted(np.tile(np.arange(n_images), (self.n, 1)), axis=1)
            pick = (np.arange(self.n)[:, None] * n_images + order).T
            return level[pick], n_images * np.diff(edges)[pick]
        if self.placement == "gauss":
            level, weight = _gauss(self.edges(-(-self.n // 2)), self.n)
        else:
            edges = self.edges()
            level, weight = edges[:-1] + rng.random(self.n) * np.diff(edges), np.diff(edges)
        return np.tile(level, (n_images, 1)), np.tile(weight, (n_images, 1))

    def record(self) -> dict[str, Any]:
        """JSON values, which ``from_record`` takes."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Nodes:
        """The nodes of a record."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(**values)


def _gauss(edges: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two Gauss points a cell with half its width each; of an odd number the first cell has one, in its middle."""
    middle, half = (edges[1:] + edges[:-1]) / 2.0, np.diff(edges) / 2.0
    level = np.stack([middle - half / np.sqrt(3.0), middle + half / np.sqrt(3.0)], 1).reshape(-1)
    weight = np.repeat(half, 2)
    if n % 2:
        level, weight = np.r_[middle[0], level[2:]], np.r_[2.0 * half[0], weight[2:]]
    return level, weight


def location_scale(curve: GapCurve) -> tuple[float, float]:
    """Median and half the interquartile range of a gap curve, its mass spread evenly over each cell."""
    mass = np.maximum(curve.gap, 0.0) * curve.width
    if not mass.sum() > 0:
        raise InvalidRequest("location_scale: the gap is nowhere above zero; the conditions do not differ.")
    total = curve.width.sum()
    low = (curve.log_snr * curve.width).sum() / total - total / 2.0  # cells of these widths, around the same centre
    edges = low + np.concatenate([[0.0], curve.width.cumsum()])
    quarter, median, three = np.interp([0.25, 0.5, 0.75], np.concatenate([[0.0], mass.cumsum() / mass.sum()]), edges)
    return float(median), float(max((three - quarter) / 2.0, 0.25))
