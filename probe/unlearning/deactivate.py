"""Interpret-then-Deactivate: switch a concept's own text features over (2025, arXiv 2503.09447).

With z(p) the codes of a prompt's tokens at a layer of the text encoder, start token left out:

    (I1)  F = union over erased prompts of Top_n(max over tokens of z)  minus the same union over retained prompts
    (I2)  z_i' = gamma z_i for i in F,  gamma = -8 (-6 for styles)
          only for prompts with mean (h - h_hat')^2 >= tau,  tau = 0.99 times its minimum over the erased prompts

so the dictionary serves as its own classifier of prompts. The paper writes h_hat'; here h + (z' - z) W_dec, which
keeps what the dictionary does not explain, unless ``keep_error`` is False.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from probe.capture.sites import Site
from probe.errors import InvalidRequest
from probe.interventions.dictionary import Dictionary, as_dictionary
from probe.interventions.intervention import Intervention
from probe.interventions.whole_code import DeactivateFeatures
from probe.model.pipeline import Pipeline
from probe.unlearning.text_rows import text_rows

_MARGIN = 0.99


def deactivate(
    pipe: Pipeline,
    erase: Sequence[str],
    retain: Sequence[str],
    *,
    dictionary: Dictionary,
    site: Site | str,
    n_features: int = 128,
    multiplier: float = -8.0,
    gated: bool = True,
    keep_error: bool = True,
) -> tuple[Intervention, ...]:
    """The edit that erases the concept of some prompts.

    Args:
        pipe: the pipeline.
        erase: prompts of the concept.
        retain: prompts whose features are left alone.
        dictionary: trained on the rows of the site.
        site: output of a module of the text encoder.
        n_features: n of (I1).
        multiplier: gamma.
        gated: whether prompts that the edit hardly touches are left as they are.
        keep_error: see above.

    Raises:
        InvalidRequest: no feature is the concept's own.
    """
    d = as_dictionary(dictionary)
    probe = DeactivateFeatures(d, [0])
    own = [_strongest(d.encode(rows), n_features) for rows in text_rows(pipe, site, erase, probe)]
    kept = [_strongest(d.encode(rows), n_features) for rows in text_rows(pipe, site, retain, probe)] if retain else []
    features = sorted(set().union(*own) - set().union(*kept))
    if not features:
        raise InvalidRequest(
            f"deactivate: the {n_features} strongest features of {', '.join(map(repr, erase))} are all among those of "
            "the retained prompts too. Retain fewer, or take more features."
        )
    tau = 0.0
    if gated:
        z = d.encode(text_rows(pipe, site, erase, probe))
        z[:, 1:, features] *= multiplier
        errors = (text_rows(pipe, site, erase, probe) - d.decode(z)).square().mean((1, 2))
        tau = _MARGIN * float(errors.min())
    op = DeactivateFeatures(d, torch.tensor(features), multiplier, tau, keep_error)
    return (Intervention(site, op),)


def _strongest(z: torch.Tensor, n: int) -> set[int]:
    """The n features with the largest code on any token but the first; only those that are on."""
    largest = z[1:].amax(0)
    order = largest.argsort(descending=True, stable=True)[:n]
    return set(order[largest[order] > 0].tolist())
