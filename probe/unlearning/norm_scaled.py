"""SAeUron with the push measured by the code itself (SAEmnesia, 2025, arXiv 2509.21379).

    z_i' = gamma (|z| / |d_i|) z_i   for i in F_c(t) where z_i > mu_i(t, D_all),   else z_i

|z| is the norm of the row's whole code and d_i the feature's decoder row, so gamma does not depend on how large the
concept's mean activation is at a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from probe.capture.sites import Site
from probe.interventions.dictionary import Dictionary, as_dictionary
from probe.interventions.intervention import Intervention
from probe.interventions.whole_code import NormScaleFeatures
from probe.unlearning.saeuron import STYLES, ConceptScores, Setting, select_features


def norm_scaled(
    scores: ConceptScores,
    concept: str | Sequence[str],
    *,
    dictionary: Dictionary,
    site: Site | str,
    setting: Setting = STYLES,
    timesteps: Sequence[int] | None = None,
) -> tuple[Intervention, ...]:
    """The edit that unlearns one concept, or several at once. Arguments and errors as ``saeuron``.

    ``setting.relative`` has no part in it.
    """
    tensors = as_dictionary(dictionary)
    found = select_features(scores, concept, tensors, replace(setting, relative=False), timesteps)
    op = NormScaleFeatures(tensors, *found, None if timesteps is None else tuple(int(t) for t in timesteps))
    return (Intervention(site, op, steps=setting.steps, branch=setting.branch),)
