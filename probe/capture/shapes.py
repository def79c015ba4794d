"""Shapes of sites, found by one denoiser call on one prompt, and the store that a plan needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from activations_store import SiteSpec, StoreSpec
from probe.capture.plan import CapturePlan
from probe.capture.recorder import Recorder
from probe.capture.sites import Site, resolve_sites
from probe.errors import InvalidPlan, UnsupportedSite
from probe.model.generate import call_kwargs, no_progress_bar
from probe.model.pipeline import Pipeline
from probe.model.schedule import schedule_of
from probe.model.steps import denoiser


@dataclass(frozen=True)
class SiteShape:
    """Shape of one sample at one step and branch.

    Attributes:
        tokens: spatial cells or sequence positions.
        channels: length of a row.
        grid: (height, width) if the tensor is a map over the image.
    """

    tokens: int
    channels: int
    grid: tuple[int, int] | None


class _FirstCallDone(Exception):
    """Ends the probing generation after its first denoiser call."""


def probe_shapes(
    pipe: Pipeline, sites: Sequence[Site], *, prompt: str, steps: int, guidance: float
) -> tuple[dict[Site, SiteShape], tuple[str, ...]]:
    """Run the pipeline up to the end of its first denoiser call and look at the sites.

    Afterwards the scheduler holds the timesteps of this generation.

    Returns:
        The shape of each site, and the guidance branches in the batch (see ``branch_layout``).

    Raises:
        UnsupportedSite: a site did not fire, fired more than once in the call, or its tensor is not a batch
            of maps.
    """
    shapes: dict[Site, SiteShape] = {}
    layout: list[tuple[str, ...]] = []

    def receive(
        site: Site, step: int, branches: tuple[str, ...], rows: torch.Tensor, grid: tuple[int, int] | None
    ) -> None:
        if site in shapes:
            raise UnsupportedSite(f"site {site}: its module runs more than once in a step; choose a module inside it.")
        if rows.shape[0] != len(branches):
            raise UnsupportedSite(
                f"site {site}: its tensor has batch {rows.shape[0]} for one prompt with branches "
                f"{'+'.join(branches)}; "
                f"expected {len(branches)}."
            )
        shapes[site] = SiteShape(int(rows.shape[1]), int(rows.shape[2]), grid)
        layout.append(branches)

    def stop(*_: Any) -> None:
        raise _FirstCallDone

    _, module = denoiser(pipe)
    with Recorder(pipe, sites, receive), no_progress_bar(pipe):
        handle = module.register_forward_hook(stop)
        try:
            pipe(**call_kwargs(pipe, [prompt], [0], steps=steps, guidance=guidance))
        except _FirstCallDone:
            pass
        finally:
            handle.remove()
    silent = [str(site) for site in sites if site not in shapes]
    if silent:
        raise UnsupportedSite(f"These modules do not run in a denoiser call of this pipeline: {', '.join(silent)}.")
    return shapes, layout[0]


def store_spec(pipe: Pipeline, plan: CapturePlan) -> StoreSpec:
    """The store that a plan needs. Costs one denoiser call on one prompt.

    Raises:
        UnknownSite, UnsupportedSite: a site does not exist or cannot be recorded.
        InvalidPlan: the plan's branches are not those that run at its guidance scale, or the scheduler calls
            the denoiser more than once at a timestep.
    """
    sites = resolve_sites(pipe, plan.sites)
    shapes, found = probe_shapes(pipe, sites, prompt=plan.prompts[0], steps=plan.steps, guidance=plan.guidance)
    missing = [branch for branch in plan.branches if branch not in found]
    if missing:
        raise InvalidPlan(
            f"plan: branch {', '.join(missing)} is not computed at guidance {plan.guidance:g} by this "
            "pipeline, which runs "
            f"{', '.join(found)}. Record branches={found!r}, or raise the guidance scale above 1."
        )
    timesteps, log_snr = schedule_of(pipe.scheduler)
    if len(set(timesteps)) != len(timesteps):
        raise InvalidPlan(
            f"plan: {type(pipe.scheduler).__name__} calls the denoiser several times at one timestep, so a "
            "step has no "
            "single activation. Use a scheduler with one call a step, such as "
            "DDIMScheduler.from_config(pipe.scheduler.config)."
        )
    specs = tuple(
        SiteSpec(str(site), shapes[site].tokens, shapes[site].channels, shapes[site].grid, plan.dtype) for site in sites
    )
    return StoreSpec.plan(
        specs,
        len(plan.prompts),
        timesteps,
        log_snr,
        plan.branches,
        plan.compression,
        max_samples_per_shard=plan.max_samples_per_shard,
    )
