"""Operations on the rows of a site, and the arithmetic that they share.

An operation sees rows x (B, tokens, d) of one step and returns x' for a weight w (strength times mask):

    x' = x + w (op(x) - x)      only where op(x) - x is not zero

so weight 0, and an operation that changes nothing, give back the very tensor that came in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch

from probe.errors import InvalidIntervention, RecipeError

Weight = float | torch.Tensor
Pack = Callable[[torch.Tensor], str]
"""Stores a tensor in a recipe and returns its name."""
Unpack = Callable[[str], torch.Tensor]
TableLike = torch.Tensor | Sequence[Any] | float
"""What a per-step table may be given as; operations keep it as a tensor on the CPU."""


class Moment(NamedTuple):
    """A point of a generation.

    Attributes:
        step: position in sampling order, 0 = most noise; -1 where there are no steps (text encoders).
        t: the scheduler's timestep; NaN where there are none.
        log_snr: log(signal / noise) power; NaN where there are no steps or the scheduler does not say.
    """

    step: int
    t: float
    log_snr: float = float("nan")


class StepContext(NamedTuple):
    """Where an operation is being applied.

    Attributes:
        site: for messages.
        step, t, log_snr: as ``Moment``.
        branch: the guidance branch of the rows; "" if they hold several, or none.
        predict: at sampler sites, the model's noise for a text embedding (L, C) at this very state, as rows
            (B, tokens, d); one denoiser call.
    """

    site: str
    step: int
    t: float
    log_snr: float = float("nan")
    branch: str = ""
    predict: Callable[[torch.Tensor], torch.Tensor] | None = None


_KINDS: dict[str, type[Op]] = {}


class Op(ABC):
    """An operation. Subclasses are frozen dataclasses with a ``kind`` that names them in recipes."""

    kind: ClassVar[str]
    replaces: ClassVar[bool] = False
    by_branch: ClassVar[bool] = False
    """Whether rows of different guidance branches must come in separate calls."""

    def __init_subclass__(cls) -> None:
        if "kind" in cls.__dict__:
            _KINDS[cls.kind] = cls

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


def op_record(op: Op, pack: Pack) -> dict[str, Any]:
    """An operation in a recipe: its kind and fields."""
    return {"kind": op.kind} | op.to_record(pack)


def op_of(record: Mapping[str, Any], unpack: Unpack) -> Op:
    """Inverse of ``op_record``.

    Raises:
        RecipeError: an operation that this version does not have.
    """
    if record["kind"] not in _KINDS:
        raise RecipeError(f"recipe: operation {record['kind']!r}; this version knows {', '.join(sorted(_KINDS))}.")
    return _KINDS[record["kind"]].from_record(record, unpack)


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
    if context.step < 0:
        raise InvalidIntervention(
            f"{what} at {context.site}: its table has {n_rows} steps, but there are no steps here."
        )
    if timesteps is not None:
        # Some samplers have a timestep twice (PNDM): of equally near rows, that of the step.
        return min(range(n_rows), key=lambda row: (abs(timesteps[row] - context.t), abs(row - context.step)))
    if context.step >= n_rows:
        raise InvalidIntervention(
            f"{what} at {context.site}: its table has {n_rows} steps, but the pipeline is at step "
            f"{context.step}. Give the table's timesteps, or generate with that number of steps."
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
    """A finite floating-point tensor on the CPU with ``ndim`` dimensions; a missing leading step axis is added."""
    tensor = torch.as_tensor(values).detach().to("cpu")
    tensor = tensor if tensor.dtype == torch.float64 else tensor.float()  # float64 is kept for closed-form models
    if tensor.ndim == ndim - 1:
        tensor = tensor.unsqueeze(0)
    if tensor.ndim != ndim or tensor.numel() == 0:
        raise InvalidIntervention(
            f"{what}: shape {tuple(tensor.shape)}; expected {ndim} dimensions, none of them empty."
        )
    if not bool(torch.isfinite(tensor).all()):
        raise InvalidIntervention(f"{what}: holds NaN or infinity.")
    return tensor


def timesteps_of(record: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The timesteps in a recipe's record."""
    found = record["timesteps"]
    return None if found is None else tuple(found)
