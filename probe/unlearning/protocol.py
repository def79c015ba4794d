"""Scores of unlearning: UnlearnCanvas's protocol (Zhang et al. 2024, arXiv 2402.11846) and what it lacks.

A grid of prompts crosses two domains, objects and styles. The target is one label of one domain; "in-domain"
is that domain and "cross-domain" the other. For every image the judge names one label of each domain.
acc_d(l) is the share of the images prompted with label l of domain d, over all labels of the other domain and
all seeds, that are judged to be l.

    UA    = 1 - acc_in(target)                               the target is gone from images that ask for it
    IRA   = mean over the other labels l of the target's domain of acc_in(l)
    CRA   = mean over the labels m of the other domain of acc_cross(m)

In CRA the images that ask for the target count too (a forgotten style must still leave the object);
``cra_retain`` leaves them out. UnlearnCanvas's own classifier script averages over the same images. Over
targets, each score is averaged with equal weights.

None of these sees a wrecked picture: noise has UA 1. Hence, with a judge that flags images which are none of
the known things:

    artifacts         share of flagged images among those that ask for the target
    artifacts_retain  the same among all others
    ua_clean          share of the target's images that are judged another label and are not flagged
    change_retain     mean absolute change of pixels, in [0, 1], against the unedited model at the same seed,
                      over prompts that do not ask for the target: how much moved that should not
    change_target     the same for the target's prompts

Intervals: prompts (within each in-domain label) and seeds are resampled independently and an image weighs the
product of both counts, the pigeonhole bootstrap (Owen 2007), which respects that images share prompts and
seeds; percentile intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from probe.errors import InvalidTable, UnknownConcept

METRICS = (
    "ua",
    "ira",
    "cra",
    "artifacts",
    "artifacts_retain",
    "ua_clean",
    "cra_retain",
    "change_retain",
    "change_target",
)
_MIN_RESAMPLED = 2  # a single prompt or seed cannot be resampled


class Interval(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Predictions:
    """What a judge saw in N images.

    Attributes:
        labels: for each factor, the N judged labels.
        artifact: (N,) bool, True where an image is none of the known things.
    """

    labels: Mapping[str, Sequence[str]]
    artifact: np.ndarray

    @classmethod
    def of(cls, verdict: Any, factors: Sequence[str]) -> Predictions:
        """From a judge's verdict: ``labels(factor)`` and ``is_artifact``."""
        return cls(
            {factor: tuple(map(str, verdict.labels(factor))) for factor in factors},
            np.asarray(verdict.is_artifact, bool),
        )


@dataclass(frozen=True)
class UnlearnScores:
    """Scores of one target, or of an average over targets.

    Attributes:
        factor: the target's domain.
        target: its label; ``"average"`` for an average.
        values: for each name in ``METRICS``, value and interval; changes are absent where no unedited images
            were given.
        replicates: for each name, the bootstrap replicates.
        n_images: images that were scored.
    """

    factor: str
    target: str
    values: Mapping[str, Interval]
    replicates: Mapping[str, np.ndarray]
    n_images: int

    def __getitem__(self, metric: str) -> Interval:
        return self.values[metric]

    def row(self) -> dict[str, Any]:
        """JSON values: each metric, with ``_low`` and ``_high``."""
        row: dict[str, Any] = {"factor": self.factor, "target": self.target, "n_images": self.n_images}
        for name, interval in self.values.items():
            row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        return row


