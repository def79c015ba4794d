"""The control of every edit: the same push, in a direction that means nothing.

For each row, x' = x + w ||op(x) - x|| u with one random unit vector u. What this does to an image, any push of that
size does; an edit's claim is what it does beyond this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from probe.errors import InvalidIntervention
from probe.interventions.intervention import Intervention
from probe.interventions.ops import Op, Pack, StepContext, Unpack, Weight, add_change, op_of, op_record


@dataclass(frozen=True, eq=False)
class EqualNorm(Op):
    """x' = x + w ||op(x) - x|| u, row by row.

    Attributes:
        op: the operation whose size is taken.
        seed: of the random direction u.
    """

    kind: ClassVar[str] = "equal_norm"
    op: Op
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.op, Op) or not isinstance(self.seed, int):
            raise InvalidIntervention("EqualNorm: expected an operation and a whole number as seed.")
        object.__setattr__(self, "by_branch", self.op.by_branch)

    def apply(self, x: torch.Tensor, weight: Weight, context: StepContext) -> torch.Tensor:
        new = self.op.apply(x, 1.0, context)
        if new is x:
            return x
        drawn = torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(self.seed))
        size = (new - x).norm(dim=-1, keepdim=True)
        return add_change(x, size * (drawn / drawn.norm()).to(x), weight)

    def to_record(self, pack: Pack) -> dict[str, Any]:
        return {"op": op_record(self.op, pack), "seed": self.seed}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], unpack: Unpack) -> EqualNorm:
        return cls(op_of(record["op"], unpack), int(record["seed"]))


def random_control(intervention: Intervention, seed: int = 0) -> Intervention:
    """The same edit in a random direction: same site, steps, branch, strength, mask, and size at every row."""
    return replace(intervention, op=EqualNorm(intervention.op, seed))
