"""Which feature of another dictionary is the same? Two answers, each beside what chance gives. No Streamlit, no model.

    cosine       of the decoder rows: what the features write. Only at one site, where rows have the same coordinates.
    correlation  Pearson, of the largest activation in each sample, over the samples that both bundles were made from
                 (same prompt and seed): when the features are on. It needs neither the same site nor the same model.

The two can disagree: features may write the same and answer to different images, or be on together and write different
things. With many features the best of them is always somewhat alike, so each has a null: for the cosine the largest of
D random directions in d dimensions, near sqrt(2 ln D / d); for the correlation the best match of the feature's own
values dealt to other samples, the largest of ``SHUFFLES`` deals. Row-by-row correlations over a whole dictionary, and
one-to-one pairs, are ``denoscope sae compare`` (sae/evaluation/stability.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SHUFFLES = 20  # the null is then passed by chance once in 21 times
LEAST_SAMPLES = 8  # a correlation over fewer says nothing
MOST_SAMPLES = 4096  # spread over the common ones; a correlation's error is then below 0.02

Key = tuple[str, int]
"""Prompt and seed of a sample."""


@dataclass(frozen=True, eq=False)
class Matches:
    """Every feature of a dictionary beside one feature of another.

    Attributes:
        cosine: (d_sae,) in [-1, 1]; None where decoder rows cannot be compared.
        cosine_null: the largest that random directions would reach.
        correlation: (d_sae,) in [-1, 1]; None where too few samples are common.
        correlation_null: the largest of the shuffled values.
        n_samples: that the correlation is over.
        reason: why one of them is missing; empty if none is.
    """

    cosine: np.ndarray | None
    cosine_null: float
    correlation: np.ndarray | None
    correlation_null: float
    n_samples: int
    reason: str = ""

    def best(self, by: str) -> int | None:
        """The feature most alike by "cosine" or "correlation"; None where that is missing or finds nothing."""
        values = getattr(self, by)
        return None if values is None or not np.isfinite(values).any() else int(np.nanargmax(values))

    def beats_null(self, by: str) -> bool:
        """Whether the best match is more alike than chance would make it."""
        at = self.best(by)
        return at is not None and float(getattr(self, by)[at]) > getattr(self, f"{by}_null")

    def ranked(self, n: int) -> list[int]:
        """The first n features by either measure, best first: the two orders by turns, without repeats."""
        orders = [_order(values) for values in (self.cosine, self.correlation) if values is not None]
        turns = [feature for pair in zip(*orders, strict=True) for feature in pair]
        return list(dict.fromkeys(turns))[:n]

    def rank(self, by: str, feature: int) -> int | None:
        """Place of a feature by a measure, 1 = most alike."""
        values = getattr(self, by)
        if values is None or not np.isfinite(values[feature]):
            return None
        return 1 + int((values > values[feature]).sum())


def match(
    row: np.ndarray | None,
    decoder: np.ndarray | None,
    values: np.ndarray | None,
    pooled: np.ndarray | None,
    *,
    without: int | None = None,
    reason: str = "",
) -> Matches:
    """Compares one feature with all features of another dictionary.

    Args:
        row: (d,) its decoder row, or None.
        decoder: (d_sae, d) of the other dictionary, or None.
        values: (n,) its largest activation in each common sample, or None.
        pooled: (d_sae, n) those of the other dictionary, or None.
        without: a feature to leave out: itself, in its own dictionary.
        reason: why something is None.
    """
    cosine = correlation = None
    cosine_null = correlation_null = float("nan")
    if row is not None and decoder is not None:
        cosine = _without(cosines(row, decoder), without)
        cosine_null = chance_cosine(*decoder.shape)
    if values is not None and pooled is not None:
        correlation = _without(correlations(values[None], pooled)[0], without)
        rng = np.random.default_rng(0)
        dealt = np.stack([rng.permutation(values) for _ in range(SHUFFLES)])
        correlation_null = float(np.nanmax(correlations(dealt, pooled), initial=0.0))
    n = 0 if values is None else len(values)
    return Matches(cosine, cosine_null, correlation, correlation_null, n, reason)


def cosines(row: np.ndarray, decoder: np.ndarray) -> np.ndarray:
    """(d_sae,) cosines of a (d,) vector with (d_sae, d) rows; 0 for a row of length 0."""
    length = np.linalg.norm(decoder, axis=1) * np.linalg.norm(row)
    return np.divide(decoder @ row, length, out=np.zeros(len(decoder)), where=length > 0)


def correlations(values: np.ndarray, pooled: np.ndarray) -> np.ndarray:
    """(m, d_sae) Pearson correlations of (m, n) rows with (d_sae, n) rows; NaN where one of them never varies."""
    a, b = (np.asarray(x, np.float64) - np.mean(x, axis=1, keepdims=True, dtype=np.float64) for x in (values, pooled))
    length = np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    return np.divide(a @ b.T, length, out=np.full(length.shape, np.nan), where=length > 1e-12)


def chance_cosine(n: int, d: int) -> float:
    """About the largest cosine of a vector with n random directions in d dimensions, 1 at most."""
    return min(1.0, float(np.sqrt(2 * np.log(max(n, 2)) / d)))


def common(first: Sequence[Key], second: Sequence[Key], most: int = MOST_SAMPLES) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the samples that two bundles share, in the order of the first, spread evenly if there are too many.

    A prompt and seed that a bundle has twice counts once.
    """
    where = {key: i for i, key in reversed(list(enumerate(second)))}
    seen = dict.fromkeys(key for key in first if key in where)
    at = {key: i for i, key in reversed(list(enumerate(first)))}
    pairs = np.array([(at[key], where[key]) for key in seen], np.int64).reshape(-1, 2)
    if len(pairs) > most:
        pairs = pairs[np.linspace(0, len(pairs) - 1, most).round().astype(np.intp)]
    return pairs[:, 0], pairs[:, 1]


def nearest_step(log_snr: float, steps: Sequence[float]) -> int:
    """Index of the step of another run that lies nearest in log-SNR, the unit that compares models."""
    return int(np.argmin(np.abs(np.asarray(steps, float) - log_snr)))


def verdict(found: Matches) -> str:
    """One sentence: what the two measures say, and whether they agree."""
    a, b = found.best("cosine"), found.best("correlation")
    said = {
        "cosine": f"decoder cosine {found.cosine[a]:.2f}" if found.cosine is not None and a is not None else "",
        "correlation": f"correlation {found.correlation[b]:.2f}"
        if found.correlation is not None and b is not None
        else "",
    }
    weak = [by for by in said if said[by] and not found.beats_null(by)]
    doubt = f" The {' and the '.join(weak)} {'is' if len(weak) == 1 else 'are'} no better than chance." if weak else ""
    if a is None and b is None:
        return "No match can be suggested."
    if a is None or b is None:
        by, at = ("correlation", b) if a is None else ("cosine", a)
        return f"Feature {at} is most alike by {said[by]}; the other measure is missing.{doubt}"
    if a == b:
        return f"Both measures suggest feature {a}: {said['cosine']}, {said['correlation']}.{doubt}"
    return (
        f"The measures disagree: feature {a} by {said['cosine']}, feature {b} by {said['correlation']}. "
        f"What they write and when they are on point to different features.{doubt}"
    )


def _order(values: np.ndarray) -> list[int]:
    """Features by a measure, best first; those without a value last."""
    return np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable").tolist()


def _without(values: np.ndarray, feature: int | None) -> np.ndarray:
    if feature is not None:
        values[feature] = np.nan
    return values
