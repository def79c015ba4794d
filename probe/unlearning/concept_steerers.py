"""Concept Steerers: subtract what a dictionary of the text encoder says of a concept's prompt (Kim & Ghadiyaram 2025,
arXiv 2501.19066).

    h_c = the layer's rows for the concept's prompt
    a   = ReLU((h_c - b_dec) W_enc + b_enc)        all features, no top-k
    s   = a W_dec
    h  <- h + lambda s in the prompt's pass,  h - lambda s in the negative or empty prompt's pass

token by token, once a prompt. lambda < 0 removes the concept: the paper uses -0.5 for nudity.
"""

from __future__ import annotations

from probe.capture.sites import Site
from probe.errors import InvalidRequest
from probe.interventions.dictionary import Dictionary, ThresholdDictionary, TopKDictionary, as_dictionary
from probe.interventions.directions import AddDirection
from probe.interventions.intervention import Intervention
from probe.model.pipeline import Pipeline
from probe.unlearning.text_rows import text_rows


def concept_steerer(
    pipe: Pipeline,
    concept: str,
    *,
    dictionary: Dictionary,
    site: Site | str,
    strength: float = -0.5,
    branch: str = "opposite",
) -> tuple[Intervention, ...]:
    """The edit that steers prompts away from a concept, or towards it.

    Args:
        pipe: the pipeline.
        concept: the concept's prompt, such as "a star"; a list of words in the paper.
        dictionary: trained on the rows of the site.
        site: output of a module of the text encoder, such as ``text_encoder.encoder.layers.9``.
        strength: lambda.
        branch: ``opposite`` in the paper; it needs guidance above 1 for both of its passes.

    Raises:
        InvalidRequest: the dictionary is not one of this site, or does more with a row than an affine map.
    """
    d = as_dictionary(dictionary)
    if not isinstance(d, TopKDictionary | ThresholdDictionary):
        raise InvalidRequest(
            f"concept_steerer: reads rows by an encoder alone, and was given a {type(d).__name__}; train one with "
            "input raw, centred or whitened and time shared."
        )
    rows = text_rows(pipe, site, [concept], AddDirection(d.W_dec[0]))[0]
    if rows.shape[1] != d.W_dec.shape[1]:
        raise InvalidRequest(
            f"concept_steerer: {site} has {rows.shape[1]} channels, the dictionary {d.W_dec.shape[1]}; expected one "
            "that was trained there."
        )
    a = ((rows - d.b_dec) @ d.W_enc + d.b_enc).relu()
    return (Intervention(site, AddDirection((a @ d.W_dec)[None]), branch=branch, strength=strength),)
