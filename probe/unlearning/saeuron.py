"""SAeUron: unlearn a concept by pushing the few features that are specific to it (Cywinski & Deja 2025, arXiv
2501.18052).

With f_i(x_t) the code of feature i and D_c the prompts of concept c, per denoising step t:

    (S0)  mu_i(t, D)     mean of f_i over the prompts in D and all tokens, conditional branch
    (S1)  score_i(t, c)  = mu_i(t, D_c) / sum_j mu_j(t, D_c)  -  mu_i(t, D_rest) / sum_j mu_j(t, D_rest)
          F_c(t)         = the n features with the largest positive score, selected again at each step from
                           those with mu_i(t, D_c) >= m mu_i(t, D_c') for every other concept c'
    (S2)  z_i' = gamma mu_i(t, D_c) z_i   for i in F_c(t) where z_i > mu_i(t, D_all),   else z_i
    (S3)  x' = x + (z' - z) W_dec

gamma < 0; m = 0 in the paper. With m above 1 a feature that two concepts share is left alone, and so is a site that
does not know the concept, so that many sites can be edited at once. The paper edits both guidance branches, uses n = 1
and gamma = -1 for styles, and searches n and gamma for objects on validation prompts (S4; see ``evaluate.search``).
Its published code writes back x_hat - x with the wrong sign; here an edit that changes nothing is the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from probe.capture.sites import Site
from probe.errors import InvalidRequest, UnknownConcept
from probe.interventions.dictionary import Dictionary, as_dictionary
from probe.interventions.features import ScaleFeatures
from probe.interventions.intervention import Intervention


class ConceptScores(Protocol):
    """What SAeUron needs to know of a dictionary and a labelled factor; arrays may be numpy or torch.

    ``concepts`` are n names; ``mu`` is (n_steps, n, d_sae), (S0) for each concept; ``mean_activation`` is
    (n_steps, d_sae), its mean over all concepts.
    """

    @property
    def concepts(self) -> Sequence[str]: ...
    @property
    def mu(self) -> Any: ...
    @property
    def mean_activation(self) -> Any: ...
    def score(self, concept: str) -> Any:
        """(S1), (n_steps, d_sae)."""
        ...


@dataclass(frozen=True)
class Setting:
    """Hyper-parameters.

    Attributes:
        n_features: features selected at each step, at least 1.
        multiplier: gamma; negative pushes away, 0 ablates.
        branch: guidance branches to edit (see ``Intervention``).
        relative: whether gamma is multiplied by the feature's mean, as in (S2); False makes gamma the
            multiplier itself, which does not depend on the scale of the activations.
        steps: steps at which the edit applies; None for all.
        margin: m of (S1), at least 0.
    """

    n_features: int = 1
    multiplier: float = -1.0
    branch: str = "both"
    relative: bool = True
    steps: tuple[int, ...] | None = None
    margin: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.n_features, int) or self.n_features < 1:
            raise InvalidRequest(f"saeuron: n_features must be an integer of at least 1, got {self.n_features!r}.")
        if not np.isfinite(self.multiplier):
            raise InvalidRequest(f"saeuron: multiplier must be finite, got {self.multiplier!r}.")
        if not 0 <= self.margin < np.inf:
            raise InvalidRequest(f"saeuron: margin must be finite and at least 0, got {self.margin!r}.")


STYLES = Setting(n_features=1, multiplier=-1.0)
"""The paper's setting for styles."""
OBJECTS = Setting(n_features=10, multiplier=-20.0)
"""A middle value of the paper's search for objects (1 to 30 features, gamma -5 to -30); search on validation
prompts.
"""


