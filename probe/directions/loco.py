"""Directions of the sampler's state that change one part of the image and leave the rest.

Chen et al. 2024 (https://arxiv.org/abs/2409.02374). At middling noise the posterior mean x0hat(x_t) is nearly linear,
with a Jacobian of low rank. With a mask M, J_in = M J and J_out = (1 - M) J, and N the r leading right singular vectors
of J_out, the moves of x_t that change the outside most,

    v = leading right singular vectors of J_in (I - N^T N)

so v is searched for among the moves that leave those alone. (The paper takes the leading vector of J_in and projects N
out of it afterwards; among all moves that keep away from N, this one has the largest effect.) Where the spectrum of
J_out is flat a small r constrains little: the ratio of the responses inside and outside is reported, not assumed. The
edit is made once: x_t + strength v at the step of the point, and sampling goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch

from probe.capture.tensors import to_rows
from probe.directions.direction import Direction
from probe.directions.jacobian import Restricted, spatial_weights
from probe.directions.operator_finder import OperatorFinder
from probe.directions.points import X0, X_T, Point, jacobian
from probe.directions.subspace import top_singular
from probe.errors import InvalidDirection
from probe.model.eps_model import EpsModel


@dataclass(kw_only=True, eq=False)
class LocalEdit(OperatorFinder):
    """Masked directions of x_t. Needs a model; two decompositions a point.

    Attributes:
        mask: (height, width) of the sample, 1 where it may change, 0 elsewhere; (d,) for samples that are vectors.
        null_rank: r; 0 for no constraint.

    After ``fit``: ``direction_`` at ``sampler:x_t``, one row a point, frame local, scale 1; ``singular_values_`` (n, k)
    are the responses inside; ``locality_`` (n, k), response inside over response outside; ``singular_``.

    Example:
        >>> import torch
        >>> from probe.directions import LocalEdit, trajectory
        >>> from probe.model import PipelineEps, load_pipeline
        >>> model = PipelineEps(load_pipeline("canvas"))
        >>> points = trajectory(model, "a red star in flat style", seed=0, steps=5)
        >>> mask = torch.zeros(16, 16)
        >>> mask[:8] = 1
        >>> found = LocalEdit(mask=mask, k=1, null_rank=2, tol=0.1).fit(model, points[2:3])
        >>> edit = found.direction_.intervention(0, strength=6.0)
    """

    mask: torch.Tensor
    null_rank: int = 5
    k: int = 1

    locality_: np.ndarray = field(init=False, repr=False)

    def fit(self, model: EpsModel, points: Sequence[Point]) -> Self:
        """Two singular value decompositions a point.

        Raises:
            InvalidDirection: the mask does not fit or holds all or nothing, or there are no points.
        """
        self._check(points)
        inside = spatial_weights(self.mask, tuple(model.sample_shape))
        if bool((inside == 0).all()) or bool((inside == 1).all()) or bool(((inside < 0) | (inside > 1)).any()):
            raise InvalidDirection("LocalEdit: the mask must lie in [0, 1] and leave something inside and outside.")
        found, vectors, locality, products = [], [], [], 0
        for point in points:
            op = jacobian(model, point, batch=self.batch)
            null = None
            if self.null_rank > 0:
                null = top_singular(Restricted(op, out_mask=1 - inside), self.null_rank, **self._options()).v
            result = top_singular(Restricted(op, out_mask=inside, null=null), self.k, **self._options())
            response = op.jvp(result.v).cpu().double()
            outside = (response * (1 - inside)).norm(dim=1)
            locality.append(((response * inside).norm(dim=1) / outside.clamp(min=1e-300)).numpy())
            found.append(result)
            products += op.products
            vectors.append(to_rows(X_T, result.v.unflatten(1, op.in_shape)))
        self._keep(found, products)
        self.locality_ = np.stack(locality)
        self.direction_ = Direction(
            X_T,
            torch.stack(vectors).float(),
            steps=self._steps(points),
            timesteps=self._timesteps(points),
            frame="local",
            provenance=self._provenance(model, points, found) | {"target": X0, "locality": self.locality_.tolist()},
        )
        return self
