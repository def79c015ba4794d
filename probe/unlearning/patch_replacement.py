"""Overwrite the tokens where a concept's features are on with others of the same map (PER, 2026, arXiv 2606.31699).

    M = { p : z_i(p) > mu_i(t, D_all) for some i in F_c(t) },     x_p <- x_q,  q drawn from the tokens not in M

The features only detect; what is written lies among the model's own activations, so there is no strength to choose
and nothing leaves the distribution that the next layers know.
"""

from __future__ import annotations

from collections.abc import Sequence

from probe.capture.sites import Site
from probe.interventions.dictionary import Dictionary, as_dictionary
from probe.interventions.intervention import Intervention
from probe.interventions.whole_code import ReplaceFlagged
from probe.unlearning.saeuron import STYLES, ConceptScores, Setting, select_features


def patch_replacement(
    scores: ConceptScores,
    concept: str | Sequence[str],
    *,
    dictionary: Dictionary,
    site: Site | str,
    setting: Setting = STYLES,
    timesteps: Sequence[int] | None = None,
    seed: int = 0,
) -> tuple[Intervention, ...]:
    """The edit that unlearns one concept, or several at once. Arguments and errors as ``saeuron``.

    ``setting.multiplier`` has no part in it; ``seed`` draws the tokens that are written.
    """
    tensors = as_dictionary(dictionary)
    features, _, thresholds = select_features(scores, concept, tensors, setting, timesteps)
    times = None if timesteps is None else tuple(int(t) for t in timesteps)
    op = ReplaceFlagged(tensors, features, thresholds, seed, times)
    return (Intervention(site, op, steps=setting.steps, branch=setting.branch),)
