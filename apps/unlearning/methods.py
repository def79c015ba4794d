"""The unlearning methods by name: how each makes its edit of a target from a setting.

A method is fitted on what was learned from recorded activations (``Learned``), never on an image that it is chosen or
scored on. Settings come from ``unlearn_config.CANDIDATES``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from apps.errors import InvalidOption, UnknownName
from apps.unlearning.candidates import (
    Candidate,
    Direction,
    Features,
    NormMatched,
    Phrase,
    Plain,
    Rewrite,
    TextFeatures,
    TextSteering,
    Tuned,
)
from apps.unlearning.config import CANDIDATES, TEXT

if TYPE_CHECKING:
    from activations_store import ActivationStore
    from probe.interventions import Intervention
    from probe.model.pipeline import Pipeline
    from probe.unlearning import ConceptMoments, ConceptScores

Edits = tuple["Intervention", ...]
KINDS = ("control", "prompt", "direction", "weights", "sae")
"""What a method works with."""


@dataclass
class Learned:
    """What methods are made from.

    Attributes:
        pipe: the model.
        store: recorded activations with labels; None where nothing was recorded.
        labels: for each factor, its labels.
        steps: denoising steps of a generation.
        dictionary: the dictionary of a name.
        scores: concept scores of (dictionary name, factor).
        best_sae: for (factor, label), the edit whose random control is wanted.
    """

    pipe: Pipeline
    store: ActivationStore | None
    labels: Mapping[str, Sequence[str]]
    steps: int
    dictionary: Callable[[str], Any]
    scores: Callable[[str, str], ConceptScores]
    best_sae: Callable[[str, str], Edits]
    _moments: tuple[tuple[str, str, str], ConceptMoments] | None = None

    @property
    def recorded(self) -> ActivationStore:
        """The store; raises ``InvalidOption`` if there is none."""
        if self.store is None:
            raise InvalidOption("unlearn: this method learns from recorded activations, and there is no store.")
        return self.store

    @property
    def timesteps(self) -> list[int]:
        """The scheduler's timestep at each recorded step."""
        return [int(t) for t in self.recorded.spec.timesteps]

    def moments(self, site: str, factor: str, label: str) -> ConceptMoments:
        """Means and covariance of a concept's rows at a site; the last ones are kept."""
        from probe.unlearning import ConceptMoments

        key = (site, factor, label)
        if self._moments is None or self._moments[0] != key:
            self._moments = key, ConceptMoments.from_store(self.recorded, site, factor, label)
        return self._moments[1]

    def others(self, factor: str, label: str) -> list[str]:
        """The factor's other labels."""
        return [other for other in self.labels[factor] if other != label]


Candidates = Mapping[str, Mapping[str, tuple[Candidate, ...]]]
"""Settings by method and factor."""
Fit = Callable[[Learned, str, str, Any], Edits]
"""Takes (learned, factor, label, setting)."""


@dataclass(frozen=True)
class Method:
    """An unlearning method.

    Attributes:
        name: as it is typed.
        kind: one of ``KINDS``.
        about: a few words for people.
        takes: class of its settings.
        fit: makes the edit of a target.
    """

    name: str
    kind: str
    about: str
    takes: type[Candidate]
    fit: Fit

    def settings(self, factor: str, label: str, candidates: Candidates = CANDIDATES) -> tuple[Candidate, ...]:
        """The settings to choose from for a target; none if the method does not run on the factor."""
        found = candidates.get(self.name, {}).get(factor, ())
        return tuple(s for s in found if not (isinstance(s, Rewrite) and s.guide == label))


def method(name: str) -> Method:
    """The method of this name.

    Raises:
        UnknownName: there is none.
    """
    if name not in METHODS:
        raise UnknownName(f"there is no unlearning method {name!r}; expected one of {', '.join(METHODS)}.")
    return METHODS[name]


def with_dictionary(setting: Candidate, name: str, site: str) -> Candidate:
    """A setting that uses a run's dictionary, or its site, instead of the benchmark's."""
    if isinstance(setting, (Features, NormMatched)):
        return replace(setting, dictionaries=(name,))
    return replace(setting, sites=(site,)) if isinstance(setting, Direction) else setting


def _said(phrase: str, label: str) -> str:
    """A phrase with a label as prompts say it: labels are parts of file names and have underscores for spaces."""
    return phrase.format(label.replace("_", " "))


def _no_edit(learned: Learned, factor: str, label: str, setting: Plain) -> Edits:
    from probe.unlearning import no_edit

    return no_edit()


def _random_direction(learned: Learned, factor: str, label: str, setting: Plain) -> Edits:
    from probe.unlearning import random_controls

    return random_controls(learned.best_sae(factor, label))


