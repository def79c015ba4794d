"""DDIM inversion: the noise from which a model would draw a given sample.

Symbols: a path of levels i = 1 ... n from little noise to much, z_i = signal_i x0 + noise_i eps. The deterministic
sampler of Song et al. 2021 (https://arxiv.org/abs/2010.02502) moves between levels by keeping its estimates of x0 and
eps; run upwards,

    eps_i     = eps(z_i, t_i)
    x0_i      = (z_i - noise_i eps_i) / signal_i
    z_{i + 1} = signal_{i + 1} x0_i + noise_{i + 1} eps_i

It starts at the clean sample, whose own time no model knows: the first move takes eps(z_0, t_1). An Euler step of the
probability flow, so the error falls as 1 / n. The same formula serves flow matching.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from probe.errors import InvalidRequest
from probe.model.prediction import noise_of, prediction_type
from probe.model.schedule import NoiseLevel, training_level

PredictNoise = Callable[[torch.Tensor, NoiseLevel], torch.Tensor]
"""eps(z, level), of z's shape."""


def invert(
    x0: torch.Tensor, path: Sequence[NoiseLevel], predict: PredictNoise
) -> Iterator[tuple[NoiseLevel, torch.Tensor]]:
    """Walk a clean sample up a path of levels.

    Args:
        x0: clean samples (B, C, H, W), float32.
        path: levels, least noise first; only the last may be pure noise.
        predict: the model; called once a level and once more at the first.

    Yields:
        (level, z there), before the model is called at that level: after the last one it is not called any more.
    """
    log_snr = [level.log_snr for level in path]
    if log_snr != sorted(log_snr, reverse=True):
        raise InvalidRequest("invert: the path's levels must go from little noise to much.")
    z = x0
    for i, level in enumerate(path):
        if i == 0:
            eps = predict(z, level)
            z = level.signal * z + level.noise * eps
        else:
            before = path[i - 1]
            eps = predict(z, before)
            z = level.signal * (z - before.noise * eps) / before.signal + level.noise * eps
        yield level, z


def inversion_path(scheduler: Any, steps: int, wanted: Sequence[NoiseLevel]) -> list[NoiseLevel]:
    """Levels from the clean end to the noisiest wanted one: evenly spaced times, and the wanted levels among them."""
    n_train = scheduler.config.num_train_timesteps
    spaced = [training_level(scheduler, (n_train - 1) * (i + 1) / steps) for i in range(steps)]
    most = min(level.log_snr for level in wanted)
    levels = {level.t: level for level in spaced if level.log_snr > most and level.signal > 0.0}
    levels |= {level.t: level for level in wanted}
    return sorted(levels.values(), key=lambda level: -level.log_snr)


def to_eps(scheduler: Any, output: torch.Tensor, z: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """The predicted noise in a denoiser's output, whatever it was trained to predict.

    Raises:
        UnsupportedPipeline: the prediction type is unknown.
    """
    return noise_of(prediction_type(scheduler), output.float(), z, level.signal, level.noise)
