"""The local intrinsic dimension of the data, read off a denoiser at little noise.

Around a clean sample x, noise s (in units of the data) knocks points off the data manifold, and the denoiser points
back: at little noise the predicted noises are normal to the manifold. With z = alpha (x + s n) and a = -2 log s, two
estimates:

    ScoreRank    the eps of many draws around x span the normal space; the dimension is D minus the number of their
                 singular values before the largest gap (Stanczuk et al. 2024, https://arxiv.org/abs/2212.12611)
    TraceDimension  at z = alpha x, D - sigma tr(d eps / d z) + |eps|^2, the trace by m random signs w, E w^T J w
                 (Kamkari et al. 2024, https://arxiv.org/abs/2406.03537); for a Gaussian with eigenvalues l on its
                 manifold the first two terms are sum l / (l + s^2)

Both need s well below the scale of the manifold, its curvature included; how far a network can be trusted there is
another question. ScoreRank knows when it fails: ``ratio_`` is the singular value before the gap over the one behind it,
and below ``min_ratio`` there is no gap to speak of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch

from probe.directions.fitted import Fitted
from probe.directions.points import EPS, Point, jacobian
from probe.errors import InvalidDirection
from probe.model.eps_model import Cond, EpsModel, noised


@dataclass(kw_only=True, eq=False)
class _Dimension(Fitted):
    """Base: noise levels, and the seed of what is drawn."""

    noise: Sequence[float] = (0.03,)
    seed: int = 0
    batch: int = 64

    dimension_: np.ndarray = field(init=False, repr=False)

    def _levels(self, model: EpsModel, x: torch.Tensor) -> list[float]:
        """The log-SNR of each noise; raises InvalidDirection for what cannot be."""
        if tuple(x.shape) != (1, *model.sample_shape):
            raise InvalidDirection(f"{type(self).__name__}: x {tuple(x.shape)}; expected (1, *{model.sample_shape}).")
        low, high = model.log_snr_range
        found = [-2.0 * math.log(s) if s > 0 else math.nan for s in self.noise]
        for s, a in zip(self.noise, found, strict=True):
            if not low <= a <= high:
                raise InvalidDirection(
                    f"{type(self).__name__}: noise {s:g}; this model knows {math.exp(-high / 2):.3g} to "
                    f"{math.exp(-low / 2):.3g} times the data's scale."
                )
        return found


@dataclass(kw_only=True, eq=False)
class ScoreRank(_Dimension):
    """Dimension by the rank of predicted noises. Needs a model; draws x D denoiser calls a noise level.

    Attributes:
        noise: s, one or several.
        draws: denoiser calls a dimension of the sample.
        min_ratio: of the two singular values at the gap, below which the estimate counts as failed.
        seed, batch: of the draws.

    After ``fit``, with n noises: ``dimension_`` (n,), ``ratio_`` (n,), ``failed_`` (n,) bool, ``singular_values_``
    (n, D).

    Example:
        >>> import torch
        >>> from probe.directions import ScoreRank
        >>> from probe.model.analytic import Sphere
        >>> model = Sphere(torch.eye(40)[:, :6], radius=2.0)  # 5 dimensions; a network takes 4 x its numbers of passes
        >>> x = model.sample(1, torch.Generator().manual_seed(0))
        >>> found = ScoreRank(noise=(0.01, 0.1)).fit(model, x)
        >>> found.dimension_[~found.failed_]
        array([5, 5])
    """

    draws: int = 4
    min_ratio: float = 3.0

    ratio_: np.ndarray = field(init=False, repr=False)
    failed_: np.ndarray = field(init=False, repr=False)
    singular_values_: np.ndarray = field(init=False, repr=False)

    def fit(self, model: EpsModel, x: torch.Tensor, cond: Cond = None) -> Self:
        """Estimate around a clean sample x (1, *sample_shape), in the scale of the denoiser.

        Raises:
            InvalidDirection: x has another shape, or a noise is not positive or outside what the model knows.
        """
        levels = self._levels(model, x)
        d = x[0].numel()
        generator = torch.Generator().manual_seed(self.seed)
        n = torch.randn(self.draws * d, *x.shape[1:], generator=generator, dtype=torch.float64).to(x)
        values = []
        for a in levels:
            with torch.no_grad():
                eps = torch.cat(
                    [model.eps(noised(x.expand_as(part), part, a), a, cond) for part in n.split(self.batch)]
                )
            rows = eps.flatten(1).cpu().double()
            values.append(torch.linalg.svdvals(rows - rows.mean(0)).numpy())
        self.singular_values_ = np.stack(values)
        at = (self.singular_values_[:, :-1] - self.singular_values_[:, 1:]).argmax(1)
        pairs = np.take_along_axis(self.singular_values_, np.stack([at, at + 1], 1), 1)
        self.dimension_ = d - 1 - at
        self.ratio_ = pairs[:, 0] / pairs[:, 1].clip(1e-300)
        self.failed_ = self.ratio_ < self.min_ratio
        return self


@dataclass(kw_only=True, eq=False)
class TraceDimension(_Dimension):
    """Dimension by the trace of the score's Jacobian. Needs a model; ``probes`` backward passes a noise level.

    Attributes:
        noise: s, one or several.
        probes: m random signs.
        seed, batch: of the probes; memory grows with the batch.

    After ``fit``, with n noises: ``dimension_`` (n,) with its standard error ``dimension_se_`` (n,); ``trace_`` (n,),
    D - sigma tr(d eps / d z) alone.

    Example:
        >>> from probe.directions import TraceDimension, self_generated
        >>> from probe.model import PipelineEps, load_pipeline
        >>> model = PipelineEps(load_pipeline("canvas"))
        >>> x = self_generated(model, ["a red star in flat style"], [0])
        >>> found = TraceDimension(noise=(0.3,), probes=10).fit(model, x, "a red star in flat style")
        >>> found.dimension_.shape, found.dimension_se_.shape
        ((1,), (1,))
    """

    probes: int = 20
    batch: int = 8

    dimension_se_: np.ndarray = field(init=False, repr=False)
    trace_: np.ndarray = field(init=False, repr=False)

    def fit(self, model: EpsModel, x: torch.Tensor, cond: Cond = None) -> Self:
        """Estimate at a clean sample x (1, *sample_shape), in the scale of the denoiser.

        Raises:
            InvalidDirection: as ``ScoreRank.fit``, or fewer than two probes.
        """
        if self.probes < 2:
            raise InvalidDirection(f"TraceDimension: {self.probes} probes; at least two are needed.")
        found = []
        for a in self._levels(model, x):
            alpha, sigma = math.sqrt(1 / (1 + math.exp(-a))), math.sqrt(1 / (1 + math.exp(a)))
            op = jacobian(model, Point(alpha * x, a, cond), target=EPS, batch=self.batch)
            generator = torch.Generator().manual_seed(self.seed)
            w = torch.randint(0, 2, (self.probes, op.n_in), generator=generator).double() * 2 - 1
            traces = sigma * (op.vjp(w).cpu().double() * w).sum(1)
            trace = op.n_in - float(traces.mean())
            square = float(op.value.cpu().double().square().sum())
            found.append((trace, trace + square, float(traces.std() / self.probes**0.5)))
        self.trace_, self.dimension_, self.dimension_se_ = np.array(found).T
        return self