def _negative_prompt(learned: Learned, factor: str, label: str, setting: Phrase) -> Edits:
    from probe.unlearning import negative_prompt

    return negative_prompt(learned.pipe, _said(setting.phrase, label))


def _projection(name: str) -> Fit:
    def fit(learned: Learned, factor: str, label: str, setting: Direction) -> Edits:
        from probe.unlearning import lda, mean_difference

        make = {"mean_difference": mean_difference, "lda": lda}[name]
        return tuple(
            edit
            for site in setting.sites
            for edit in make(
                learned.moments(site, factor, label), site, strength=setting.strength, branch=setting.branch
            )
        )

    return fit


def _uce(learned: Learned, factor: str, label: str, setting: Rewrite) -> Edits:
    from probe.unlearning import uce

    return uce(
        learned.pipe,
        [_said(setting.phrase, label)],
        _said(setting.phrase, setting.guide),
        [_said(setting.phrase, other) for other in learned.others(factor, label)],
        lam=setting.lam,
        erase_scale=setting.erase_scale,
        tokens=setting.tokens,
    )


def _esd(learned: Learned, factor: str, label: str, setting: Tuned) -> Edits:
    from probe.unlearning import esd

    return esd(learned.pipe, _said(setting.phrase, label), setting=setting.setting, steps=learned.steps)


def _feature_edit(name: str) -> Fit:
    def fit(learned: Learned, factor: str, label: str, setting: Features) -> Edits:
        from probe.unlearning import norm_scaled, patch_replacement, saeuron

        make = {"saeuron": saeuron, "norm_scaled": norm_scaled, "patch_replacement": patch_replacement}[name]
        edits: Edits = ()
        for used in setting.dictionaries:
            dictionary = learned.dictionary(used)
            in_text = dictionary.config.site in TEXT.values()  # text has no steps
            edits += make(
                learned.scores(used, factor),
                label,
                dictionary=dictionary,
                site=dictionary.config.site,
                setting=setting.setting,
                timesteps=None if in_text else learned.timesteps,
            )
        return edits

    return fit


def _norm_matched(learned: Learned, factor: str, label: str, setting: NormMatched) -> Edits:
    import numpy as np

    from probe.unlearning import norm_matched

    edits: Edits = ()
    for used in setting.dictionaries:
        dictionary = learned.dictionary(used)
        best = int(np.asarray(learned.scores(used, factor).score(label)).mean(0).argmax())
        direction = dictionary.W_dec[best].detach()
        edits += norm_matched(learned.recorded, dictionary.config.site, direction, setting.rho, branch=setting.branch)
    return edits


def _concept_steerer(learned: Learned, factor: str, label: str, setting: TextSteering) -> Edits:
    from probe.unlearning import concept_steerer

    dictionary = learned.dictionary(setting.dictionary)
    return concept_steerer(
        learned.pipe,
        _said(setting.phrase, label),
        dictionary=dictionary,
        site=dictionary.config.site,
        strength=setting.strength,
        branch=setting.branch,
    )


def _deactivate(learned: Learned, factor: str, label: str, setting: TextFeatures) -> Edits:
    from probe.unlearning import deactivate

    dictionary = learned.dictionary(setting.dictionary)
    return deactivate(
        learned.pipe,
        [_said(setting.phrase, label)],
        [_said(setting.phrase, other) for other in learned.others(factor, label)],
        dictionary=dictionary,
        site=dictionary.config.site,
        n_features=setting.n_features,
        multiplier=setting.multiplier,
    )


METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("no_edit", "control", "the unedited model", Plain, _no_edit),
        Method(
            "random_direction", "control", "the best SAE edit's push, in a random direction", Plain, _random_direction
        ),
        Method("negative_prompt", "prompt", "the concept as negative prompt", Phrase, _negative_prompt),
        Method(
            "mean_difference",
            "direction",
            "difference of means, projected out",
            Direction,
            _projection("mean_difference"),
        ),
        Method("lda", "direction", "linear discriminant, projected out", Direction, _projection("lda")),
        Method("uce", "weights", "keys and values rewritten in closed form", Rewrite, _uce),
        Method("esd", "weights", "cross-attention fine-tuned away", Tuned, _esd),
        Method("saeuron", "sae", "features pushed below zero", Features, _feature_edit("saeuron")),
        Method("norm_scaled", "sae", "features pushed by the code's norm", Features, _feature_edit("norm_scaled")),
        Method(
            "patch_replacement",
            "sae",
            "tokens with the features overwritten",
            Features,
            _feature_edit("patch_replacement"),
        ),
        Method("norm_matched", "sae", "the best feature's direction subtracted", NormMatched, _norm_matched),
        Method("concept_steerer", "sae", "text features subtracted from prompts", TextSteering, _concept_steerer),
        Method("deactivate", "sae", "text features switched over", TextFeatures, _deactivate),
    )
}
"""Every method by name."""
