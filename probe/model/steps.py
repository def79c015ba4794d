"""Where a running pipeline is: which denoising step, and which half of the batch is which guidance branch.

Hooks must not count calls: a counter is wrong after an aborted generation, and off by one in the next. The step is
looked up instead from the time that the denoiser is called with, in the scheduler's own list of timesteps. Pipelines
give that time in three units, in the denoiser's precision (bfloat16 has eight bits),

    t                 Stable Diffusion, SD3, PixArt, ...
    t / 1000          FLUX, AuraFlow, Qwen-Image, ...
    1 - t / 1000      Lumina, Z-Image: their own time runs from noise to picture

so several entries of a list may fit. Samplers that count (``step_index``, begun anew by every ``set_timesteps``) say
which of them it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from probe.errors import UnsupportedPipeline
from probe.model.branches import Branches, branch_layout
from probe.model.pipeline import Pipeline

_DENOISERS = ("unet", "transformer", "prior")
_TIMES = ("timestep", "t")


def denoiser(pipe: Pipeline) -> tuple[str, torch.nn.Module]:
    """The component that is called at every step, with its name (``"unet"`` or ``"transformer"``).

    Raises:
        UnsupportedPipeline: the pipeline has none.
    """
    for name in _DENOISERS:
        module = getattr(pipe, name, None)
        if isinstance(module, torch.nn.Module):
            return name, module
    parts = ", ".join(sorted(pipe.components))
    raise UnsupportedPipeline(
        f"{type(pipe).__name__} has no denoiser: expected a component named {' or '.join(_DENOISERS)}, found {parts}."
    )


class StepClock:
    """Knows the current step of a pipeline while it generates.

    Attach it with ``with StepClock(pipe) as clock``; hooks of modules inside the denoiser then read
    ``clock.step`` (position in sampling order, 0 = most noise), ``clock.t`` (the scheduler's timestep),
    ``clock.branches`` (see ``branch_layout``) and ``clock.calls`` (a number that differs between any two
    denoiser calls). ``on_call`` runs at the start of each call. While it is ``paused``, only ``calls`` goes on: for
    calls of our own, which are at no other step.
    """

    def __init__(self, pipe: Pipeline, on_call: Callable[[], None] | None = None) -> None:
        self.step = -1
        self.t = float("nan")
        self.calls = 0
        self.paused = False
        self._branches = Branches((), ())
        self._pipe = pipe
        self._on_call = on_call
        self._timesteps: torch.Tensor | None = None
        self._values: list[float] = []
        _, self._module = denoiser(pipe)
        self._signature = inspect.signature(self._module.forward)
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def __enter__(self) -> StepClock:
        # First of all hooks: the arguments are seen as the pipeline gave them, before anybody edits a prompt.
        self._handle = self._module.register_forward_pre_hook(self._tick, with_kwargs=True, prepend=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    @property
    def branches(self) -> tuple[str, ...]:
        """Guidance branches along the batch of the current call."""
        return self._branches.here

    @property
    def all_branches(self) -> tuple[str, ...]:
        """Guidance branches of the generation; more than ``branches`` where each has a call of its own."""
        return self._branches.whole

    def _tick(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls += 1
        if not self.paused:
            call = self._signature.bind_partial(*args, **kwargs).arguments
            self.step = self._locate(next((call[name] for name in _TIMES if name in call), None))
            self.t = self._values[self.step]
            self._branches = branch_layout(self._pipe, call)
        if self._on_call is not None:
            self._on_call()

    def _locate(self, timestep: Any) -> int:
        """Index of a timestep in the scheduler's list."""
        scheduler: Any = self._pipe.scheduler
        if self._timesteps is not scheduler.timesteps:  # set_timesteps makes a new tensor: a new generation
            self._timesteps = scheduler.timesteps
            self._values = [float(value) for value in scheduler.timesteps]
            self.step = -1
        if timestep is None:
            raise UnsupportedPipeline(
                f"{type(self._pipe).__name__} calls its {type(self._module).__name__} without a 'timestep' argument, "
                "so the step cannot be known."
            )
        t, tolerance = float(timestep.flatten()[0] if isinstance(timestep, torch.Tensor) else timestep), 1e-3
        if isinstance(timestep, torch.Tensor) and timestep.is_floating_point():
            tolerance = max(tolerance, torch.finfo(timestep.dtype).eps)
        counted = _counted(scheduler)
        found: list[int] = []
        for unit in (lambda v: v, lambda v: v / 1000.0, lambda v: 1.0 - v / 1000.0):
            least = max(1.0, abs(t)) if unit(1000.0) == 1000.0 else max(1e-3, abs(t))
            away = [abs(unit(value) - t) for value in self._values]
            if counted is not None and counted < len(away) and away[counted] <= tolerance * least:
                return counted
            if not found and min(away) <= tolerance * least:
                found = [i for i, distance in enumerate(away) if distance == min(away)]
        if not found:
            raise UnsupportedPipeline(
                f"{type(self._pipe).__name__} calls its {type(self._module).__name__} at timestep {t:g}, which is not "
                f"in the scheduler's list ({self._values[0]:g} ... {self._values[-1]:g})."
            )
        # Where a scheduler repeats a timestep (PNDM) the calls come in the order of its list.
        if self.step in found[:-1]:
            return found[found.index(self.step) + 1]
        return found[0]


def _counted(scheduler: Any) -> int | None:
    """The sampler's own number of the step that is under way; None if it does not count."""
    if not hasattr(type(scheduler), "step_index"):
        return None
    index = scheduler.step_index
    return int(index if index is not None else getattr(scheduler, "begin_index", None) or 0)
