"""How far a denoiser is from being a gradient: the asymmetry of its Jacobian.

The score of a density is a gradient, so its Jacobian, and that of eps, is symmetric. A network's need not be; sampling
does not suffer from that, but what is read off the Jacobian as geometry does (Horvat and Pfister 2024,
https://arxiv.org/abs/2402.03845). The measure, from m random probes w,

    |J - J^T|_F / |J|_F,      |A|_F^2 = E |A w|^2

is 0 for every exact denoiser, and at most 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch

from probe.directions.fitted import Fitted
from probe.directions.points import EPS, Point, jacobian
from probe.errors import InvalidDirection
from probe.model.eps_model import EpsModel


@dataclass(kw_only=True, eq=False)
class Asymmetry(Fitted):
    """Asymmetry of d eps / d x_t. Needs a model; products in both directions with each probe.

    Attributes:
        probes: m.
        seed: of the probes.
        batch: probes at a time; memory grows with it.

    After ``fit``, with n points: ``asymmetry_`` (n,) and its standard error ``asymmetry_se_`` (n,) (jackknife over
    probes); ``log_snr_`` (n,).

    Example:
        >>> from probe.directions import Asymmetry, trajectory
        >>> from probe.model import PipelineEps, load_pipeline
        >>> model = PipelineEps(load_pipeline("canvas"))
        >>> points = trajectory(model, "a red star in flat style", seed=0, steps=5)
        >>> found = Asymmetry(probes=4).fit(model, points[2:4])
        >>> found.asymmetry_.shape, found.asymmetry_se_.shape
        ((2,), (2,))
    """

    probes: int = 16
    seed: int = 0
    batch: int = 8

    asymmetry_: np.ndarray = field(init=False, repr=False)
    asymmetry_se_: np.ndarray = field(init=False, repr=False)
    log_snr_: np.ndarray = field(init=False, repr=False)

    def fit(self, model: EpsModel, points: Sequence[Point]) -> Self:
        """Measure at every point.

        Raises:
            InvalidDirection: there are no points, or fewer than two probes.
        """
        if not points or self.probes < 2:
            raise InvalidDirection(f"Asymmetry: {len(points)} points (1 or more), {self.probes} probes (2 or more).")
        found = []
        for point in points:
            op = jacobian(model, point, target=EPS, batch=self.batch)
            generator = torch.Generator().manual_seed(self.seed)
            w = torch.randn(self.probes, op.n_in, generator=generator, dtype=torch.float64)
            forth, back = op.jvp(w).cpu().double(), op.vjp(w).cpu().double()
            found.append(_ratio((forth - back).square().sum(1).numpy(), forth.square().sum(1).numpy()))
        self.asymmetry_, self.asymmetry_se_ = np.array(found).T
        self.log_snr_ = np.array([p.log_snr for p in points])
        return self


def _ratio(top: np.ndarray, bottom: np.ndarray) -> tuple[float, float]:
    """sqrt(sum top / sum bottom) and its jackknife standard error."""
    value = float(np.sqrt(top.sum() / bottom.sum()))
    left_out = np.sqrt((top.sum() - top) / (bottom.sum() - bottom))
    n = len(top)
    return value, float(np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()))
