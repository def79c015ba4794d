"""How well numbers tell the samples of a concept from the others: AUC and its test, F1, correlation.

AUC is the probability that a sample with the concept has the larger number (ties count half). With average ranks it is
U / (n1 n0), where U = rank sum of the n1 samples with the concept - n1 (n1 + 1) / 2 (Mann and Whitney 1947).
"""

import numpy as np
from scipy.stats import norm


def auc(ranks: np.ndarray, member: np.ndarray) -> np.ndarray:
    """(n_concepts, m) AUCs from (n, m) average ranks and (n_concepts, n) membership; NaN where undefined."""
    inside = member.sum(1).astype(np.float64)
    outside = member.shape[1] - inside
    wins = member.astype(np.float64) @ ranks - (inside * (inside + 1) / 2)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return wins / (inside * outside)[:, None]


def rank_test(ranks: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUC and one-sided Mann-Whitney p-value of column i for concept i.

    The rank sum W of n1 of n values has mean n1 (n + 1) / 2 and, ties included, variance
    n1 n0 / (n (n - 1)) * sum (rank - mean rank)^2 where membership means nothing. Normal approximation, with a
    correction of one half for continuity.

    Args:
        ranks: (..., n, c) average ranks along n.
        member: (..., n, c) bool.

    Returns:
        Two (..., c) arrays; the AUC is NaN, and the p-value 1, where a group is empty; the p-value is 1 for a constant.
    """
    n = ranks.shape[-2]
    inside = member.sum(-2).astype(np.float64)
    outside = n - inside
    total = (ranks * member).sum(-2)
    spread = np.sqrt(inside * outside / (n * (n - 1)) * ((ranks - (n + 1) / 2) ** 2).sum(-2))
    with np.errstate(invalid="ignore", divide="ignore"):
        area = (total - inside * (inside + 1) / 2) / (inside * outside)
        z = (total - inside * (n + 1) / 2 - 0.5) / spread
    return area, np.where(spread > 0, norm.sf(z), 1.0)


def correlations(x: np.ndarray, member: np.ndarray) -> np.ndarray:
    """(n_concepts, m) Pearson correlations of (n, m) columns with membership; 0 for a constant column."""
    x = x - x.mean(0)
    y = member - member.mean(1, keepdims=True)
    scale = np.outer(np.linalg.norm(y, axis=1), np.linalg.norm(x, axis=0))
    return np.divide(y @ x, scale, out=np.zeros_like(scale), where=scale > 0)


def best_threshold(values: np.ndarray, member: np.ndarray) -> float:
    """The threshold at which "value > threshold" has the largest F1 on (n,) samples."""
    order = np.argsort(-values, kind="stable")
    ordered = values[order].astype(np.float64)
    hits = member[order].cumsum()
    f1 = 2 * hits / (np.arange(1, len(values) + 1) + member.sum())
    last = np.append(ordered[1:] < ordered[:-1], True)  # a threshold lies between different values
    best = int(np.where(last, f1, -1.0).argmax())
    return float((ordered[best] + ordered[best + 1]) / 2) if best + 1 < len(ordered) else -np.inf


def f1_score(on: np.ndarray, member: np.ndarray) -> np.ndarray:
    """(..., c) F1 of (..., n, c) decisions; NaN where there is neither a sample nor a decision."""
    with np.errstate(invalid="ignore"):
        return 2 * (on & member).sum(-2) / (on.sum(-2) + member.sum(-2))


def paired_correlations(x: np.ndarray, member: np.ndarray) -> np.ndarray:
    """(..., c) Pearson correlation of column i with concept i, from (..., n, c); 0 for a constant column."""
    a, b = x - x.mean(-2, keepdims=True), member - member.mean(-2, keepdims=True)
    scale = np.linalg.norm(a, axis=-2) * np.linalg.norm(b, axis=-2)
    return np.divide((a * b).sum(-2), scale, out=np.zeros_like(scale), where=scale > 0)
