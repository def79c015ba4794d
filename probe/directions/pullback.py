"""Directions of the sampler's state that move a feature most, and how they carry to other samples.

Park et al. 2023 (https://arxiv.org/abs/2307.12868). A site h inherits a metric on x_t from its own Euclidean one,
G = J^T J with J = d h / d x_t. The right singular vectors v_i of J are the unit changes of x_t that move h most, the
left ones u_i are where h then moves. A direction of one sample is brought to another through h, where samples are
comparable: with bases V_0, U_0 at the first and V_1, U_1 at the second,

    v' = V_1^T U_1 u_0              u_0 in h, read in the basis of the second sample, put back into its x_t
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch

from probe.capture.tensors import to_rows
from probe.directions.direction import Direction
from probe.directions.operator_finder import OperatorFinder
from probe.directions.points import X_T, Point, full_name, jacobian
from probe.directions.subspace import top_singular
from probe.directions.transport import transported
from probe.model.eps_model import EpsModel


@dataclass(kw_only=True, eq=False)
class Pullback(OperatorFinder):
    """Pullback directions. Needs a model; a site of a pipeline, or the posterior mean of any model, as the feature.

    Attributes:
        feature: the site h, or ``sampler:x0`` or ``sampler:eps``.

    After ``fit``: ``direction_`` at ``sampler:x_t``, one row a point, frame local, scale 1 (x_t has about unit variance
    along every direction); ``feature_direction_``, the left vectors at the feature; ``singular_values_`` (n, k);
    ``singular_``.

    Example:
        >>> from probe.directions import Pullback, trajectory
        >>> from probe.model import PipelineEps, load_pipeline
        >>> model = PipelineEps(load_pipeline("canvas"))
        >>> points = trajectory(model, "a red star in flat style", seed=0, steps=5)
        >>> found = Pullback(feature="mid_block", k=1, tol=0.1).fit(model, points[2:3])
        >>> edit = found.direction_.intervention(0, strength=4.0)
        >>> others = trajectory(model, "a blue cup in flat style", seed=1, steps=5)
        >>> other = Pullback(feature="mid_block", k=3, tol=0.1).fit(model, others[2:3])
        >>> moved = other.transport(found.feature_direction_[0])
    """

    feature: str = "mid_block"

    feature_direction_: Direction = field(init=False, repr=False)

    def fit(self, model: EpsModel, points: Sequence[Point]) -> Self:
        """One singular value decomposition a point.

        Raises:
            UnknownSite, InvalidDirection: no such feature, or no points.
        """
        self._check(points)
        found, right, left, products = [], [], [], 0
        for point in points:
            op = jacobian(model, point, X_T, self.feature, batch=self.batch)
            result = top_singular(op, self.k, **self._options())
            found.append(result)
            products += op.products
            right.append(to_rows(X_T, result.v.unflatten(1, op.in_shape)))
            left.append(to_rows(self.feature, result.u.unflatten(1, op.out_shape)))
        self._keep(found, products)
        about = self._provenance(model, points, found)
        options = {"timesteps": self._timesteps(points), "steps": self._steps(points), "frame": "local"}
        v = Direction(X_T, torch.stack(right).float(), provenance=about, **options)
        u = Direction(full_name(model, self.feature), torch.stack(left).float(), provenance=about, **options)
        self.direction_ = v.aligned()
        sign = (self.direction_.flat * v.flat).sum(-1)  # both sides of a triplet turn together
        self.feature_direction_ = Direction(
            u.site, u.basis * sign.float().reshape(*sign.shape, *(1,) * (u.basis.ndim - 2)), provenance=about, **options
        )
        return self

    def transport(self, feature_direction: Direction) -> Direction:
        """A direction of another sample, found at the feature, as directions of this one's x_t.

        Args:
            feature_direction: at the feature, found at as many points as this has, such as ``feature_direction_[i]`` of
                another fit.

        Returns:
            At ``sampler:x_t``. Its length is the share of the direction that this point's k vectors can express: below
            1, more of them (or none at all) would be needed.
        """
        return transported(feature_direction, self.feature_direction_, self.direction_)
