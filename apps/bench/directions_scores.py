"""Scores of directions: how well one reads a concept, and what it does to images. Numbers in, numbers out.

A candidate is one of a finder's vectors with a sign. Whoever has more candidates finds a better one by chance, so all
choosing is done on other samples than the scoring: the *training* store picks the candidate that reads a concept best,
the *test* store scores it; the first half of the prompts picks the candidate and strength whose edit does most for the
least side effect, the other half scores it. Random directions go through the same choice, and so do shuffled labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import mannwhitneyu, rankdata

from apps.measurement import bootstrap_mean

if TYPE_CHECKING:
    from probe.canvas import Verdict

Row = dict[str, Any]


@dataclass(frozen=True)
class Readings:
    """Rows of a site and the labels of their samples.

    Attributes:
        rows: (n_steps, n, d).
        labels: for each factor, (n,) values.
    """

    rows: np.ndarray
    labels: Mapping[str, np.ndarray]

    def shuffled(self, seed: int) -> Readings:
        """The same rows with the samples' labels in another order."""
        order = np.random.default_rng([seed, self.rows.shape[1]]).permutation(self.rows.shape[1])
        return Readings(self.rows, {factor: values[order] for factor, values in self.labels.items()})

    def auc(self, vectors: np.ndarray, factor: str, value: str) -> np.ndarray:
        """Area under the ROC curve of each vector's products, (k,), mean over steps.

        Args:
            vectors: (n_steps, k, d).
            factor, value: the concept.
        """
        positive = self.labels[factor] == value
        ranks = rankdata(np.einsum("snd,skd->skn", self.rows, vectors), axis=-1)
        n, m = positive.sum(), (~positive).sum()
        return ((ranks[..., positive].sum(-1) - n * (n + 1) / 2) / (n * m)).mean(0)

    def scores(self, vector: np.ndarray) -> np.ndarray:
        """One score a sample (n,): products with (n_steps, d), standardised at each step, mean over steps."""
        products = np.einsum("snd,sd->sn", self.rows, vector)
        centred = products - products.mean(1, keepdims=True)
        return (centred / products.std(1, keepdims=True).clip(1e-12)).mean(0)


def best_reader(train: Readings, vectors: np.ndarray, factor: str, value: str) -> tuple[int, float]:
    """(component, sign) that reads a concept best in the training rows."""
    found = train.auc(vectors, factor, value)
    component = int(abs(found - 0.5).argmax())
    return component, 1.0 if found[component] >= 0.5 else -1.0


def reading_row(test: Readings, vector: np.ndarray, factor: str, value: str) -> Row:
    """AUC in the test rows with a 95 % interval (Hanley and McNeil 1982), and p of a one-sided Mann-Whitney test."""
    from probe.directions.finder import auc

    positive = test.labels[factor] == value
    scores = test.scores(vector)
    found, error = auc(scores[positive], scores[~positive])
    low, high = max(0.0, found - 1.96 * error), min(1.0, found + 1.96 * error)
    return {
        "auc": found,
        "auc_low": low,
        "auc_high": high,
        "p": float(mannwhitneyu(scores[positive], scores[~positive], alternative="greater").pvalue),
    }


@dataclass(frozen=True)
class Outcome:
    """What the judge sees in the images of the prompts under one edit.

    Attributes:
        probs: for each concept (factor, value), (n,) its probability.
        labels: for each factor, (n,) the most probable value.
        artifact: (n,) whether nothing known is shown.
    """

    probs: Mapping[tuple[str, str], np.ndarray]
    labels: Mapping[str, np.ndarray]
    artifact: np.ndarray

    @classmethod
    def of(cls, verdict: Verdict, concepts: Sequence[tuple[str, str]]) -> Outcome:
        """From the judge's verdict."""
        from probe.canvas import FACTORS

        probs = {(f, v): verdict.probs[f][:, FACTORS[f].index(v)].astype(float) for f, v in concepts}
        return cls(probs, {f: verdict.labels(f) for f in FACTORS}, verdict.is_artifact.astype(float))

    def gain(self, plain: Outcome, concept: tuple[str, str]) -> np.ndarray:
        """(n,) rise of the concept's probability."""
        return self.probs[concept] - plain.probs[concept]

    def side_effect(self, plain: Outcome, concept: tuple[str, str]) -> np.ndarray:
        """(n,) share of the other factors whose value changed; 1 for an image that became an artifact."""
        others = [f for f in self.labels if f != concept[0]]
        changed = np.mean([self.labels[f] != plain.labels[f] for f in others], axis=0)
        return np.where(self.artifact > plain.artifact, 1.0, changed)


def effect_row(
    plain: Outcome, edited: Mapping[tuple[int, float], Outcome], concept: tuple[str, str], chosen_on: np.ndarray
) -> Row:
    """The best edit of some, chosen on one half of the prompts by gain less side effect, scored on the other.

    Args:
        plain: without an edit.
        edited: by (component, signed strength).
        concept: (factor, value).
        chosen_on: (n,) bool, the prompts that choose.
    """

    def worth(outcome: Outcome) -> float:
        difference = outcome.gain(plain, concept) - outcome.side_effect(plain, concept)
        return float(difference[chosen_on].mean())

    component, strength = max(edited, key=lambda key: worth(edited[key]))
    best = edited[component, strength]
    gain = bootstrap_mean(best.gain(plain, concept)[~chosen_on])
    off = bootstrap_mean(best.side_effect(plain, concept)[~chosen_on])
    return {
        "component": component,
        "strength": strength,
        "gain": gain.value,
        "gain_low": gain.low,
        "gain_high": gain.high,
        "gain_per_unit": gain.value / abs(strength),
        "off": off.value,
        "off_low": off.low,
        "off_high": off.high,
    }
