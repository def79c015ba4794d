"""Uncertainty of reductions: bootstrap over images and over nodes.

A reduction starts from terms (images, nodes) that are summed over nodes. Images are drawn with replacement. Nodes are
stratified, one a cell, so that drawing them with replacement would undo the stratification; instead neighbouring cells
are taken in pairs, and the difference of a pair is added with a random sign, the same for all images,

    v_i = sum_k (u_i,2k + u_i,2k+1) + sum_k s_k (u_i,2k - u_i,2k+1),      s_k = +-1

whose variance is that of the pair if the integrand is about the same in both cells, and more if it is not (collapsed
strata; Wolter 2007): intervals are a little too wide rather than too narrow. They are not divided by anything further.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from probe.errors import InvalidRequest

Statistic = Callable[[Sequence[np.ndarray]], float]


class Interval(NamedTuple):
    """A value with its bootstrap interval and standard error."""

    value: float
    low: float
    high: float
    error: float


def pointwise_error(terms: np.ndarray) -> np.ndarray:
    """(images,) standard error of the sums over nodes; zero where there is only one node, which says nothing."""
    return np.sqrt((_pair_differences(terms) ** 2).sum(1))


def interval(
    terms: Sequence[np.ndarray],
    statistic: Statistic,
    *,
    level: float = 0.95,
    n: int = 1000,
    seed: int = 0,
    shared_nodes: bool = True,
) -> Interval:
    """Bootstrap interval of a statistic of sums over nodes.

    Args:
        terms: one or more (images, nodes), of the same images and nodes: they are resampled together.
        statistic: of the sums, one (images,) for each of ``terms``.
        level: coverage, between 0 and 1.
        n: replicates; their percentiles are the interval.
        seed: of the replicates.
        shared_nodes: whether all images have the same nodes. If each has its own, drawing images draws nodes.

    Raises:
        InvalidRequest: terms of different shapes, or a level or n that make no interval.
    """
    if not 0.0 < level < 1.0 or n < 2 or len({t.shape for t in terms}) != 1:
        raise InvalidRequest(
            f"interval: level {level!r}, {n} replicates, shapes {[t.shape for t in terms]}; expected a level between "
            "0 and 1, at least 2 replicates and equal shapes."
        )
    rng = np.random.default_rng(seed)
    sums, differences = [t.sum(1) for t in terms], [_pair_differences(t) for t in terms]
    n_images, n_pairs = differences[0].shape
    found = np.empty(n)
    for k in range(n):
        images = rng.integers(n_images, size=n_images)
        signs = (rng.integers(2, size=n_pairs) * 2.0 - 1.0) * shared_nodes
        found[k] = statistic([(s + d @ signs)[images] for s, d in zip(sums, differences, strict=True)])
    low, high = np.quantile(found, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(float(statistic(sums)), float(low), float(high), float(found.std(ddof=1)))


def _pair_differences(terms: np.ndarray) -> np.ndarray:
    """(images, pairs); the last node of an odd number is left out."""
    even = terms.shape[1] // 2 * 2
    return terms[:, 0:even:2] - terms[:, 1:even:2]
