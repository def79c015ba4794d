"""Directions inside the network that change the output most: singular vectors of d eps / d h.

Haas et al. 2024 (https://arxiv.org/abs/2303.11073). With h the bottleneck (or any other site) at one noisy sample,

    J = d (mask * target(z; h + d)) / d d  at d = 0,      J v_i = s_i u_i

the right singular vectors v_i are the unit changes of h that move the target, here eps or x0, most. They belong to this
sample: the finder gives a basis for each point of a trajectory, with the signs made to agree from step to step. Using
the basis of one point at all steps, or for other samples, is an experiment, not a consequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

from probe.capture.tensors import to_rows
from probe.directions.direction import Direction
from probe.directions.jacobian import Restricted, spatial_weights
from probe.directions.operator_finder import OperatorFinder
from probe.directions.points import EPS, Point, full_name, jacobian, site_value
from probe.directions.subspace import Singular, top_singular
from probe.model.pipeline_eps import PipelineEps


@dataclass(kw_only=True, eq=False)
class HJacobian(OperatorFinder):
    """Jacobian directions of a site. Needs a pipeline; about 2 (k + oversample) passes an iteration and point.

    Attributes:
        site: where the directions are.
        target: ``sampler:eps`` or ``sampler:x0``.
        mask: (height, width) weights of the target's cells: what is to change; None for all.

    After ``fit``: ``direction_``, one row a point, frame local, vectors of whole maps whose scale is the standard
    deviation of the site's values at the point; ``singular_values_`` (n, k); ``singular_`` with gap and residual of
    each point.

    Example:
        >>> from probe.directions import HJacobian, trajectory
        >>> from probe.model import PipelineEps, load_pipeline
        >>> model = PipelineEps(load_pipeline("canvas"))
        >>> points = trajectory(model, "a red star in flat style", seed=0, steps=5)
        >>> found = HJacobian(site="mid_block", k=2, tol=0.1).fit(model, points[2:3])
        >>> edit = found.direction_.intervention(0, strength=5.0)
    """

    site: str
    target: str = EPS
    mask: torch.Tensor | None = None

    def fit(self, model: PipelineEps, points: Sequence[Point]) -> Self:
        """One singular value decomposition a point.

        Raises:
            UnknownSite: the pipeline has no such site.
            InvalidDirection: there are no points, or the target does not depend on the site.
        """
        self._check(points)
        found: list[Singular] = []
        products = 0
        vectors, scale = [], []
        for point in points:
            op = jacobian(model, point, self.site, self.target, batch=self.batch)
            mask = None if self.mask is None else spatial_weights(self.mask, op.out_shape)
            result = top_singular(Restricted(op, out_mask=mask), self.k, **self._options())
            found.append(result)
            vectors.append(to_rows(self.site, result.v.unflatten(1, op.in_shape)))
            products += op.products
            scale.append(site_value(model, point, self.site).cpu().double().std().expand(self.k))
        self._keep(found, products)
        self.direction_ = Direction(
            full_name(model, self.site),
            torch.stack(vectors).float(),
            torch.stack(scale),
            timesteps=self._timesteps(points),
            frame="local",
            provenance=self._provenance(model, points, found),
        ).aligned()
        return self
