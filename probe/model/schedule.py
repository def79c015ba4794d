"""The noise level at each step of a scheduler.

``log_snr = log(abar / (1 - abar))`` is the unit that compares models. With sigma as schedulers keep it:

    variance preserving, k-diffusion form   x = x0 + sigma n              log_snr = -2 log sigma
    flow matching                           x = (1 - sigma) x0 + sigma n  log_snr = 2 log((1 - sigma) / sigma)

and ``-inf`` where nothing but noise is left (zero terminal SNR).

``noise_levels`` goes the other way: from a log-SNR to the time, signal and noise of the model's own forward process,
z = signal x0 + noise n, in the scale in which the denoiser takes its input. For a variance preserving model, whatever
sampler it is run with, signal = sqrt(abar) and noise = sqrt(1 - abar) at one of its training timesteps; flow matching
is continuous, signal = 1 - sigma and noise = sigma = 1 / (1 + exp(log_snr / 2)).
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from probe.errors import InvalidRequest, UnsupportedPipeline
from probe.model.pipeline import Pipeline

_FLOOR = 30.0
_TOLERANCE = 0.5


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


class NoiseLevel(NamedTuple):
    """One level of a model's forward process.

    Attributes:
        t: the model's time there, as its denoiser takes it.
        log_snr: 2 log(signal / noise), ``-inf`` at pure noise.
        signal, noise: factors of the clean sample and of unit noise in the denoiser's input.
    """

    t: int | float
    log_snr: float
    signal: float
    noise: float


def noise_levels(scheduler: Any, log_snr: Sequence[float]) -> tuple[NoiseLevel, ...]:
    """The levels of a model's forward process that are nearest to some log-SNRs.

    Args:
        scheduler: of the pipeline; its timesteps need not be set.
        log_snr: what is wanted; anything from -30 down means the noisiest level.

    Returns:
        One level each, in the order given. On a training grid (``alphas_cumprod``) a level is up to half a grid
        step from what was asked.

    Raises:
        InvalidRequest: the schedule has no level within 0.5 of one that was asked, or two share a level.
        UnsupportedPipeline: the scheduler exposes no training schedule.
    """
    if _is_flow(scheduler):
        found = [_flow_level(float(level), scheduler.config.num_train_timesteps) for level in log_snr]
    else:
        found = [_grid_level(scheduler, float(level)) for level in log_snr]
    for level in found:
        if found.count(level) > 1:
            raise InvalidRequest(f"log_snr: two of {list(log_snr)} mean timestep {level.t}; ask for it once.")
    return tuple(found)


def training_level(scheduler: Any, t: float) -> NoiseLevel:
    """The level of a time, as the scheduler's own ``timesteps`` hold it (rounded on a training grid)."""
    if _is_flow(scheduler):
        sigma = t / scheduler.config.num_train_timesteps
        return NoiseLevel(t, _flow_log_snr(sigma), 1.0 - sigma, sigma)
    return _abar_level(_alphas_cumprod(scheduler), round(t))


def _grid_level(scheduler: Any, wanted: float) -> NoiseLevel:
    abar = _alphas_cumprod(scheduler)
    grid = torch.special.logit(abar.double()).clamp(-_FLOOR, _FLOOR)
    distance = (grid - max(-_FLOOR, min(_FLOOR, wanted))).abs()
    t = int(distance.argmin())
    if not float(distance[t]) <= _TOLERANCE:
        raise InvalidRequest(
            f"log_snr {wanted:g}: the nearest level of {type(scheduler).__name__} is {float(grid[t]):.3g} (timestep "
            f"{t}); its levels go from {float(grid.min()):.3g} to {float(grid.max()):.3g}."
        )
    return _abar_level(abar, t)


def _abar_level(abar: torch.Tensor, t: int) -> NoiseLevel:
    level = float(abar[t])
    return NoiseLevel(t, _abar_log_snr(level), math.sqrt(level), math.sqrt(1.0 - level))


def _flow_level(wanted: float, n_train: int) -> NoiseLevel:
    if wanted > _FLOOR:
        raise InvalidRequest(f"log_snr {wanted:g}: at most {_FLOOR:g} can be asked for.")
    sigma = 1.0 if wanted <= -_FLOOR else 1.0 / (1.0 + math.exp(wanted / 2.0))
    return NoiseLevel(sigma * n_train, _flow_log_snr(sigma), 1.0 - sigma, sigma)


def _alphas_cumprod(scheduler: Any) -> torch.Tensor:
    abar = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(abar, torch.Tensor):
        raise UnsupportedPipeline(f"{type(scheduler).__name__} has no 'alphas_cumprod': its training noise is unknown.")
    return abar


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
