"""The dose-response curve of a push: what the judge sees at each strength, with intervals and a test for a trend.

For each image i and strength s, beside the unedited image of the same prompt and seed:

    target(s)       the judge's probability of the concept
    same_factor(s)  probability of the labels of its factor that neither are the concept nor show in the unedited image
    kept_f(s)       share of images whose label of another factor f is still that of the unedited image
    artifacts(s)    share of images that the judge calls none of the known things
    change(s)       mean absolute change of pixels, in [0, 1]
    gain(s)         target(s) under the push minus target(s) under random directions of equal norm, image by image

Intervals are bootstrap percentiles. Where prompts share seeds both are resampled, and an image weighs the product of
both counts (the pigeonhole bootstrap, Owen 2007); else images are resampled. The artifact rate has a Wilson interval,
because a bootstrap of no artifact at all has no width.

Saturation, upwards: the smallest s > 0 whose target is not below the interval of the largest target over s > 0, if that
one is above the interval of the unedited model; downwards the same with signs turned. Artifact limit: the smallest |s|
on a side at which the artifact rate exceeds the upper end of the unedited rate. Between the two a push does all that it
can do, at no cost that the judge sees.

Trend: for each image Spearman's correlation of target(s) with s, averaged over images; 0 where the target never moves.
Null: the strengths of each image shuffled (Page's trend test, 1963, by permutation).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.stats import rankdata

from apps.measurement import Interval, wilson

if TYPE_CHECKING:
    from probe.canvas import Verdict

Columns = Mapping[str, np.ndarray]
"""Measures of N images, each (N,) float64."""


class Unedited(NamedTuple):
    """The unedited images and what the judge sees in them; without a judge the verdict is None."""

    images: np.ndarray
    verdict: Verdict | None


def columns(images: np.ndarray, verdict: Verdict | None, before: Unedited, concept: tuple[str, str] | None) -> Columns:
    """Measures of each image of one condition.

    Args:
        images: uint8 (N, H, W, 3), at one strength.
        verdict: of the judge; None without one.
        before: the same prompts and seeds unedited.
        concept: (factor, label) that is steered; None to leave out what needs one.
    """
    from probe.canvas import FACTORS
    from probe.unlearning.evaluate import pixel_change

    found: dict[str, np.ndarray] = {"change": pixel_change(before.images, images)}
    if verdict is None or before.verdict is None:
        return found
    found["artifacts"] = np.asarray(verdict.is_artifact, np.float64)
    for factor in verdict.probs:
        if concept is None or factor != concept[0]:
            same = np.asarray(verdict.labels(factor)) == np.asarray(before.verdict.labels(factor))
            found[f"kept_{factor}"] = same.astype(np.float64)
    if concept is not None:
        factor, label = concept
        names = FACTORS[factor]
        probs = np.asarray(verdict.probs[factor], np.float64)
        shown = np.asarray([names.index(str(name)) for name in before.verdict.labels(factor)])
        target = probs[:, names.index(label)]
        found["target"] = target
        rest = probs.copy()
        rest[np.arange(len(rest)), shown] = 0.0
        rest[:, names.index(label)] = 0.0
        found["same_factor"] = rest.sum(1)
    return found


class Resampled:
    """Bootstrap weights of N images, the same for every condition, so that differences are paired.

    Args:
        prompts, seeds: N of each.
        n_boot: replicates.
        seed: of the draws.
    """

    def __init__(self, prompts: Sequence[str], seeds: Sequence[int], *, n_boot: int = 2000, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        crossed = len(set(seeds)) < len(seeds) and len(set(prompts)) < len(prompts)
        units = (prompts, seeds) if crossed else (range(len(prompts)),)
        self.weights = np.ones((n_boot, len(prompts)))
        for unit in units:
            names, of = np.unique(np.asarray(unit), return_inverse=True)
            if len(names) > 1:
                self.weights *= rng.multinomial(len(names), np.full(len(names), 1 / len(names)), n_boot)[:, of]

    def mean(self, values: np.ndarray) -> Interval:
        """Mean with its 95 % interval."""
        total = self.weights.sum(1)
        drawn = (self.weights @ values)[total > 0] / total[total > 0]
        low, high = np.quantile(drawn, (0.025, 0.975))
        return Interval(float(values.mean()), float(low), float(high))


def response_row(found: Columns, against: Columns | None, resampled: Resampled, rows: np.ndarray) -> dict[str, Any]:
    """One strength of one group of images: every measure with its interval.

    Args:
        found: measures of all images at this strength.
        against: the same under random directions, for ``gain``; None for the control's own row.
        resampled: of the group's images.
        rows: which images are the group's.
    """
    row: dict[str, Any] = {"n": len(rows)}
    for name, values in found.items():
        part = values[rows]
        interval = wilson(int(part.sum()), len(part)) if name == "artifacts" else resampled.mean(part)
        row |= _named(name, interval)
    if against is not None and "target" in found:
        row |= _named("gain", resampled.mean((found["target"] - against["target"])[rows]))
    return row


def saturation(rows: Sequence[Mapping[str, Any]], side: int) -> float | None:
    """The strength from which more does not help; None if the push does nothing on this side.

    Args:
        rows: of one push and group, with ``strength`` and ``target``; the unedited one among them.
        side: 1 for upwards, -1 for downwards.
    """
    unedited = next(row for row in rows if row["strength"] == 0)
    pushed = [row for row in rows if row["strength"] * side > 0]
    if not pushed or "target" not in unedited:
        return None
    best = max(pushed, key=lambda row: side * row["target"])
    near, far = ("target_low", "target_high") if side > 0 else ("target_high", "target_low")
    if not side * best[near] > side * unedited[far]:
        return None
    enough = [row["strength"] for row in pushed if side * row["target"] >= side * best[near]]
    return min(enough, key=abs)


def artifact_limit(rows: Sequence[Mapping[str, Any]], side: int) -> float | None:
    """The smallest strength on a side with more artifacts than the unedited model may have; None if there is none."""
    unedited = next(row for row in rows if row["strength"] == 0)
    beyond = [
        row["strength"]
        for row in rows
        if row["strength"] * side > 0 and row.get("artifacts", 0.0) > unedited.get("artifacts_high", 1.0)
    ]
    return min(beyond, key=abs) if beyond else None


class Trend(NamedTuple):
    """Spearman's correlation with the strength, mean over images, and its one-sided p-value."""

    rho: float
    p: float


def trend(values: np.ndarray, strengths: Sequence[float], *, n_shuffles: int = 2000, seed: int = 0) -> Trend:
    """Does a measure rise with the strength?

    Args:
        values: (n_images, n_strengths).
        strengths: ascending.
        n_shuffles: of the null; the smallest p-value is 1 / (n_shuffles + 1).
        seed: of the shuffles.
    """
    ranks = rankdata(np.round(values, 6), axis=1)  # differences in the last bits are no response
    ranks -= ranks.mean(1, keepdims=True)
    dose = rankdata(strengths) - (len(strengths) + 1) / 2
    scale = np.sqrt((ranks**2).sum(1) * (dose**2).sum())
    unit = np.divide(ranks, scale[:, None], out=np.zeros_like(ranks), where=scale[:, None] > 0)
    rng = np.random.default_rng(seed)
    rho = float((unit @ dose).mean())
    null = np.array([float((rng.permuted(unit, axis=1) @ dose).mean()) for _ in range(n_shuffles)])
    return Trend(rho, float((1 + (null >= rho - 1e-12).sum()) / (n_shuffles + 1)))


def _named(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
