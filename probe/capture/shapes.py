"""Shapes of sites, seen in one denoiser call on one sample, and the store that a plan needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from activations_store import SiteSpec, StoreSpec
from probe.capture.plan import CapturePlan
from probe.capture.recorder import Receive, Recorder
from probe.capture.recording import Recording
from probe.capture.sites import Site, resolve_sites
from probe.capture.tokens import TokenLayout
from probe.errors import InvalidPlan, UnsupportedSite
from probe.model.generate import call_kwargs, call_pipeline, no_progress_bar
from probe.model.override import override
from probe.model.pipeline import Pipeline
from probe.model.schedule import schedule_of


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


@dataclass(frozen=True)
class Observed:
    """What one denoiser call showed of a plan's sites.

    Attributes:
        shapes: of each site.
        branches: guidance branches of a step (see ``branch_layout``).
        timesteps, log_snr: of all steps of the model's schedule, in sampling order.
    """

    shapes: Mapping[Site, SiteShape]
    branches: tuple[str, ...]
    timesteps: tuple[int | float, ...]
    log_snr: tuple[float, ...]

    def layouts(self, plan: Recording) -> dict[Site, TokenLayout]:
        """Which rows of each site the plan keeps."""
        return {
            site: TokenLayout.choose(shape.tokens, shape.grid, keep=plan.tokens, seed=plan.token_seed, pool=plan.pool)
            for site, shape in self.shapes.items()
        }

    def spec(self, plan: Recording, steps: Sequence[int]) -> StoreSpec:
        """The store that a plan needs when these steps are kept.

        Raises:
            InvalidPlan: a branch is not computed.
        """
        missing = [branch for branch in plan.branches if branch not in self.branches]
        if missing:
            guidance = getattr(plan, "guidance", 1.0)
            raise InvalidPlan(
                f"plan: branch {', '.join(missing)} is not computed at guidance {guidance:g} by this pipeline, which "
                f"runs {', '.join(self.branches)}. Record with branches={self.branches!r}"
                + (", or raise guidance above 1." if guidance <= 1.0 else ".")
            )
        layouts = self.layouts(plan)
        return StoreSpec.plan(
            tuple(
                SiteSpec(str(site), layout.n_recorded, self.shapes[site].channels, layout.recorded_grid, plan.dtype)
                for site, layout in layouts.items()
            ),
            plan.n_samples,
            tuple(self.timesteps[step] for step in steps),
            tuple(self.log_snr[step] for step in steps),
            plan.branches,
            plan.compression,
            max_samples_per_shard=plan.max_samples_per_shard,
        )


class _FirstStepDone(Exception):
    """Ends the observed generation where its sampler takes its first step."""


def observe_sites(
    sites: Sequence[Site], run: Callable[[Receive], None]
) -> tuple[dict[Site, SiteShape], tuple[str, ...]]:
    """Shapes of sites and the branches that are computed, from one denoising step of one sample.

    Args:
        sites: what to look at.
        run: makes the step with a recorder that hands tensors to what it is given.

    Raises:
        UnsupportedSite: a site did not fire, fired more than once, or its tensor is not a batch of maps.
    """
    shapes: dict[Site, SiteShape] = {}
    found: dict[Site, list[str]] = {}

    def receive(
        site: Site, step: int, branches: tuple[str, ...], rows: torch.Tensor, grid: tuple[int, int] | None
    ) -> None:
        before = found.setdefault(site, [])
        if set(before) & set(branches):
            raise UnsupportedSite(f"site {site}: its module runs more than once in a step; choose a module inside it.")
        if rows.shape[0] != len(branches):
            raise UnsupportedSite(
                f"site {site}: its tensor has batch {rows.shape[0]} for one sample with branches "
                f"{'+'.join(branches)}; expected {len(branches)}."
            )
        shapes[site] = SiteShape(int(rows.shape[1]), int(rows.shape[2]), grid)
        before.extend(branches)

    run(receive)
    silent = [str(site) for site in sites if site not in shapes]
    if silent:
        raise UnsupportedSite(f"These modules do not run in a denoiser call of this pipeline: {', '.join(silent)}.")
    return {site: shapes[site] for site in sites}, tuple(found[sites[0]])


def first_step(pipe: Pipeline, prompt: str, steps: int, guidance: float) -> None:
    """Draw one sample up to the end of its first denoising step: one denoiser call, or one for each branch."""

    def stop(*_: Any, **__: Any) -> None:
        raise _FirstStepDone

    kwargs = call_kwargs(pipe, [prompt], [0], steps=steps, guidance=guidance)
    with no_progress_bar(pipe), override(pipe.scheduler, "step", stop), suppress(_FirstStepDone):
        call_pipeline(pipe, kwargs)


def observe_generation(pipe: Pipeline, plan: CapturePlan) -> Observed:
    """Run the plan's first sample up to the end of its first denoising step.

    Raises:
        UnknownSite, UnsupportedSite: a site does not exist or cannot be recorded.
    """
    sites = resolve_sites(pipe, plan.sites)

    def run(receive: Receive) -> None:
        # To the end of the step, not to the last site: a site that fires twice has to be noticed.
        with Recorder(pipe, sites, receive):
            first_step(pipe, plan.prompts[0], plan.steps, plan.guidance)

    shapes, branches = observe_sites(sites, run)
    timesteps, log_snr = schedule_of(pipe.scheduler)
    return Observed(shapes, branches, timesteps, log_snr)


def store_spec(pipe: Pipeline, plan: CapturePlan) -> StoreSpec:
    """The store that a plan needs. Costs one denoiser call on one prompt.

    Raises:
        UnknownSite, UnsupportedSite: a site does not exist or cannot be recorded.
        InvalidPlan: the plan's branches are not those that run at its guidance scale.
    """
    found = observe_generation(pipe, plan)
    return found.spec(plan, plan.kept_of(len(found.timesteps)))
