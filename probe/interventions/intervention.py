"""One edit: what, where, when, on which guidance branch, how strongly, into which term.

The branch policy is part of the strength. With guidance eps = eps_u + w (eps_c - eps_u) the same small edit
moves the guided noise, to first order, w-fold (``cond``), (1 - w)-fold (``uncond``), 1-fold (``both``) or (2w
- 1)-fold (``opposite``, added to the conditional and subtracted from the unconditional half).

So is the term. A DDIM step is x' = sqrt(abar') x0 + sqrt(1 - abar') eps, and both x0 and eps come from the model's
one output: an edit of that output moves the two in opposite directions, and they nearly cancel. ``inject`` puts the
edited output into the first term only (``x0``; Asyrp, Kwon et al. 2023), into the second only (``direction``), or
into both, as a plain hook does.
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
from probe.interventions.ops import Moment, Op
from probe.interventions.windows import Schedule, Window

BRANCH_POLICIES = ("cond", "uncond", "both", "opposite")
INJECT = ("both", "x0", "direction")
_SIGNS: dict[str, dict[str, float]] = {
    "cond": {"cond": 1.0},
    "uncond": {"uncond": 1.0},
    "both": {"cond": 1.0, "uncond": 1.0, "guided": 1.0},
    "opposite": {"cond": 1.0, "uncond": -1.0},
}


@dataclass(frozen=True, eq=False)
class Intervention:
    """An edit of one site while a pipeline generates.

    Attributes:
        site: a ``Site`` or its name; names are completed when the edit is applied (``mid_block``). See ``places.py``
            for the kinds of site.
        op: the operation (see ``ops.py``).
        steps: steps at which it applies (0 = most noise), for example ``range(5, 15)``, or a ``Window``; None for all.
        branch: ``cond``, ``uncond``, ``both`` or ``opposite``. The sampler's state and weights know ``both`` only.
        strength: factor of the operation's change, in the operation's unit; 0 leaves the model as it is. A number, or
            a ``Schedule``.
        mask: weight of each cell, (height, width) or (tokens,), finite; None for 1 everywhere. A (height,
            width) mask is averaged or repeated to the site's own grid. For attention maps, see ``attention.py``.
        inject: the term of the sampler's step that sees the edit: ``both``, ``x0`` or ``direction``. The last two need
            a DDIM sampler and a second denoiser call a step.
    """

    site: Site | str
    op: Op
    steps: Iterable[int] | Window | None = None
    branch: str = "both"
    strength: float | Schedule = 1.0
    mask: torch.Tensor | np.ndarray | None = None
    inject: str = "both"

    def __post_init__(self) -> None:
        if isinstance(self.site, str):
            object.__setattr__(self, "site", Site.parse(self.site))
        if not isinstance(self.op, Op):
            raise InvalidIntervention(
                f"Intervention: op is {type(self.op).__name__}; expected an operation of this package."
            )
        for name, value, known in (("branch", self.branch, BRANCH_POLICIES), ("inject", self.inject, INJECT)):
            if value not in known:
                raise InvalidIntervention(f"Intervention: {name} {value!r}; expected one of {', '.join(known)}.")
        if self.branch == "opposite" and self.op.replaces:
            raise InvalidIntervention(
                f"Intervention: {self.op.kind} overwrites the tensor, so it has no opposite; use cond, uncond or both."
            )
        if not isinstance(self.strength, Schedule):
            object.__setattr__(self, "strength", float(self.strength))
            if not math.isfinite(self.strength):
                raise InvalidIntervention(f"Intervention: strength {self.strength!r} is not finite.")
        if not isinstance(self.steps, Window):
            object.__setattr__(self, "steps", _steps(self.steps))
        object.__setattr__(self, "mask", _mask(self.mask))

    @property
    def where(self) -> Site:
        """The site, as a ``Site``."""
        return Site.parse(self.site) if isinstance(self.site, str) else self.site

    @property
    def timed(self) -> bool:
        """Whether the edit depends on the step, so that it needs a site that has steps."""
        return self.steps is not None or isinstance(self.strength, Schedule)

    def sign(self, branch: str) -> float:
        """Factor of the strength on a branch: 1, -1 or 0."""
        return _SIGNS[self.branch].get(branch, 0.0)

    def strength_at(self, moment: Moment) -> float:
        """Strength at a moment; 0 where the edit does not apply."""
        if isinstance(self.steps, Window):
            inside = moment in self.steps
        else:
            inside = self.steps is None or moment.step in tuple(self.steps)
        if not inside:
            return 0.0
        return self.strength(moment) if isinstance(self.strength, Schedule) else self.strength

    def meets(self, other: Intervention) -> bool:
        """Whether two edits of one site may touch the same cell of the same branch at the same step."""
        if isinstance(self.steps, tuple) and isinstance(other.steps, tuple) and not {*self.steps} & {*other.steps}:
            return False
        if not any(self.sign(branch) and other.sign(branch) for branch in ("cond", "uncond", "guided")):
            return False
        a, b = self.mask, other.mask
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.shape == b.shape:
            return bool(((a != 0) & (b != 0)).any())
        return True


def _steps(steps: Any) -> tuple[int, ...] | None:
    if steps is None:
        return None
    if not isinstance(steps, Iterable) or isinstance(steps, str):
        raise InvalidIntervention(
            f"Intervention: steps is {steps!r}; expected numbers such as range(5, 15), a Window, or None."
        )
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
