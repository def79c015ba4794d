"""How many directions of the sampler's state the posterior mean depends on: the spectrum of d x0hat / d x_t.

On a mixture of low-rank Gaussians (Wang et al. 2024, https://arxiv.org/abs/2409.02426) the rank of this Jacobian is the
dimension of the sample's own subspace at little noise, and of all subspaces together at much. The numerical rank is

    rank = smallest r with  sum_{i <= r} s_i^2 >= energy |J|_F^2

Three subspaces of dimension 4 in 48 give 12 at every sample at abar = 0.05, and at abar = 0.99 they give 4 at every
sample whose subspace is known to 99 %: all but a few of a thousand, near the origin, where the rank lies between. The
largest ratio of neighbouring values is no better a rule: at abar = 0.99 it counts subspaces whose share of the
posterior is far below one in a thousand.

The k largest singular values come from subspace iteration; what is behind them from m random probes w,

    |J|_F^2 = sum_{i <= k} s_i^2 + E |J (I - V^T V) w|^2

whose variance is only that of the rest. Where k values do not hold the energy, the rank is not known, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch

from probe.directions.operator_finder import OperatorFinder
from probe.directions.points import Point, jacobian
from probe.directions.subspace import top_singular
from probe.errors import InvalidDirection
from probe.model.eps_model import EpsModel


@dataclass(kw_only=True, eq=False)
class JacobianSpectrum(OperatorFinder):
    """Spectrum and numerical rank. Needs a model.

    Attributes:
        k: singular values a point, at most the size of a sample.
        energy: share of the squared Frobenius norm that counts.
        probes: m.

    After ``fit``, with n points: ``singular_values_`` (n, k); ``log_snr_`` (n,); ``total_`` and ``total_se_`` (n,), the
    squared Frobenius norm and its standard error; ``rank_`` (n,) float, NaN where k is too small to tell;
    ``singular_``.

    Example:
        >>> from probe.directions import JacobianSpectrum, trajectory
        >>> from probe.model import PipelineEps, load_pipeline
        >>> model = PipelineEps(load_pipeline("canvas"))
        >>> points = trajectory(model, "a red star in flat style", seed=0, steps=5)
        >>> found = JacobianSpectrum(k=3, probes=4, tol=0.1).fit(model, points[2:3])
        >>> found.singular_values_.shape, found.rank_.shape
        ((1, 3), (1,))
    """

    k: int = 20
    energy: float = 0.98
    probes: int = 8

    log_snr_: np.ndarray = field(init=False, repr=False)
    total_: np.ndarray = field(init=False, repr=False)
    total_se_: np.ndarray = field(init=False, repr=False)
    rank_: np.ndarray = field(init=False, repr=False)

    def fit(self, model: EpsModel, points: Sequence[Point]) -> Self:
        """One decomposition and ``probes`` products a point.

        Raises:
            InvalidDirection: a parameter out of range, or no points.
        """
        self._check(points)
        if not 0.0 < self.energy < 1.0 or self.probes < 2:
            raise InvalidDirection(
                f"JacobianSpectrum: energy {self.energy} (0 to 1), probes {self.probes} (2 or more)."
            )
        found, totals, products = [], [], 0
        for point in points:
            op = jacobian(model, point, batch=self.batch)
            result = top_singular(op, self.k, **self._options())
            generator = torch.Generator().manual_seed(self.seed)
            w = torch.randn(self.probes, op.n_in, generator=generator, dtype=torch.float64)
            w -= (w @ result.v.T) @ result.v
            rest = op.jvp(w).cpu().double().square().sum(1)
            totals.append((float(result.s.square().sum() + rest.mean()), float(rest.std() / self.probes**0.5)))
            found.append(result)
            products += op.products
        self._keep(found, products)
        self.log_snr_ = np.array([p.log_snr for p in points])
        self.total_, self.total_se_ = np.array(totals).T
        held = (self.singular_values_**2).cumsum(1) >= self.energy * self.total_[:, None]
        self.rank_ = np.where(held.any(1), held.argmax(1) + 1.0, np.nan)
        return self
