"""What finders that need a live model have in common: the iteration's settings, and what goes into the provenance."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from probe.directions.direction import Direction
from probe.directions.fitted import Fitted
from probe.directions.points import Point
from probe.directions.subspace import Singular
from probe.errors import InvalidDirection
from probe.model.eps_model import EpsModel
from probe.model.fingerprint import fingerprint
from probe.model.pipeline_eps import PipelineEps


@dataclass(kw_only=True, eq=False)
class OperatorFinder(Fitted):
    """Base of the finders on Jacobians.

    Attributes:
        k: vectors a point.
        oversample, tol, max_iter, seed: of the iteration, see ``top_singular``.
        batch: directions at a time; memory grows with it.

    After ``fit``: what the finder says, and ``products_``, products with a Jacobian that were made.
    """

    k: int = 5
    oversample: int = 5
    tol: float = 1e-4
    max_iter: int = 30
    seed: int = 0
    batch: int = 8

    direction_: Direction = field(init=False, repr=False)
    singular_values_: np.ndarray = field(init=False, repr=False)
    singular_: list[Singular] = field(init=False, repr=False)
    products_: int = field(init=False, repr=False)

    def _options(self) -> dict[str, Any]:
        return {"oversample": self.oversample, "tol": self.tol, "max_iter": self.max_iter, "seed": self.seed}

    def _check(self, points: Sequence[Point]) -> None:
        if not points:
            raise InvalidDirection(f"{type(self).__name__}: there are no points; give at least one.")

    def _keep(self, found: list[Singular], products: int) -> None:
        self.singular_, self.singular_values_ = found, np.stack([f.s.numpy() for f in found])
        self.products_ = products

    def _timesteps(self, points: Sequence[Point]) -> tuple[int, ...] | None:
        known = [p.timestep for p in points if p.timestep is not None]
        return tuple(known) if len(points) > 1 and len(known) == len(points) else None

    def _steps(self, points: Sequence[Point]) -> tuple[int, ...] | None:
        """The points' own steps, if they came from a trajectory."""
        return None if any(p.timestep is None for p in points) else tuple(p.step for p in points)

    def _provenance(self, model: EpsModel, points: Sequence[Point], found: Sequence[Singular]) -> dict[str, Any]:
        """Everything that the result depends on, and how good it is."""
        return {
            "finder": type(self).__name__,
            "parameters": {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.init},
            "model": model_record(model),
            "points": [p.record() for p in points],
            "quality": [
                {"gap": _finite(f.gap), "residual": f.residual, "iterations": f.iterations, "converged": f.converged}
                for f in found
            ],
        }


def model_record(model: EpsModel) -> dict[str, Any]:
    """JSON values that name a model: a pipeline's fingerprint, or the class of a closed form."""
    return fingerprint(model.pipe) if isinstance(model, PipelineEps) else {"model_class": type(model).__name__}


def _finite(x: float) -> float | None:
    return x if np.isfinite(x) else None


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor | np.ndarray):
        array = np.ascontiguousarray(torch.as_tensor(value).detach().cpu().numpy())
        return {"shape": list(array.shape), "sha256": hashlib.sha256(array.tobytes()).hexdigest()}
    return list(value) if isinstance(value, tuple) else value