def score(
    factor: str,
    target: str | Sequence[str],
    prompted: Mapping[str, Sequence[str]],
    judged: Predictions,
    *,
    cross: str,
    prompts: Sequence[str],
    seeds: Sequence[int],
    change: np.ndarray | None = None,
    n_boot: int = 1000,
    rng_seed: int = 0,
) -> UnlearnScores:
    """Score one target.

    Args:
        factor: the target's domain.
        target: the label that was unlearned, or several: UA is then over the images of any, IRA over the labels left.
        prompted: for each factor, the N prompted labels.
        judged: what the judge saw.
        cross: the other domain.
        prompts: N prompts, the unit of resampling together with the seed.
        seeds: N seeds.
        change: (N,) same-seed change of each image against the unedited model, in [0, 1]; None if not
            measured.
        n_boot: bootstrap replicates; 0 for none (intervals are then NaN).
        rng_seed: of the bootstrap. The same seed and grid give the same draws for every target, so replicates
            may be averaged.

    Raises:
        UnknownConcept: the target was never prompted, or nothing else was.
        InvalidTable: lengths differ, or a factor is missing.
    """
    n = len(prompts)
    own, other = _column(prompted, factor, n, "prompted"), _column(prompted, cross, n, "prompted")
    own_hit = own == _column(judged.labels, factor, n, "judged")
    other_hit = other == _column(judged.labels, cross, n, "judged")
    artifact = np.asarray(judged.artifact, bool)
    if artifact.shape != (n,) or len(seeds) != n or (change is not None and np.shape(change) != (n,)):
        raise InvalidTable(f"score: artifact, seeds and change must have {n} values, one for each prompt.")
    targets = [target] if isinstance(target, str) else list(target)
    is_target = np.isin(own, targets)
    if not targets or not set(targets) <= set(own.tolist()) or is_target.all():
        raise UnknownConcept(
            f"score: {factor} {' and '.join(map(repr, targets))} must be prompted in some images and absent from "
            f"others; the grid has {', '.join(sorted(set(own.tolist())))}."
        )
    kept = ~is_target

    def evaluate(weights: np.ndarray) -> dict[str, np.ndarray]:
        """All metrics for (R, N) image weights: R values each."""
        found = {
            "ua": 1.0 - _mean(weights, own_hit, is_target),
            "ira": _macro(weights, own_hit, own, kept),
            "cra": _macro(weights, other_hit, other, np.ones(n, bool)),
            "artifacts": _mean(weights, artifact, is_target),
            "artifacts_retain": _mean(weights, artifact, kept),
            "ua_clean": _mean(weights, ~own_hit & ~artifact, is_target),
            "cra_retain": _macro(weights, other_hit, other, kept),
        }
        if change is not None:
            found |= {
                "change_retain": _mean(weights, np.asarray(change, float), kept),
                "change_target": _mean(weights, np.asarray(change, float), is_target),
            }
        return found

    point = evaluate(np.ones((1, n)))
    draws = evaluate(_bootstrap_weights(own, prompts, seeds, n_boot, rng_seed)) if n_boot else {}
    values = {name: _interval(float(value[0]), draws.get(name)) for name, value in point.items()}
    return UnlearnScores(factor, " + ".join(targets), values, draws, n)


def average(scores: Sequence[UnlearnScores]) -> UnlearnScores:
    """Mean over targets of one domain, with equal weights; intervals from the mean of the replicates.

    Raises:
        InvalidTable: no scores, or of several domains.
    """
    factors = {item.factor for item in scores}
    if len(factors) != 1:
        raise InvalidTable(f"average: expected scores of one domain, got {', '.join(sorted(factors)) or 'none'}.")
    names = [name for name in METRICS if all(name in item.values for item in scores)]
    draws = {
        name: np.mean([item.replicates[name] for item in scores], axis=0)
        for name in names
        if all(name in item.replicates for item in scores)
    }
    values = {
        name: _interval(float(np.mean([item.values[name].value for item in scores])), draws.get(name)) for name in names
    }
    return UnlearnScores(factors.pop(), "average", values, draws, sum(item.n_images for item in scores))


def _column(table: Mapping[str, Sequence[str]], factor: str, n: int, what: str) -> np.ndarray:
    if factor not in table:
        raise InvalidTable(f"score: no {what} labels of {factor!r}; found {', '.join(table) or 'none'}.")
    column = np.asarray([str(label) for label in table[factor]])
    if len(column) != n:
        raise InvalidTable(f"score: {len(column)} {what} labels of {factor!r} for {n} prompts.")
    return column


def _mean(weights: np.ndarray, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Weighted mean of values over rows, for each of R weightings; NaN where the weight is 0."""
    total = weights[:, rows].sum(1)
    found = weights[:, rows] @ values[rows].astype(float)
    return np.divide(found, total, out=np.full(len(weights), np.nan), where=total > 0)


def _macro(weights: np.ndarray, hit: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Mean over labels of the weighted accuracy on their rows; a label without weight in a replicate is left
    out of it.
    """
    accuracies = np.stack(
        [_mean(weights, hit, rows & (labels == label)) for label in sorted(set(labels[rows].tolist()))]
    )
    counted = ~np.isnan(accuracies)
    return np.where(counted, accuracies, 0.0).sum(0) / np.maximum(counted.sum(0), 1)


def _bootstrap_weights(
    labels: np.ndarray, prompts: Sequence[str], seeds: Sequence[int], n_boot: int, rng_seed: int
) -> np.ndarray:
    """(n_boot, N) weights: prompt count within the label times seed count."""
    rng = np.random.default_rng(rng_seed)
    weights = np.ones((n_boot, len(labels)))
    seed_names, seed_of = np.unique(np.asarray(seeds), return_inverse=True)
    if len(seed_names) >= _MIN_RESAMPLED:
        weights *= rng.multinomial(len(seed_names), np.full(len(seed_names), 1 / len(seed_names)), n_boot)[:, seed_of]
    for label in sorted(set(labels.tolist())):
        rows = np.flatnonzero(labels == label)
        names, prompt_of = np.unique(np.asarray([prompts[int(i)] for i in rows]), return_inverse=True)
        if len(names) >= _MIN_RESAMPLED:
            counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), n_boot)
            weights[:, rows] *= counts[:, prompt_of]
    return weights


def _interval(value: float, draws: np.ndarray | None) -> Interval:
    if draws is None or not len(draws) or np.isnan(draws).all():
        return Interval(value, float("nan"), float("nan"))
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Interval(value, float(low), float(high))
