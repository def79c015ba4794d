"""Multiply attention heads: weaken, silence or strengthen them (Park et al. 2025, head relevance vectors).

At an attention map (port ``probs``) the channels of a row are the heads. At the input of the attention's output
projection (``attn2.to_out.0:in``) each head owns a block of channels, and multiplying it has the same effect as
multiplying all of the head's map, at a fraction of the cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from probe.errors import InvalidIntervention
from probe.interventions.ops import (
    Op,
    Pack,
    StepContext,
    Unpack,
    Weight,
    add_change,
    check_table,
    float_table,
    table_row,
    timesteps_of,
)


@dataclass(frozen=True, eq=False)
class ScaleHeads(Op):
    """x'_h = (1 + w (gain_h - 1)) x_h.

    Attributes:
        gains: (heads,) or (n_steps, heads); 1 leaves a head as it is, 0 silences it.
        timesteps: the timestep of each row of the table; needed to apply it at another step count.
    """

    kind: ClassVar[str] = "scale_heads"
    gains: torch.Tensor
    timesteps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "gains", float_table("ScaleHeads: gains", self.gains, 2))
        object.__setattr__(self, "timesteps", check_table("ScaleHeads", len(self.gains), self.timesteps))

    def apply(self, x: torch.Tensor, weight: Weight, context: StepContext) -> torch.Tensor:
        gains = self.gains[table_row(len(self.gains), self.timesteps, context, "ScaleHeads")]
        if x.shape[-1] % len(gains):
            raise InvalidIntervention(
                f"ScaleHeads at {context.site}: {x.shape[-1]} channels are not shared evenly by {len(gains)} heads."
            )
        change = (gains - 1.0).repeat_interleave(x.shape[-1] // len(gains)).to(x.device)
        return add_change(x, x * change, weight)

    def to_record(self, pack: Pack) -> dict[str, Any]:
        return {"gains": pack(self.gains), "timesteps": self.timesteps}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], unpack: Unpack) -> ScaleHeads:
        return cls(unpack(record["gains"]), timesteps_of(record))
