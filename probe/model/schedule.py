"""The noise level at each step of a scheduler.

``log_snr = log(abar / (1 - abar))`` is the unit that compares models. With sigma as schedulers keep it:

    variance preserving, k-diffusion form   x = x0 + sigma n              log_snr = -2 log sigma
    flow matching                           x = (1 - sigma) x0 + sigma n  log_snr = 2 log((1 - sigma) / sigma)

and ``-inf`` where nothing but noise is left (zero terminal SNR).
"""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import torch

from probe.errors import InvalidRequest, UnsupportedPipeline
from probe.model.pipeline import Pipeline


def schedule(pipe: Pipeline, steps: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Timesteps and noise levels for a number of steps; the pipeline's own scheduler is left as it is.

    Args:
        pipe: a pipeline whose scheduler sets its timesteps from a step count alone. For one that shifts them
            with the image size (FLUX), use ``schedule_of`` during or after a generation.
        steps: number of denoising steps, at least 1.

    Returns:
        ``(timesteps, log_snr)`` in sampling order, step 0 = most noise. Fractional timesteps are rounded.
        Schedulers that call the denoiser more than once a step (PNDM, Heun) list every call.

    Raises:
        InvalidRequest: ``steps`` is not positive.
        UnsupportedPipeline: the scheduler needs more than a step count, or exposes no noise level.
    """
    if steps < 1:
        raise InvalidRequest(f"schedule: steps must be at least 1, got {steps}.")
    scheduler: Any = copy.deepcopy(pipe.scheduler)
    if scheduler.config.get("use_dynamic_shifting") and "mu" in inspect.signature(scheduler.set_timesteps).parameters:
        raise UnsupportedPipeline(
            f"{type(scheduler).__name__} shifts its timesteps with the image size; "
            "generate once and use schedule_of(pipe.scheduler)."
        )
    scheduler.set_timesteps(steps)
    return schedule_of(scheduler)


def schedule_of(scheduler: Any) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """As ``schedule``, for a scheduler whose timesteps have been set."""
    timesteps = [float(t) for t in scheduler.timesteps]
    sigmas = getattr(scheduler, "sigmas", None)
    if isinstance(sigmas, torch.Tensor) and len(sigmas) in (len(timesteps), len(timesteps) + 1):
        levels = [float(sigma) for sigma in sigmas[: len(timesteps)]]
        to_log_snr = _flow_log_snr if _is_flow(scheduler) else _sigma_log_snr
        return tuple(round(t) for t in timesteps), tuple(to_log_snr(sigma) for sigma in levels)
    abar = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(abar, torch.Tensor):
        raise UnsupportedPipeline(
            f"{type(scheduler).__name__} exposes neither 'sigmas' nor 'alphas_cumprod', so its noise level is unknown."
        )
    levels = [float(abar[round(t)]) for t in timesteps]
    return tuple(round(t) for t in timesteps), tuple(_abar_log_snr(level) for level in levels)


def _is_flow(scheduler: Any) -> bool:
    config = scheduler.config
    return (
        "FlowMatch" in type(scheduler).__name__
        or config.get("prediction_type") == "flow_prediction"
        or bool(config.get("use_flow_sigmas"))
    )


def _abar_log_snr(abar: float) -> float:
    if abar <= 0.0:
        return -math.inf
    return math.log(abar) - math.log1p(-abar) if abar < 1.0 else math.inf


def _sigma_log_snr(sigma: float) -> float:
    return -2.0 * math.log(sigma) if sigma > 0.0 else math.inf


def _flow_log_snr(sigma: float) -> float:
    if sigma >= 1.0:
        return -math.inf
    return 2.0 * (math.log1p(-sigma) - math.log(sigma)) if sigma > 0.0 else math.inf
