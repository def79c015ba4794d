"""Operations with directions: add one, project a subspace out, add a low-rank update."""

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
    TableLike,
    Unpack,
    Weight,
    add_change,
    check_table,
    check_width,
    float_table,
    table_row,
    timesteps_of,
)

UNITS = ("raw", "std", "rms", "p99")


@dataclass(frozen=True, eq=False)
class AddDirection(Op):
    """x' = x + w * scale(step) * direction(step).

    Attributes:
        direction: (d,) or (n_steps, d), the same at every token; or (n_steps, tokens, d), one for each token.
        unit: what strength 1 means: ``raw`` (the direction as it is), or the direction times the size of a
            unit: ``std`` (the site's standard deviation), ``rms`` (root mean square of the norm of its rows), or
            ``p99`` (the 99th percentile of a feature's code). ``units.py`` reads sizes from a store.
        scale: the size of the unit, a number or (n_steps,); None for ``raw``.
        timesteps: the timestep of each row of the tables; needed to apply them at another step count.
    """

    kind: ClassVar[str] = "add_direction"
    direction: torch.Tensor
    unit: str = "raw"
    scale: TableLike | None = None
    timesteps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        ndim = 3 if torch.as_tensor(self.direction).ndim == 3 else 2
        direction = float_table("AddDirection: direction", self.direction, ndim)
        object.__setattr__(self, "direction", direction)
        object.__setattr__(self, "scale", _check_unit("AddDirection", self.unit, self.scale))
        n_rows = max(len(direction), len(self._scale))
        if len({len(direction), len(self._scale)} - {1}) > 1:
            raise InvalidIntervention(
                f"AddDirection: direction has {len(direction)} steps and scale {len(self._scale)}; expected the same."
            )
        object.__setattr__(self, "timesteps", check_table("AddDirection", n_rows, self.timesteps))

    @property
    def _scale(self) -> torch.Tensor:
        return self.scale if isinstance(self.scale, torch.Tensor) else torch.ones(1)

    def apply(self, x: torch.Tensor, weight: Weight, context: StepContext) -> torch.Tensor:
        check_width("AddDirection", self.direction.shape[-1], x, context)
        direction = self.direction[table_row(len(self.direction), self.timesteps, context, "AddDirection")]
        if direction.ndim == 2 and len(direction) != x.shape[1]:
            raise InvalidIntervention(
                f"AddDirection at {context.site}: directions for {len(direction)} tokens, the site has {x.shape[1]}."
            )
        size = float(self._scale[table_row(len(self._scale), self.timesteps, context, "AddDirection")])
        return add_change(x, (size * direction).to(x.device).expand(x.shape), weight)

    def to_record(self, pack: Pack) -> dict[str, Any]:
        return {
            "direction": pack(self.direction),
            "unit": self.unit,
            "scale": pack(self._scale),
            "timesteps": self.timesteps,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any], unpack: Unpack) -> AddDirection:
        scale = None if record["unit"] == "raw" else unpack(record["scale"])
        return cls(unpack(record["direction"]), record["unit"], scale, timesteps_of(record))


