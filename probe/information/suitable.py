"""Which pipelines have a denoiser whose errors are information.

Every identity of this package needs a posterior mean of Gaussian noise. Two kinds of pipelines have none: models of
discrete tokens, which add no Gaussian noise, and guidance-distilled models, whose one output is already the guided
noise (a weight above one on the caption), or a sample of few steps, so that its error is no likelihood.
"""

from __future__ import annotations

from probe.errors import UnsupportedPipeline
from probe.model.generate import model_label
from probe.model.pipeline import Pipeline
from probe.model.steps import denoiser

_DISCRETE = ("VQDiffusionScheduler", "AmusedScheduler")
_DISTILLED = ("LCMScheduler", "TCDScheduler")


def check_pipeline(pipe: Pipeline) -> None:
    """Raise UnsupportedPipeline, with the reason, for a pipeline whose errors are no information.

    Distilled models without a mark of their own (a guidance input, a consistency scheduler) cannot be told from others.
    """
    scheduler = type(pipe.scheduler).__name__
    if scheduler in _DISCRETE:
        raise UnsupportedPipeline(
            f"{model_label(pipe)} denoises discrete tokens ({scheduler}): there is no Gaussian noise whose error would "
            "be information."
        )
    config = denoiser(pipe)[1].config
    guided = getattr(config, "guidance_embeds", False) or getattr(config, "time_cond_proj_dim", None) is not None
    if guided or scheduler in _DISTILLED:
        why = "its denoiser takes the guidance scale as input" if guided else f"its scheduler is {scheduler}"
        raise UnsupportedPipeline(
            f"{model_label(pipe)} is guidance-distilled ({why}): guided noise is no posterior mean, so that its errors "
            "are no information. Use the model that it was distilled from."
        )
