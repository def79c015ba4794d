"""What a denoiser was trained to predict, turned into the noise.

With z = signal x0 + noise n, one level of the model's own forward process:

    epsilon         output = n
    v_prediction    output = signal n - noise x0        eps = signal output + noise z
    sample          output = x0                         eps = (z - signal output) / noise
    flow matching   output = n - x0, signal = 1 - noise eps = z + signal output
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from probe.errors import UnsupportedPipeline

Prediction = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
Factor = float | torch.Tensor
"""A number, or a tensor that broadcasts against the samples."""


def prediction_type(scheduler: Any) -> Prediction:
    """What the denoiser that belongs to a scheduler predicts.

    Raises:
        UnsupportedPipeline: the scheduler says something else, or nothing.
    """
    kind = scheduler.config.get("prediction_type")
    if "FlowMatch" in type(scheduler).__name__ or kind == "flow_prediction":
        return "flow_prediction"
    if kind in ("epsilon", "v_prediction", "sample"):
        return kind
    raise UnsupportedPipeline(
        f"{type(scheduler).__name__} predicts {kind!r}; expected epsilon, v_prediction, sample or flow matching."
    )


def clean_of(kind: Prediction, output: torch.Tensor, z: torch.Tensor, signal: Factor, noise: Factor) -> torch.Tensor:
    """The predicted clean sample in a denoiser's output; arguments as ``noise_of``.

    ``signal`` is not 0 where the model predicts the noise.
    """
    if kind == "epsilon":
        return (z - noise * output) / signal
    if kind == "v_prediction":
        return signal * z - noise * output
    return output if kind == "sample" else z - noise * output


def noise_of(kind: Prediction, output: torch.Tensor, z: torch.Tensor, signal: Factor, noise: Factor) -> torch.Tensor:
    """The predicted noise in a denoiser's output, in float32 or wider.

    Args:
        kind: see ``prediction_type``.
        output: what the denoiser returned, of z's shape.
        z: its input.
        signal, noise: the level; ``noise`` is not 0 where the model predicts the sample.
    """
    output = output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
    if kind == "epsilon":
        return output
    if kind == "v_prediction":
        return signal * output + noise * z
    if kind == "sample":
        return (z - signal * output) / noise
    return z + signal * output