@dataclass(frozen=True, eq=False)
class ProjectOut(Op):
    """x' = x - w * sum_i u_i (v~_i . (x - centre)): what lies along the basis is moved to the centre.

    With ``covectors`` None this is the orthogonal projection. Else it is the oblique one: the component along u_i is
    measured by v_i, after v~ = (V U^T)^-1 V, which makes v~_i . u_j = 1 if i = j, else 0. LDA reads a concept with
    the covector S^-1 (mu_1 - mu_0) and removes it along mu_1 - mu_0.

    Attributes:
        basis: (k, d) or (n_steps, k, d), of full rank; need not be orthonormal.
        covectors: same shape, or None.
        centre: (d,) or (n_steps, d) that projected rows share with the rest; 0 if None.
        timesteps: the timestep of each row of the tables; needed to apply them at another step count.
    """

    kind: ClassVar[str] = "project_out"
    basis: torch.Tensor
    covectors: torch.Tensor | None = None
    centre: torch.Tensor | None = None
    timesteps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        basis = float_table("ProjectOut: basis", self.basis, 3)
        covectors = basis if self.covectors is None else float_table("ProjectOut: covectors", self.covectors, 3)
        zero = torch.zeros(1, basis.shape[2])
        centre = zero if self.centre is None else float_table("ProjectOut: centre", self.centre, 2)
        if covectors.shape != basis.shape or centre.shape[1] != basis.shape[2] or len(centre) not in (1, len(basis)):
            raise InvalidIntervention(
                f"ProjectOut: basis {tuple(basis.shape)}, covectors {tuple(covectors.shape)} and centre "
                f"{tuple(centre.shape)} do not fit; expected (n_steps, k, d) twice and (n_steps, d)."
            )
        gram = covectors.double() @ basis.double().mT
        if bool((torch.linalg.matrix_rank(gram) < basis.shape[1]).any()):
            raise InvalidIntervention(
                "ProjectOut: the basis is not of full rank, or no covector sees it; give independent directions."
            )
        found = {"basis": basis, "covectors": covectors, "centre": centre.expand(len(basis), -1).contiguous()}
        for name, value in found.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_dual", torch.linalg.solve(gram, covectors.double()).to(basis.dtype))
        object.__setattr__(self, "timesteps", check_table("ProjectOut", len(basis), self.timesteps))

    def apply(self, x: torch.Tensor, weight: Weight, context: StepContext) -> torch.Tensor:
        check_width("ProjectOut", self.basis.shape[2], x, context)
        row = table_row(len(self.basis), self.timesteps, context, "ProjectOut")
        tables: list[torch.Tensor] = [self.basis, getattr(self, "_dual"), torch.as_tensor(self.centre)]  # noqa: B009
        basis, dual, centre = (table[row].to(x.device) for table in tables)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return add_change(x, -((wide - centre) @ dual.mT.to(wide.dtype)) @ basis.to(wide.dtype), weight)

    def to_record(self, pack: Pack) -> dict[str, Any]:
        return {
            "basis": pack(self.basis),
            "covectors": pack(torch.as_tensor(self.covectors)),
            "centre": pack(torch.as_tensor(self.centre)),
            "timesteps": self.timesteps,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any], unpack: Unpack) -> ProjectOut:
        basis, covectors, centre = (unpack(record[name]) for name in ("basis", "covectors", "centre"))
        return cls(basis, covectors, centre, timesteps_of(record))


@dataclass(frozen=True, eq=False)
class LowRank(Op):
    """x' = x + w * up @ down: an adapter (LoRA, Hu et al. 2022) when the site is a weight.

    Attributes:
        up: (tokens, r); at a weight, one row for each output channel.
        down: (r, d); at a weight, d is its number of inputs.
    """

    kind: ClassVar[str] = "low_rank"
    up: torch.Tensor
    down: torch.Tensor

    def __post_init__(self) -> None:
        for name in ("up", "down"):
            object.__setattr__(self, name, float_table(f"LowRank: {name}", getattr(self, name), 2))
        if self.up.shape[1] != self.down.shape[0]:
            raise InvalidIntervention(
                f"LowRank: up {tuple(self.up.shape)}, down {tuple(self.down.shape)}; expected (tokens, r), (r, d)."
            )

    def apply(self, x: torch.Tensor, weight: Weight, context: StepContext) -> torch.Tensor:
        check_width("LowRank", self.down.shape[1], x, context)
        if len(self.up) != x.shape[1]:
            raise InvalidIntervention(f"LowRank at {context.site}: {len(self.up)} rows, the site has {x.shape[1]}.")
        return add_change(x, (self.up @ self.down).to(x.device).expand(x.shape), weight)

    def to_record(self, pack: Pack) -> dict[str, Any]:
        return {"up": pack(self.up), "down": pack(self.down)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], unpack: Unpack) -> LowRank:
        return cls(unpack(record["up"]), unpack(record["down"]))


def _check_unit(what: str, unit: str, scale: Any) -> torch.Tensor | None:
    """The scale of a unit as an (n_steps,) table; None for ``raw``."""
    if unit not in UNITS:
        raise InvalidIntervention(f"{what}: unit {unit!r}; expected one of {', '.join(UNITS)}.")
    if (unit == "raw") != (scale is None):
        raise InvalidIntervention(
            f"{what}: unit {unit!r} "
            + ("takes no scale." if unit == "raw" else "needs a scale: its size at each step.")
        )
    return None if scale is None else float_table(f"{what}: scale", scale, 1)
