"""Operations on the rows of a site, and the arithmetic that they share.

An operation sees rows x (B, tokens, d) of one step and returns x' for a weight w (strength times mask):

    x' = x + w (op(x) - x)      only where op(x) - x is not zero

so weight 0, and an operation that changes nothing, give back the very tensor that came in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch

from probe.errors import InvalidIntervention

Weight = float | torch.Tensor
Pack = Callable[[torch.Tensor], str]
"""Stores a tensor in a recipe and returns its name."""
Unpack = Callable[[str], torch.Tensor]
TableLike = torch.Tensor | Sequence[Any] | float
"""What a per-step table may be given as; operations keep it as a tensor on the CPU."""
UNITS = ("raw", "std", "p99")


class StepContext(NamedTuple):
    """Where an operation is being applied."""

    site: str
    step: int
    t: float


class Op(ABC):
    """An operation. Subclasses are frozen dataclasses with a ``kind`` that names them in recipes."""

    kind: ClassVar[str]
    replaces: ClassVar[bool] = False

    @abstractmethod
    def apply(self, x: torch.Tensor, weight: Weight, context: StepContext) -> torch.Tensor:
        """Edited rows.

        Args:
            x: (B, tokens, d) rows of one branch or more; not changed in place.
            weight: a number, or (tokens, 1) on the device of x.
            context: site, step and timestep.

        Returns:
            x itself if nothing changes, else a new tensor of the same shape and dtype.
        """

    @abstractmethod
    def to_record(self, pack: Pack) -> dict[str, Any]:
        """JSON fields of this operation; tensors are handed to ``pack`` and stand in as names."""

    @classmethod
    @abstractmethod
    def from_record(cls, record: Mapping[str, Any], unpack: Unpack) -> Op:
        """Inverse of ``to_record``."""

    def clash(self, other: Op) -> str | None:
        """Why this operation cannot share a site with another, or None."""
        if self.replaces and other.replaces:
            return "both replace the whole tensor"
        return None


def add_change(x: torch.Tensor, change: torch.Tensor, weight: Weight) -> torch.Tensor:
    """x + weight * change where that is not zero; x itself if it is zero everywhere. Computed in float32 or
    wider.
    """
    moved = weight * change
    changed = moved != 0
    if not bool(changed.any()):
        return x
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return torch.where(changed, (wide + moved).to(x.dtype), x)


def table_row(n_rows: int, timesteps: tuple[int, ...] | None, context: StepContext, what: str) -> int:
    """Row of a per-step table: the only one, that of the nearest timestep, or that of the step.

    Tables made with one step count so apply to generations with another.

    Raises:
        InvalidIntervention: the table has no row for this step and no timesteps to go by.
    """
    if n_rows == 1:
        return 0
    if timesteps is not None:
        return min(range(n_rows), key=lambda row: abs(timesteps[row] - context.t))
    if context.step >= n_rows:
        raise InvalidIntervention(
            f"{what} at {context.site}: its table has {n_rows} steps, but the pipeline is at step "
            f"{context.step}. "
            "Give the table's timesteps, or generate with that number of steps."
        )
    return context.step


def check_table(what: str, n_rows: int, timesteps: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Timesteps as a tuple, checked against the number of rows."""
    if timesteps is None:
        return None
    found = tuple(int(t) for t in timesteps)
    if len(found) != n_rows and n_rows != 1:
        raise InvalidIntervention(f"{what}: {n_rows} rows in the table but {len(found)} timesteps; expected one each.")
    return found


def check_width(what: str, width: int, x: torch.Tensor, context: StepContext) -> None:
    """Raise InvalidIntervention unless rows have this many channels."""
    if x.shape[-1] != width:
        raise InvalidIntervention(
            f"{what} at {context.site}: the site has {x.shape[-1]} channels, but {width} were expected. "
            "It was made for another site or model."
        )


def float_table(what: str, values: Any, ndim: int) -> torch.Tensor:
    """A finite float32 tensor on the CPU with ``ndim`` dimensions; a missing leading step axis is added."""
    tensor = torch.as_tensor(values).detach().to("cpu", torch.float32)
    if tensor.ndim == ndim - 1:
        tensor = tensor.unsqueeze(0)
    if tensor.ndim != ndim or tensor.numel() == 0:
        raise InvalidIntervention(
            f"{what}: shape {tuple(tensor.shape)}; expected {ndim} dimensions, none of them empty."
        )
    if not bool(torch.isfinite(tensor).all()):
        raise InvalidIntervention(f"{what}: holds NaN or infinity.")
    return tensor


@dataclass(frozen=True, eq=False)
class AddDirection(Op):
    """x' = x + w * scale(step) * direction(step), the same at every token.

    Attributes:
        direction: (d,) or (n_steps, d).
        unit: what strength 1 means: ``raw`` (the direction as it is), or the direction times the size of a
            unit: ``std`` (the site's standard deviation) or ``p99`` (the 99th percentile of a feature's
            code).
        scale: the size of the unit, a number or (n_steps,); None for ``raw``.
        timesteps: the timestep of each row of the tables; needed to apply them at another step count.
    """

    kind: ClassVar[str] = "add_direction"
    direction: torch.Tensor
    unit: str = "raw"
    scale: TableLike | None = None
    timesteps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        direction = float_table("AddDirection: direction", self.direction, 2)
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
        check_width("AddDirection", self.direction.shape[1], x, context)
        row = table_row(len(self.direction), self.timesteps, context, "AddDirection")
        size = float(self._scale[table_row(len(self._scale), self.timesteps, context, "AddDirection")])
        change = (size * self.direction[row]).to(x.device)
        return add_change(x, change.expand(x.shape), weight)

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
class Replace(Op):
    """x' = value: the site is overwritten, for example with what another run computed.

    Attributes:
        value: (tokens, d) or (n_steps, tokens, d).
        timesteps: the timestep of each row of ``value``; needed to apply it at another step count.
    """

    kind: ClassVar[str] = "replace"
    replaces: ClassVar[bool] = True
    value: torch.Tensor
    timesteps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", float_table("Replace: value", self.value, 3))
        object.__setattr__(self, "timesteps", check_table("Replace", len(self.value), self.timesteps))

    def apply(self, x: torch.Tensor, weight: Weight, context: StepContext) -> torch.Tensor:
        check_width("Replace", self.value.shape[2], x, context)
        if self.value.shape[1] != x.shape[1]:
            raise InvalidIntervention(
                f"Replace at {context.site}: the value has {self.value.shape[1]} tokens, the site {x.shape[1]}."
            )
        value = self.value[table_row(len(self.value), self.timesteps, context, "Replace")].to(x.device)
        blended = add_change(x, value - x, weight)
        full = torch.as_tensor(weight, device=x.device) == 1  # x + (value - x) is value only up to rounding
        return torch.where(full, value.to(x.dtype).expand(x.shape), blended)

    def to_record(self, pack: Pack) -> dict[str, Any]:
        return {"value": pack(self.value), "timesteps": self.timesteps}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], unpack: Unpack) -> Replace:
        return cls(unpack(record["value"]), timesteps_of(record))


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


def timesteps_of(record: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The timesteps in a recipe's record."""
    found = record["timesteps"]
    return None if found is None else tuple(found)