def saeuron(
    scores: ConceptScores,
    concept: str | Sequence[str],
    *,
    dictionary: Dictionary,
    site: Site | str,
    setting: Setting = STYLES,
    timesteps: Sequence[int] | None = None,
) -> tuple[Intervention, ...]:
    """The edit that unlearns one concept, or several at once.

    Args:
        scores: concept scores of the dictionary's features.
        concept: one of ``scores.concepts``, or several; a feature selected for several takes the strongest
            multiplier.
        dictionary: the TopK autoencoder that was scored; held as plain tensors, so that a saved recipe
            replays bit for bit.
        site: where it was trained.
        setting: hyper-parameters.
        timesteps: the scheduler's timestep at each step of the scores; lets the edit run at another step
            count.

    Returns:
        One intervention, with per-step features, multipliers and thresholds.

    Raises:
        UnknownConcept: the concept was not scored.
        InvalidRequest: scores and dictionary do not fit together.
    """
    tensors = as_dictionary(dictionary)
    found = select_features(scores, concept, tensors, setting, timesteps)
    op = ScaleFeatures(tensors, *found, None if timesteps is None else tuple(int(t) for t in timesteps))
    return (Intervention(site, op, steps=setting.steps, branch=setting.branch),)


class Selection(NamedTuple):
    """Features of a concept at each step: tables (n_steps, m), padded with feature -1."""

    features: torch.Tensor
    multipliers: torch.Tensor
    thresholds: torch.Tensor


def select_features(
    scores: ConceptScores,
    concept: str | Sequence[str],
    dictionary: Dictionary,
    setting: Setting,
    timesteps: Sequence[int] | None = None,
) -> Selection:
    """F_c(t), gamma (times mu_i(t, D_c) if the setting is relative), and the thresholds mu_i(t, D_all).

    Arguments and errors as ``saeuron``.
    """
    names = [str(name) for name in scores.concepts]
    wanted = [concept] if isinstance(concept, str) else list(concept)
    for name in wanted:
        if name not in names:
            raise UnknownConcept(f"saeuron: concept {name!r} was not scored; expected one of {', '.join(names)}.")
    if not wanted:
        raise InvalidRequest("saeuron: no concept was given.")
    mu, mean = _array(scores.mu), _array(scores.mean_activation)
    n_steps, _, d_sae = mu.shape
    if mean.shape != (n_steps, d_sae) or d_sae != dictionary.W_dec.shape[0]:
        raise InvalidRequest(
            f"saeuron: mu has shape {mu.shape}, mean_activation {mean.shape}, and the dictionary "
            f"{dictionary.W_dec.shape[0]} features; expected (n_steps, n_concepts, d_sae) and (n_steps, d_sae) "
            "of this dictionary."
        )
    steps = getattr(scores, "steps", None)
    if timesteps is None and steps is not None and [int(step) for step in steps] != list(range(n_steps)):
        raise InvalidRequest(
            f"saeuron: the scores are of the steps {list(steps)}, not all from 0; give the timesteps of these steps, "
            "so that each is applied where it was measured."
        )
    if setting.n_features > d_sae:
        raise InvalidRequest(f"saeuron: {setting.n_features} features were asked of a dictionary with {d_sae}.")
    others = [i for i, name in enumerate(names) if name not in wanted]
    rival = setting.margin * mu[:, others].max(1, initial=0.0)
    gains: list[dict[int, float]] = [{} for _ in range(n_steps)]
    for name in wanted:
        own = mu[:, names.index(name)]
        score = np.where(own >= rival, _array(scores.score(name)), -np.inf)
        for step in range(n_steps):
            # A stable sort: equal scores are taken in the order of the features, on every machine.
            for feature in np.argsort(-score[step], kind="stable")[: setting.n_features].tolist():
                if score[step, feature] <= 0:
                    continue  # not more active for the concept than for the rest: pushing it would only do harm
                gain = setting.multiplier * (float(own[step, feature]) if setting.relative else 1.0)
                if abs(gain) >= abs(gains[step].get(feature, 0.0)):
                    gains[step][feature] = gain
    width = max(1, *(len(row) for row in gains))
    features = torch.full((n_steps, width), -1, dtype=torch.int64)
    multipliers, thresholds = torch.ones(n_steps, width), torch.zeros(n_steps, width)
    for step, row in enumerate(gains):
        for column, (feature, gain) in enumerate(sorted(row.items())):
            features[step, column] = feature
            multipliers[step, column] = gain
            thresholds[step, column] = float(mean[step, feature])
    return Selection(features, multipliers, thresholds)


def _array(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
    return np.asarray(values, dtype=np.float64)
