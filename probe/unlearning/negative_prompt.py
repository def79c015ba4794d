"""The baseline that everybody has: the concept as negative prompt.

    eps = eps(x_t | concept) + w (eps(x_t | prompt) - eps(x_t | concept))

The unconditional half of the batch is given the concept's embedding instead of the empty prompt's, which is what the
pipelines' own ``negative_prompt`` does, and gives the same images bit for bit. It needs guidance above 1.
"""

from __future__ import annotations

from probe.interventions.guide import text_embedding
from probe.interventions.intervention import Intervention
from probe.interventions.patching import Replace
from probe.model.pipeline import Pipeline
from probe.model.steps import denoiser


def negative_prompt(pipe: Pipeline, concept: str) -> tuple[Intervention, ...]:
    """The edit that has the concept as negative prompt.

    Args:
        pipe: the pipeline.
        concept: in the words of a prompt, such as "a star".

    Raises:
        UnsupportedPipeline: the denoiser is given more than a text embedding for a prompt.
    """
    site = f"{denoiser(pipe)[0]}:prompt"
    return (Intervention(site, Replace(text_embedding(pipe, concept)), branch="uncond"),)
