"""Operations that overwrite a site: with given values, with what another run computed, with another sample's values.

Causal tracing (Meng et al. 2022; Basu et al. 2024) patches a clean run's values into a corrupted one, and Prompt-to-
Prompt (Hertz et al. 2023) gives one sample the attention maps of another that is drawn beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from probe.capture.recorder import Recorder
from probe.capture.sites import Site, resolve_sites
from probe.errors import InvalidIntervention
from probe.interventions.ops import (
    Op,
    Pack,
    StepContext,
    Unpack,
    Weight,
    add_change,
    check_table,
    check_width,
    float_table,
    table_row,
    timesteps_of,
)
from probe.model.generate import generate
from probe.model.pipeline import Pipeline


@dataclass(frozen=True, eq=False)
class Replace(Op):
    """x' = value, the same for every sample and branch.

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
        value = self.value[table_row(len(self.value), self.timesteps, context, "Replace")]
        _check_tokens("Replace", value, x, context)
        return overwrite(x, value, weight)

    def to_record(self, pack: Pack) -> dict[str, Any]:
        return {"value": pack(self.value), "timesteps": self.timesteps}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], unpack: Unpack) -> Replace:
        return cls(unpack(record["value"]), timesteps_of(record))


@dataclass(frozen=True, eq=False)
class Patch(Op):
    """x' = what a recorded run had here at the same step, branch and sample.

    Attributes:
        value: (n_steps, n_branches, n_samples, tokens, d). One sample serves all; several must be drawn in one batch,
            in this order.
        branches: the n_branches names, in order.
        timesteps: the timestep of each row of ``value``; needed to apply it at another step count.
    """

    kind: ClassVar[str] = "patch"
    replaces: ClassVar[bool] = True
    by_branch: ClassVar[bool] = True
    value: torch.Tensor
    branches: tuple[str, ...]
    timesteps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", float_table("Patch: value", self.value, 5))
        object.__setattr__(self, "branches", tuple(self.branches))
        if len(self.branches) != self.value.shape[1]:
            raise InvalidIntervention(
                f"Patch: {self.value.shape[1]} branches in the value, but {len(self.branches)} names."
            )
        object.__setattr__(self, "timesteps", check_table("Patch", len(self.value), self.timesteps))

    def apply(self, x: torch.Tensor, weight: Weight, context: StepContext) -> torch.Tensor:
        row = table_row(len(self.value), self.timesteps, context, "Patch")
        if context.branch not in self.branches:
            raise InvalidIntervention(
                f"Patch at {context.site}: {'+'.join(self.branches)} was recorded, but the {context.branch or 'whole'} "
                "batch is to be edited. Record with the same guidance, or choose the branch."
            )
        value = self.value[row, self.branches.index(context.branch)]
        if len(value) not in (1, len(x)):
            raise InvalidIntervention(
                f"Patch at {context.site}: {len(value)} samples were recorded, but the batch has {len(x)}. Draw the "
                "same samples in one batch, or record one."
            )
        _check_tokens("Patch", value[0], x, context)
        return overwrite(x, value, weight)

    def to_record(self, pack: Pack) -> dict[str, Any]:
        return {"value": pack(self.value), "branches": list(self.branches), "timesteps": self.timesteps}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], unpack: Unpack) -> Patch:
        return cls(unpack(record["value"]), tuple(record["branches"]), timesteps_of(record))


@dataclass(frozen=True, eq=False)
class Swap(Op):
    """x'_i = x_order(i): samples of a batch take each other's values.

    Attributes:
        order: for each sample of the batch, the one whose values it gets: (1, 0) swaps two, (0, 0) gives the first
            one's to both.
    """

    kind: ClassVar[str] = "swap"
    replaces: ClassVar[bool] = True
    by_branch: ClassVar[bool] = True
    order: tuple[int, ...]

    def __post_init__(self) -> None:
        order = tuple(self.order)
        if not order or not all(isinstance(i, int) and 0 <= i < len(order) for i in order):
            raise InvalidIntervention(f"Swap: order {order}; expected a number from 0 to {len(order) - 1} a sample.")
        object.__setattr__(self, "order", order)

    def apply(self, x: torch.Tensor, weight: Weight, context: StepContext) -> torch.Tensor:
        if len(x) != len(self.order):
            raise InvalidIntervention(
                f"Swap at {context.site}: an order of {len(self.order)} samples for a batch of {len(x)}."
            )
        return x if self.order == tuple(range(len(x))) else overwrite(x, x[list(self.order)], weight)

    def to_record(self, pack: Pack) -> dict[str, Any]:
        return {"order": list(self.order)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], unpack: Unpack) -> Swap:
        return cls(tuple(record["order"]))


def record_run(
    pipe: Pipeline,
    sites: str | Site | Sequence[str | Site],
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
) -> dict[Site, Patch]:
    """Generate once and keep sites in memory, to patch them into other runs.

    Args:
        pipe: the pipeline.
        sites: sites of the denoiser, as ``resolve_sites`` takes them.
        prompts, seeds: one batch.
        steps, guidance: as ``generate``.

    Returns:
        For each site its values, 4 bytes each: (steps, branches, samples, tokens, channels).
    """
    seen: dict[Site, dict[int, dict[str, torch.Tensor]]] = {site: {} for site in resolve_sites(pipe, sites)}

    def keep(
        site: Site, step: int, branches: tuple[str, ...], rows: torch.Tensor, grid: tuple[int, int] | None
    ) -> None:
        parts = rows.detach().to("cpu", copy=True).chunk(len(branches))
        seen[site].setdefault(step, {}).update(zip(branches, parts, strict=True))

    with Recorder(pipe, list(seen), keep):
        generate(pipe, prompts, seeds, steps=steps, guidance=guidance, batch_size=len(prompts))
    timesteps = tuple(round(float(t)) for t in pipe.scheduler.timesteps)
    return {
        site: Patch(
            torch.stack([torch.stack(list(values.values())) for values in by_step.values()]),
            tuple(by_step[0]),
            timesteps,
        )
        for site, by_step in seen.items()
    }


def _check_tokens(what: str, value: torch.Tensor, x: torch.Tensor, context: StepContext) -> None:
    check_width(what, value.shape[-1], x, context)
    if value.shape[0] != x.shape[1]:
        raise InvalidIntervention(
            f"{what} at {context.site}: the value has {value.shape[0]} tokens, the site {x.shape[1]}."
        )


def overwrite(x: torch.Tensor, value: torch.Tensor, weight: Weight) -> torch.Tensor:
    """x + weight (value - x), exactly the value where the weight is 1."""
    value = value.to(x.device)
    blended = add_change(x, value - x, weight)
    full = torch.as_tensor(weight, device=x.device) == 1  # x + (value - x) is value only up to rounding
    return torch.where(full, value.to(x.dtype).expand(x.shape), blended)
