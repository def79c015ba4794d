"""Did a dictionary find what is known to be there? Units of a detector against labelled concepts.

The truth is planted: every sample has a value of each factor, and a concept is one value of one factor (object = star).
A unit's score for a sample is its pooled activation (detectors.py). Everything that is chosen is chosen on training
samples, and everything that is reported is measured on others:

    AUC            probability that a sample with the concept scores higher than one of its factor without it
    F1             of "score > threshold", the threshold being the best on the training samples
    correlation    Pearson, between score and concept; over concepts: the mean max correlation
    recovered      AUC above 0.95
    units          how many units have an AUC above 0.95 on both halves

The unit of a concept is that with the highest AUC on the training samples; that of the correlation has the highest
correlation there.

With many units, one of them separates any concept a little. So the whole procedure, the choice included, is repeated
with shuffled labels. A concept counts as found where the held-out AUC of its unit is significantly above one half
(one-sided Mann-Whitney test at 5 %), and

    false-discovery rate = concepts found with shuffled labels / concepts found with the true ones

Since the choice never sees the held-out samples, units that know nothing find 5 % of the concepts, which checks the
procedure itself. Intervals are percentiles over resampled held-out samples, the choices being kept.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata

from sae.errors import EmptySelection, ShapeMismatch
from sae.evaluation.detectors import POOLINGS
from sae.evaluation.separation import auc, best_threshold, correlations, f1_score, paired_correlations, rank_test

RECOVERED_ABOVE = 0.95
SIGNIFICANCE = 0.05
_N_CANDIDATES = 8  # units kept for each concept, for ``localise``
_RESAMPLED_VALUES = 2**21


class Interval(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Concept:
    """What is known about one concept. Measured on held-out samples."""

    factor: str
    concept: str
    unit: int  # chosen on the training samples
    pooling: str  # chosen with it
    auc: float
    auc_train: float
    f1: float
    correlation: float  # of the unit chosen for its correlation
    units: int  # with an AUC above RECOVERED_ABOVE on both halves
    p_value: float
    n: int  # held-out samples with the concept
    candidates: tuple[int, ...]  # units with the highest AUC on the training samples, best first


@dataclass(frozen=True)
class Recovery:
    """What a detector found."""

    concepts: tuple[Concept, ...]
    auc: Interval  # mean over concepts
    f1: Interval
    correlation: Interval  # the mean max correlation
    recovered: Interval  # concepts with an AUC above RECOVERED_ABOVE
    units_per_concept: float  # over the recovered concepts; NaN without any
    found: int  # concepts with a significant AUC
    found_shuffled: float  # the same with shuffled labels, mean over shuffles
    recovered_shuffled: float
    false_discovery_rate: float

    def summary(self) -> dict[str, Any]:
        """Numbers only."""
        values: dict[str, Any] = {"concepts": len(self.concepts)}
        for name in ("auc", "f1", "correlation", "recovered"):
            value, low, high = getattr(self, name)
            values |= {name: value, f"{name}_low": low, f"{name}_high": high}
        for name in ("units_per_concept", "found", "found_shuffled", "recovered_shuffled", "false_discovery_rate"):
            values[name] = getattr(self, name)
        return values


def recover(
    scores: np.ndarray,
    labels: Mapping[str, Sequence[str] | np.ndarray],
    train: np.ndarray,
    *,
    shuffles: int = 20,
    resamples: int = 500,
    seed: int = 0,
) -> Recovery:
    """Match units with concepts.

    Args:
        scores: (n_poolings, n_samples, n_units), from ``detectors.pooled``.
        labels: for each factor, (n_samples,) values; "" where a sample has none.
        train: (n_samples,) bool, the samples that choices are made on.
        shuffles: repetitions with shuffled labels.
        resamples: of the held-out samples, for the intervals.
        seed: of shuffles and resamples.

    Raises:
        EmptySelection: no concept has two samples with and two without it in both halves.
        ShapeMismatch: labels and scores disagree.
    """
    n_poolings, n_samples, n_units = scores.shape
    wrong = [name for name, values in labels.items() if len(values) != n_samples]
    if wrong or len(train) != n_samples:
        raise ShapeMismatch(f"{n_samples} samples were scored; labels of {', '.join(wrong) or 'the split'} differ.")
    flat = scores.transpose(1, 0, 2).reshape(n_samples, n_poolings * n_units)
    rng = np.random.default_rng(seed)
    parts: list[_Factor] = []
    for factor, values in labels.items():
        names = np.asarray(values)
        at = names != ""
        concepts = [c for c in np.unique(names[at]) if _enough(names == c, at & (names != c), train)]
        if concepts:
            parts.append(_Factor(factor, concepts, names, flat, at & train, at & ~train, rng, shuffles))
    if not parts:
        raise EmptySelection("No concept has two samples with it and two without it in both halves: collect more.")

    found = [c for p in parts for c in p.concepts(n_units)]
    draws = [p.resampled(np.random.default_rng(seed + 1), resamples) for p in parts]
    auc, f1, correlation = (np.concatenate([d[i] for d in draws], axis=1) for i in range(3))
    null_p = np.concatenate([p.null_p for p in parts], axis=1)
    null_auc = np.concatenate([p.null_auc for p in parts], axis=1)
    significant = sum(c.p_value < SIGNIFICANCE for c in found)
    by_chance = float((null_p < SIGNIFICANCE).sum(1).mean()) if shuffles else float("nan")
    recovered = [c for c in found if c.auc > RECOVERED_ABOVE]
    return Recovery(
        concepts=tuple(found),
        auc=_interval(float(np.mean([c.auc for c in found])), auc, np.nanmean),
        f1=_interval(float(np.mean([c.f1 for c in found])), f1, np.nanmean),
        correlation=_interval(float(np.mean([c.correlation for c in found])), correlation, np.nanmean),
        recovered=_interval(len(recovered), auc > RECOVERED_ABOVE, np.sum),
        units_per_concept=float(np.mean([c.units for c in recovered])) if recovered else float("nan"),
        found=significant,
        found_shuffled=by_chance,
        recovered_shuffled=float((null_auc > RECOVERED_ABOVE).sum(1).mean()) if shuffles else float("nan"),
        false_discovery_rate=min(1.0, by_chance / significant) if significant else float("nan"),
    )


class _Factor:
    """The concepts of one factor: what was chosen for each, and what the choice is worth."""

    def __init__(
        self,
        factor: str,
        concepts: Sequence[str],
        names: np.ndarray,
        flat: np.ndarray,
        train: np.ndarray,
        held: np.ndarray,
        rng: np.random.Generator,
        shuffles: int,
    ) -> None:
        self.factor, self.names = factor, list(concepts)
        member = names[None] == np.asarray(concepts)[:, None]
        self._train, self._held = member[:, train], member[:, held]  # (n_concepts, n)
        fit, check = flat[train], flat[held]
        ranks, ranks_held = rankdata(fit, axis=0), rankdata(check, axis=0)
        self.auc_train, self._auc_held = auc(ranks, self._train), auc(ranks_held, self._held)
        self.column = self.auc_train.argmax(1)
        self.by_correlation = correlations(fit, self._train).argmax(1)
        self.auc, self.p = rank_test(ranks_held[:, self.column], self._held.T)
        self.x, self.x_correlation = check[:, self.column], check[:, self.by_correlation]
        self.threshold = np.array([best_threshold(fit[:, c], m) for c, m in zip(self.column, self._train, strict=True)])
        null = [self._null(ranks, ranks_held, rng) for _ in range(shuffles)]
        self.null_auc = np.array([a for a, _ in null]).reshape(shuffles, len(concepts))
        self.null_p = np.array([p for _, p in null]).reshape(shuffles, len(concepts))

    def _null(
        self, ranks: np.ndarray, ranks_held: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """AUCs and p-values of the whole procedure with labels that mean nothing."""
        train = self._train[:, rng.permutation(self._train.shape[1])]
        held = self._held[:, rng.permutation(self._held.shape[1])]
        return rank_test(ranks_held[:, auc(ranks, train).argmax(1)], held.T)

    def concepts(self, n_units: int) -> list[Concept]:
        """What is reported of each."""
        f1 = f1_score(self.x > self.threshold, self._held.T)
        correlation = paired_correlations(self.x_correlation, self._held.T)
        both = np.minimum(self.auc_train, self._auc_held) > RECOVERED_ABOVE
        found = []
        for i, name in enumerate(self.names):
            best = np.argsort(-self.auc_train[i], kind="stable") % n_units
            candidates = tuple(int(u) for u in dict.fromkeys(best.tolist()))[:_N_CANDIDATES]
            found.append(
                Concept(
                    factor=self.factor,
                    concept=str(name),
                    unit=int(self.column[i] % n_units),
                    pooling=POOLINGS[int(self.column[i] // n_units)],
                    auc=float(self.auc[i]),
                    auc_train=float(self.auc_train[i, self.column[i]]),
                    f1=float(f1[i]),
                    correlation=float(correlation[i]),
                    units=len(np.unique(np.nonzero(both[i])[0] % n_units)),
                    p_value=float(self.p[i]),
                    n=int(self._held[i].sum()),
                    candidates=candidates,
                )
            )
        return found

    def resampled(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """AUC, F1 and correlation of each concept, each (n, n_concepts), over resampled held-out samples."""
        on = self.x > self.threshold
        n_at_once = max(1, _RESAMPLED_VALUES // self.x.size)
        rows = []
        for start in range(0, n, n_at_once):
            at = rng.integers(len(self.x), size=(min(n_at_once, n - start), len(self.x)))
            member = self._held.T[at]
            rows.append((rank_test(rankdata(self.x[at], axis=1), member)[0], f1_score(on[at], member),
                         paired_correlations(self.x_correlation[at], member)))  # fmt: skip
        first, second, third = zip(*rows, strict=True)
        return np.concatenate(first), np.concatenate(second), np.concatenate(third)


def _enough(inside: np.ndarray, outside: np.ndarray, train: np.ndarray) -> bool:
    return all((group & half).sum() >= 2 for group in (inside, outside) for half in (train, ~train))


def _interval(value: float, draws: np.ndarray, reduce: Callable[..., np.ndarray]) -> Interval:
    """A value with percentiles over (n, n_concepts) draws, each reduced over concepts."""
    low, high = np.quantile(reduce(draws, axis=1), (0.025, 0.975))
    return Interval(float(value), float(low), float(high))
