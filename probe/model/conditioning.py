"""The arguments that a pipeline calls its denoiser with, taken from the pipeline itself.

The denoiser needs more than a noisy sample: text embeddings, size embeddings, class labels. The pipeline's own
``__call__`` is started with the prompts and stopped before its first denoiser call, whose arguments are kept. So
anything the pipeline does for its denoiser is done, for every pipeline whose sample is a plain map, or one packed into
tokens (``packing.py``).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from probe.errors import UnsupportedPipeline
from probe.model.branches import Branches, branch_layout
from probe.model.generate import call_kwargs, call_pipeline, model_label, no_progress_bar
from probe.model.packing import Packing
from probe.model.pipeline import Pipeline
from probe.model.steps import denoiser


class DenoiserCall(NamedTuple):
    """One call of a denoiser.

    Attributes:
        module: the denoiser.
        arguments: by parameter name, the sample and ``timestep`` among them.
        sample: name of the parameter that takes the sample.
        branches: guidance branches along the batch; where each has a call of its own, that of the first call.
        packing: how the sample's tokens lie on a map; None for a plain map.
        time_scale: factor from the scheduler's timesteps to what the denoiser takes: 1, or 1/1000 (FLUX).
    """

    module: torch.nn.Module
    arguments: dict[str, Any]
    sample: str
    branches: tuple[str, ...]
    packing: Packing | None
    time_scale: float


class _BeforeFirstCall(BaseException):
    """Ends a pipeline call before its denoiser runs; carries the denoiser's arguments and their branches."""

    def __init__(self, call: dict[str, Any], branches: Branches) -> None:
        self.call, self.branches = call, branches


def denoiser_call(pipe: Pipeline, prompts: Sequence[str], guidance: float) -> DenoiserCall:
    """The first denoiser call of a generation. Costs the text encoder, no denoiser call.

    Args:
        pipe: the pipeline; its scheduler's timesteps are set anew.
        prompts: one a sample.
        guidance: above 1 for both branches.

    Raises:
        UnsupportedPipeline: the denoiser is not called with a map, plain or packed, and a 'timestep' of the scheduler.
    """
    call, branches = _first_call(pipe, prompts, guidance)
    name = next(iter(call), "")
    sample = call.get(name)
    packing = None
    if isinstance(sample, torch.Tensor) and sample.ndim == 3:
        packing = Packing.of(sample, call.get("img_ids"))
    if "timestep" not in call or not isinstance(sample, torch.Tensor) or (sample.ndim != 4 and packing is None):
        raise UnsupportedPipeline(
            f"{model_label(pipe)} does not call its denoiser with a map (batch, channels, height, width) and a "
            "'timestep', so it cannot be called on a sample of ours."
        )
    scale = _time_scale(pipe, call["timestep"])
    return DenoiserCall(denoiser(pipe)[1], call, name, branches.here, packing, scale)


def computed_branches(pipe: Pipeline, prompt: str, guidance: float) -> tuple[str, ...]:
    """The guidance branches that a generation computes; arguments and cost as ``denoiser_call``.

    A model that takes its guidance as a number (FLUX, latent consistency models) has no unconditional branch at any.
    """
    return _first_call(pipe, [prompt], guidance)[1].whole


def _first_call(pipe: Pipeline, prompts: Sequence[str], guidance: float) -> tuple[dict[str, Any], Branches]:
    """The denoiser's arguments by name, and their branches."""
    _, module = denoiser(pipe)
    signature = inspect.signature(module.forward)

    def stop(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = dict(signature.bind_partial(*args, **kwargs).arguments)
        raise _BeforeFirstCall(call, branch_layout(pipe, call))

    # First of all hooks: what somebody adds to the prompt meanwhile is no part of the pipeline's call.
    handle = module.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
    try:
        with no_progress_bar(pipe):
            call_pipeline(pipe, call_kwargs(pipe, prompts, [0] * len(prompts), steps=2, guidance=guidance))
    except _BeforeFirstCall as stopped:
        return stopped.call, stopped.branches
    finally:
        handle.remove()
    raise UnsupportedPipeline(f"{model_label(pipe)} draws without calling its denoiser.")


def _time_scale(pipe: Pipeline, given: Any) -> float:
    t = float(given.flatten()[0]) if isinstance(given, torch.Tensor) else float(given)
    first = float(pipe.scheduler.timesteps[0])
    for scale in (1.0, 1e-3):
        if abs(t - first * scale) <= 1e-3 * max(1.0, abs(t)):
            return scale
    raise UnsupportedPipeline(
        f"{model_label(pipe)} calls its denoiser at time {t:g} where its scheduler says {first:g}; how the two belong "
        "together is unknown."
    )
