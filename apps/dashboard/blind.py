"""Blind mode: a second person scores how interpretable the features of a list are, without labels.

A rater sees pictures and maps, no prompt, number, note or label, in an order of their own. Between the features are
controls: the strongest examples of as many different features, which have nothing in common except by chance. People
find patterns in anything, so a mean score says something only beside that of the controls. How far raters agree is
Krippendorff's alpha for interval data (Hayes & Krippendorff 2007): 1 = fully, 0 = as by chance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from apps.dashboard.feature_lists import FeatureList, Item

PICTURES = 8  # of a task; a control takes one from each of so many features


def tasks(one: FeatureList, rater: str) -> list[Item | int]:
    """Items and controls (their numbers) in the rater's own order, the same whenever they come back."""
    every: list[Item | int] = [*one.items, *range(one.n_controls)]
    names = [f"control {t}" if isinstance(t, int) else f"{t.dictionary} {t.feature}" for t in every]
    places = [_seed(rater.strip(), name) for name in names]  # of each task alone, so that a new item moves no other
    return [every[i] for i in np.argsort(np.array(places, np.uint64), kind="stable")]


def is_scored(one: FeatureList, task: Item | int, rater: str) -> bool:
    """Whether a rater has done a task."""
    rater = rater.strip()
    return task in one.controls.get(rater, {}) if isinstance(task, int) else rater in task.scores


def control_features(one: FeatureList, control: int, alive: Sequence[int], n: int = PICTURES) -> list[int]:
    """Features whose strongest examples make up a control: drawn without the list's own where enough are left."""
    own = {item.feature for item in one.items}
    pool = [feature for feature in alive if feature not in own]
    pool = pool if len(pool) >= n else list(alive)
    drawn = np.random.default_rng([_seed(one.name, str(control)), control]).permutation(len(pool))[:n]
    return [pool[i] for i in drawn]


def alpha(scores: Sequence[Sequence[float | None]]) -> float:
    """Krippendorff's alpha for interval data.

    Args:
        scores: a row a rater, a column an item; None where there is no score.

    Returns:
        1 for full agreement, 0 for chance; NaN where no item has two scores, or all scores are the same.
    """
    columns = [[float(s) for s in column if s is not None] for column in zip(*scores, strict=True)]
    paired = [np.array(column) for column in columns if len(column) > 1]
    if not paired:
        return float("nan")
    values = np.concatenate(paired)
    within = sum(2 * len(c) * float(((c - c.mean()) ** 2).sum()) / (len(c) - 1) for c in paired) / len(values)
    between = 2 * len(values) * float(((values - values.mean()) ** 2).sum()) / (len(values) * (len(values) - 1))
    return 1 - within / between if between > 0 else float("nan")


def agreement(one: FeatureList) -> float:
    """``alpha`` of a list's items."""
    return alpha([[i.scores[r].score if r in i.scores else None for i in one.items] for r in one.raters])


def means(one: FeatureList) -> tuple[float | None, float | None]:
    """Mean score of the items, and of the controls."""
    own = [s.score for item in one.items for s in item.scores.values()]
    control = [s.score for by in one.controls.values() for s in by.values()]
    return (float(np.mean(own)) if own else None), (float(np.mean(control)) if control else None)


def _seed(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:7])
