"""One edit: what, where, at which steps, on which guidance branch, how strongly.

The branch policy is part of the strength. With guidance eps = eps_u + w (eps_c - eps_u) the same small edit
moves the guided noise, to first order, w-fold (``cond``), (1 - w)-fold (``uncond``), 1-fold (``both``) or (2w
- 1)-fold (``opposite``, added to the conditional and subtracted from the unconditional half).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from probe.capture.sites import Site
from probe.errors import InvalidIntervention
from probe.interventions.ops import Op

BRANCH_POLICIES = ("cond", "uncond", "both", "opposite")
_SIGNS: dict[str, dict[str, float]] = {
    "cond": {"cond": 1.0},
    "uncond": {"uncond": 1.0},
    "both": {"cond": 1.0, "uncond": 1.0},
    "opposite": {"cond": 1.0, "uncond": -1.0},
}


@dataclass(frozen=True, eq=False)
class Intervention:
    """An edit of one site while a pipeline generates.

    Attributes:
        site: a ``Site`` or its name; names are completed when the edit is applied (``mid_block``).
        op: the operation (see ``ops.py`` and ``features.py``).
        steps: steps at which it applies (0 = most noise), for example ``range(5, 15)``; None for all.
        branch: ``cond``, ``uncond``, ``both`` or ``opposite``.
        strength: factor of the operation's change, in the operation's unit; 0 leaves the model as it is.
        mask: weight of each cell, (height, width) or (tokens,), finite; None for 1 everywhere. A (height,
            width) mask is averaged or repeated to the site's own grid.
    """

    site: Site | str
    op: Op
    steps: Iterable[int] | None = None
    branch: str = "both"
    strength: float = 1.0
    mask: torch.Tensor | np.ndarray | None = None

    def __post_init__(self) -> None:
        if isinstance(self.site, str):
            object.__setattr__(self, "site", Site.parse(self.site))
        if not isinstance(self.op, Op):
            raise InvalidIntervention(
                f"Intervention: op is {type(self.op).__name__}; expected an operation of this package."
            )
        if self.branch not in BRANCH_POLICIES:
            raise InvalidIntervention(
                f"Intervention: branch {self.branch!r}; expected one of {', '.join(BRANCH_POLICIES)}."
            )
        if self.branch == "opposite" and self.op.replaces:
            raise InvalidIntervention(
                f"Intervention: {self.op.kind} overwrites the tensor, so it has no opposite; use cond, uncond or both."
            )
        object.__setattr__(self, "strength", float(self.strength))
        if not math.isfinite(self.strength):
            raise InvalidIntervention(f"Intervention: strength {self.strength!r} is not finite.")
        object.__setattr__(self, "steps", _steps(self.steps))
        object.__setattr__(self, "mask", _mask(self.mask))

    @property
    def where(self) -> Site:
        """The site, as a ``Site``."""
        return Site.parse(self.site) if isinstance(self.site, str) else self.site

    def sign(self, branch: str) -> float:
        """Factor of the strength on a branch: 1, -1 or 0."""
        return _SIGNS[self.branch].get(branch, 0.0)

    def active_at(self, step: int) -> bool:
        """Whether the edit applies at a step."""
        return self.strength != 0.0 and (self.steps is None or step in tuple(self.steps))


def _steps(steps: Any) -> tuple[int, ...] | None:
    if steps is None:
        return None
    if not isinstance(steps, Iterable) or isinstance(steps, str):
        raise InvalidIntervention(f"Intervention: steps is {steps!r}; expected numbers such as range(5, 15), or None.")
    found = list(steps)
    if not found or not all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in found):
        raise InvalidIntervention(f"Intervention: steps {found!r}; expected at least one whole number from 0.")
    return tuple(sorted(set(found)))


def _mask(mask: Any) -> torch.Tensor | None:
    if mask is None:
        return None
    tensor = torch.from_numpy(np.ascontiguousarray(mask)) if isinstance(mask, np.ndarray) else torch.as_tensor(mask)
    tensor = tensor.detach().to("cpu", torch.float32)
    if tensor.ndim not in (1, 2) or not tensor.numel() or not bool(torch.isfinite(tensor).all()):
        raise InvalidIntervention(
            f"Intervention: the mask has shape {tuple(tensor.shape)}; expected (height, width) or (tokens,), finite."
        )
    return tensor
