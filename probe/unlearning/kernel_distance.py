"""Do two sets of images differ? A kernel two-sample distance on a judge's features, with its null.

With k(a, b) = (a . b / d + 1)^3, the kernel of KID (Binkowski et al. 2018, arXiv 1801.01401), and pairs (x_i, y_i) of
images of one concept at different seeds, the squared maximum mean discrepancy is estimated without bias by (Gretton
et al. 2012, JMLR 13, lemma 6)

    MMD^2 = 1 / (n (n - 1)) sum_{i != j} h_ij,    h_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)

Under the null hypothesis the two members of a pair are exchangeable, whatever their prompt. Exchanging them in pair i
multiplies h_ij by -1 for all j, so with independent signs s_i = +-1 the exact permutation null is the distribution of

    1 / (n (n - 1)) sum_{i != j} s_i s_j h_ij

Images that share a seed share more than chance: where the object lies, how it is cut. If both sets have every seed
equally often, that cancels in the estimate, but not where exchanges are free to move one seed to one side. Exchanges
then have to be equally many in every group of pairs that have one pair of seeds, which keeps the seeds balanced.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from probe.errors import InvalidRequest

_DEGREE = 3
_MIN_PAIRS = 2


@dataclass(frozen=True)
class KernelDistance:
    """An estimate and its null.

    Attributes:
        value: MMD^2; around 0, also below, for two sets of one distribution.
        null_95: 95 % quantile of the permutation null.
        p: share of permutations with a value at least as large, the estimate itself counted as one.
    """

    value: float
    null_95: float
    p: float


def kernel_distance(
    x: np.ndarray, y: np.ndarray, *, groups: np.ndarray | None = None, n_permutations: int = 1000, seed: int = 0
) -> KernelDistance:
    """Compare two sets of paired feature vectors.

    Args:
        x, y: (n, d) features, n >= 2; row i of both belongs to one concept, with noise of their own.
        groups: (n,) labels of pairs with the same two seeds; half of every group is exchanged. None if every image has
            a seed of its own.
        n_permutations: sign vectors that are drawn for the null, at least 1.
        seed: of the signs.

    Raises:
        InvalidRequest: the shapes differ, or there are fewer than two pairs.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape or x.ndim != 2 or len(x) < _MIN_PAIRS or n_permutations < 1:
        raise InvalidRequest(
            f"kernel_distance: features of shapes {x.shape} and {y.shape}, {n_permutations} permutations; expected "
            "the same (n >= 2, d) and at least one."
        )
    n = len(x)
    cross = _kernel(x, y)
    h = _kernel(x, x) + _kernel(y, y) - cross - cross.T
    np.fill_diagonal(h, 0.0)
    rng = np.random.default_rng(seed)
    free = rng.choice((-1.0, 1.0), (n_permutations, n))
    signs = free if groups is None else _balanced_signs(np.asarray(groups), n_permutations, rng)
    null = np.einsum("ri,ri->r", signs @ h, signs) / (n * (n - 1))
    value = float(h.sum() / (n * (n - 1)))
    # Equal values may differ in the last bits, by the order of the sums.
    reached = null >= value - 1e-12 * max(1.0, abs(value))
    return KernelDistance(value, float(np.quantile(null, 0.95)), float((reached.sum() + 1) / (n_permutations + 1)))


def _balanced_signs(groups: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """(n, pairs) signs, half of every group -1; of odd groups one more, in all of them or in none."""
    more = rng.integers(0, 2, (n, 1))
    signs = np.ones((n, len(groups)))
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        rank = rng.random((n, len(rows))).argsort(1).argsort(1)
        signs[:, rows] = np.where(rank < (len(rows) + more) // 2, -1.0, 1.0)
    return signs


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1.0) ** _DEGREE
