"""What a trained direction is to achieve, as functions of the posterior mean; and features of clean samples.

An objective takes the posterior mean with the edit and without it and returns a loss for each sample.
``PromptContrast`` asks for what exchanging a prompt would do,

    L = | x0' - x0 - (x0(c_positive) - x0(c_negative)) |^2 / size

and needs no other network. ``JudgeObjective`` asks canvas's judge, through the decoder: L = -log p(value | image); it
stands where the published methods have CLIP, which knows no canvas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from probe.errors import InvalidRequest
from probe.model.eps_model import Cond, x0_hat
from probe.model.pipeline import Pipeline
from probe.model.pipeline_eps import PipelineEps

if TYPE_CHECKING:
    from probe.canvas import Judge


class Objective(Protocol):
    """A loss of an edit at one noisy sample and level."""

    def __call__(self, edited: torch.Tensor, plain: torch.Tensor, z: torch.Tensor, log_snr: float) -> torch.Tensor:
        """Losses (B,) of the posterior mean with the edit and without it, both (B, *sample_shape)."""
        ...

    def record(self) -> dict[str, Any]:
        """JSON values that name the objective."""
        ...


class PromptContrast:
    """Do what exchanging a prompt would do to the posterior mean. Two more denoiser evaluations a sample.

    Args:
        model: the pipeline.
        positive, negative: the prompts.
    """

    def __init__(self, model: PipelineEps, positive: Cond, negative: Cond) -> None:
        self.model, self.positive, self.negative = model, positive, negative

    def __call__(self, edited: torch.Tensor, plain: torch.Tensor, z: torch.Tensor, log_snr: float) -> torch.Tensor:
        """See ``Objective``."""
        with torch.no_grad():
            target = x0_hat(self.model, z, log_snr, self.positive) - x0_hat(self.model, z, log_snr, self.negative)
        return (edited - plain - target).square().flatten(1).mean(1)

    def record(self) -> dict[str, Any]:
        """JSON values that name the objective."""
        return {"objective": "PromptContrast", "positive": str(self.positive), "negative": str(self.negative)}


class JudgeObjective:
    """Let canvas's judge see a value of a factor in the decoded posterior mean.

    Args:
        pipe: the canvas pipeline, for its decoder.
        judge: the judge.
        factor, value: such as ``colour`` and ``red``.

    Raises:
        InvalidRequest: the judge knows no such value.
    """

    def __init__(self, pipe: Pipeline, judge: Judge, factor: str, value: str) -> None:
        from probe.canvas import FACTORS

        if value not in FACTORS.get(factor, ()):
            raise InvalidRequest(f"JudgeObjective: the judge knows no {factor} {value!r}.")
        self.pipe, self.judge, self.factor, self.value = pipe, judge, factor, value
        self.index = FACTORS[factor].index(value)

    def __call__(self, edited: torch.Tensor, plain: torch.Tensor, z: torch.Tensor, log_snr: float) -> torch.Tensor:
        """See ``Objective``."""
        logits = self.judge.net(decoded(self.pipe, edited))[self.factor] / self.judge.temperatures[self.factor]
        return -torch.log_softmax(logits, 1)[:, self.index]

    def record(self) -> dict[str, Any]:
        """JSON values that name the objective."""
        return {"objective": "JudgeObjective", "factor": self.factor, "value": self.value}


class JudgeFeatures:
    """The judge's representation of decoded samples, (B, 160), as features for ``SliderSpace``."""

    def __init__(self, pipe: Pipeline, judge: Judge) -> None:
        self.pipe, self.judge = pipe, judge

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Features of clean samples (B, *sample_shape), differentiable."""
        return self.judge.net.features(decoded(self.pipe, x))

    def record(self) -> dict[str, Any]:
        """JSON values that name the features."""
        return {"features": "JudgeFeatures"}


def decoded(pipe: Pipeline, x: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, height, width) in [-1, 1] of clean samples, differentiable."""
    vae = pipe.vae
    return vae.decode(x.to(vae.dtype) / vae.config.scaling_factor).sample.clamp(-1.0, 1.0).float()
