"""Where a running pipeline is: which denoising step, and which half of the batch is which guidance branch.

Hooks must not count calls: a counter is wrong after an aborted generation, and off by one in the next. The
    step is looked up
instead from the timestep that the denoiser is called with, in the scheduler's own list of timesteps.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from probe.errors import UnsupportedPipeline
from probe.model.pipeline import Pipeline

BRANCHES = ("uncond", "cond")
_DENOISERS = ("unet", "transformer", "prior")


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


def branch_layout(pipe: Pipeline, call: dict[str, Any] | None = None) -> tuple[str, ...]:
    """The guidance branches along the denoiser's batch, in order, for the generation that is running.

    Stable Diffusion, SDXL, SD3 and their relatives double the batch with the unconditional half first. DiT
    puts it last and says so only through its null labels. A pipeline that embeds its guidance (FLUX) runs the
    conditional branch alone.

    Args:
        pipe: the pipeline, inside its ``__call__``.
        call: the denoiser's bound arguments; needed for DiT only.

    Returns:
        ``("uncond", "cond")``, ``("cond", "uncond")`` or ``("cond",)``.
    """
    labels = (call or {}).get("class_labels")
    if isinstance(labels, torch.Tensor) and "class_labels" in inspect.signature(type(pipe).__call__).parameters:
        null = getattr(denoiser(pipe)[1].config, "num_embeds_ada_norm", 1000)
        half = labels.shape[0] // 2
        doubled = labels.shape[0] % 2 == 0 and half > 0 and bool((labels[half:] == null).all())
        return ("cond", "uncond") if doubled else ("cond",)
    guided = getattr(pipe, "do_classifier_free_guidance", None)
    if guided is None:
        parameters = inspect.signature(type(pipe).__call__).parameters
        if "negative_prompt" in parameters and "true_cfg_scale" not in parameters:
            raise UnsupportedPipeline(
                f"{type(pipe).__name__} does not say whether its batch holds both guidance branches "
                "(expected a 'do_classifier_free_guidance' property), so they cannot be told apart."
            )
    return BRANCHES if guided else ("cond",)


class StepClock:
    """Knows the current step of a pipeline while it generates.

    Attach it with ``with StepClock(pipe) as clock``; hooks of modules inside the denoiser then read
    ``clock.step`` (position in sampling order, 0 = most noise), ``clock.t`` (the scheduler's timestep),
    ``clock.branches`` (see ``branch_layout``) and ``clock.calls`` (a number that differs between any two
    denoiser calls). ``on_call`` runs at the start of each call.
    """

    def __init__(self, pipe: Pipeline, on_call: Callable[[], None] | None = None) -> None:
        self.step = -1
        self.t = float("nan")
        self.branches: tuple[str, ...] = ()
        self.calls = 0
        self._pipe = pipe
        self._on_call = on_call
        self._timesteps: torch.Tensor | None = None
        self._values: list[float] = []
        _, self._module = denoiser(pipe)
        self._signature = inspect.signature(self._module.forward)
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def __enter__(self) -> StepClock:
        self._handle = self._module.register_forward_pre_hook(self._tick, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _tick(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = self._signature.bind_partial(*args, **kwargs).arguments
        self.step = self._locate(call.get("timestep"))
        self.t = self._values[self.step]
        self.branches = branch_layout(self._pipe, call)
        self.calls += 1
        if self._on_call is not None:
            self._on_call()

    def _locate(self, timestep: Any) -> int:
        """Index of a timestep in the scheduler's list."""
        if self._timesteps is not self._pipe.scheduler.timesteps:  # set_timesteps makes a new tensor: a new generation
            self._timesteps = self._pipe.scheduler.timesteps
            self._values = [float(value) for value in self._pipe.scheduler.timesteps]
            self.step = -1
        if timestep is None:
            raise UnsupportedPipeline(
                f"{type(self._pipe).__name__} calls its {type(self._module).__name__} without a 'timestep' "
                "argument, "
                "so the step cannot be known."
            )
        t = float(timestep.flatten()[0]) if isinstance(timestep, torch.Tensor) else float(timestep)
        for scale in (1.0, 1000.0):  # FLUX passes t / 1000
            found = [i for i, value in enumerate(self._values) if abs(value - t * scale) <= 1e-3 * max(1.0, abs(value))]
            if found:
                # Where a scheduler repeats a timestep (PNDM, Heun) the calls come in the order of its list.
                if len(found) > 1 and self.step in found[:-1]:
                    return found[found.index(self.step) + 1]
                return found[0]
        raise UnsupportedPipeline(
            f"{type(self._pipe).__name__} calls its {type(self._module).__name__} at timestep {t:g}, which "
            "is not in the "
            f"scheduler's list ({self._values[0]:g} ... {self._values[-1]:g})."
        )
