"""Principal components of a site, for each step or for all steps together, without holding the rows.

Haas et al. 2024 (https://arxiv.org/abs/2303.11073): the components of the bottleneck activations h_t over many samples
are global editing directions, applied as h_t + strength sigma_{k,t} u_k at every step. With X the rows of a step minus
their mean,

    S = X^T X / (N - 1) = U diag(sigma^2) U^T

by whichever of two exact ways fits in memory: the covariance (width x width) where rows are short, else the Gram matrix
X X^T (N x N), which has the same non-zero eigenvalues, with U = X^T W / s. ``joint`` pools the steps after each was
centred by its own mean, so that no component is spent on how the mean moves; the scale is still that of each step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numpy as np
import scipy.linalg

from activations_store import ActivationStore
from probe.directions.finder import StoreFinder
from probe.directions.rows import MAX_BYTES, Moments, SiteRows
from probe.errors import InvalidDirection

_Found = tuple[np.ndarray, np.ndarray, float, int]


@dataclass(kw_only=True, eq=False)
class PCA(StoreFinder):
    """Principal components. Needs a store, no labels, no model.

    Attributes:
        n_components: k.
        joint: one basis for all steps instead of one a step.
        max_side: side of the largest matrix that is diagonalised: of min(width, rows).

    After ``fit``: ``direction_`` (unit vectors, descending; in the first step the entry of largest size is positive,
    later steps follow), ``explained_variance_`` and ``explained_variance_ratio_`` (n, k), ``n_rows_`` (n,), with n
    steps, or 1 if joint.

    Example, after ``denoscope collect --sites mid_block unet:in --prompts canvas:16 --steps 2 --out runs/x``:
        >>> from activations_store import ActivationStore
        >>> from probe.directions import PCA
        >>> store = ActivationStore.open("runs/x/store")
        >>> pca = PCA(site="unet.mid_block:out", view="tokens", n_components=5).fit(store)
        >>> pca.explained_variance_ratio_.shape
        (2, 5)
        >>> edit = pca.direction_.intervention(0, strength=2.0)
    """

    n_components: int = 10
    joint: bool = False
    max_side: int = 4096

    explained_variance_: np.ndarray = field(init=False, repr=False)
    explained_variance_ratio_: np.ndarray = field(init=False, repr=False)
    n_rows_: np.ndarray = field(init=False, repr=False)

    def fit(self, store: ActivationStore) -> Self:
        """One pass over the store for short rows, two for long ones, and one for the scale.

        Raises:
            InvalidDirection: more components than rows or numbers in a row, or both sides exceed ``max_side``.
        """
        rows = self._rows(store)
        groups = [rows.chosen] if self.joint else [(step,) for step in rows.chosen]
        found = [self._components(rows, group) for group in groups]
        vectors, variance, total, n = (np.stack(parts) for parts in zip(*found, strict=True))
        self.explained_variance_, self.n_rows_ = variance, n
        self.explained_variance_ratio_ = variance / total[:, None].clip(1e-300)
        frame = "global" if self.joint else "per_step"
        quality = {"explained_variance_ratio": self.explained_variance_ratio_.tolist()}
        self.direction_ = self._direction(rows, vectors, frame, quality=quality).aligned()
        return self

    def _components(self, rows: SiteRows, steps: tuple[int, ...]) -> _Found:
        """(vectors (k, width), variances (k,), total variance, number of rows) of some steps together."""
        k, side = self.n_components, rows.width
        n_most = len(rows.samples) * len(steps) * (store_tokens(rows) if rows.view == "tokens" else 1)
        if not 1 <= k <= min(side, n_most - len(steps)):
            raise InvalidDirection(
                f"PCA: {k} components of {n_most} rows of {side} numbers; at most {min(side, n_most - len(steps))}."
            )
        if side <= self.max_side:
            return _from_covariance(rows, steps, k)
        if rows.view == "map" and n_most <= self.max_side:
            return _from_gram(rows, steps, k)
        raise InvalidDirection(
            f"PCA: {n_most} rows of {side} numbers; one of the two must be at most max_side={self.max_side}. Use view "
            "'mean' or 'tokens', or fewer samples."
        )


def store_tokens(rows: SiteRows) -> int:
    """Rows that a map of the store has."""
    return rows.store.site(rows.site).spec.tokens


def _from_covariance(rows: SiteRows, steps: tuple[int, ...], k: int) -> _Found:
    scatter, n, width = np.zeros((rows.width, rows.width)), 0, rows.width
    for step in steps:
        moments = Moments(width)
        for _, block in rows.blocks(step):
            moments.add(block)
        scatter += moments.scatter
        n += moments.n
    values, vectors = scipy.linalg.eigh(scatter, subset_by_index=[width - k, width - 1])
    freedom = max(1, n - len(steps))
    variance = values[::-1].clip(0) / freedom
    return vectors.T[::-1], variance, float(np.trace(scatter)) / freedom, n


def _from_gram(rows: SiteRows, steps: tuple[int, ...], k: int) -> _Found:
    tokens, channels = rows.shape
    n_rows = len(rows.samples) * len(steps)
    part = max(1, min(tokens, MAX_BYTES // (16 * n_rows * channels)))
    slices = [slice(start, min(start + part, tokens)) for start in range(0, tokens, part)]
    gram = np.zeros((n_rows, n_rows))
    for chosen in slices:
        x = _centred(rows, steps, chosen)
        gram += x @ x.T
    n = len(gram)
    values, weights = scipy.linalg.eigh(gram, subset_by_index=[n - k, n - 1])
    values, weights = values[::-1].clip(1e-300), weights[:, ::-1]
    vectors = np.concatenate([_centred(rows, steps, c).T @ weights for c in slices]).T / np.sqrt(values)[:, None]
    freedom = max(1, n - len(steps))
    return vectors, values / freedom, float(np.trace(gram)) / freedom, n


def _centred(rows: SiteRows, steps: tuple[int, ...], tokens: slice) -> np.ndarray:
    """All rows of a part of the map, each step minus its mean, float64.

    Raises:
        InvalidDirection: a sample has no finite row at a step, so that parts of the map would not match.
    """
    parts = []
    for step in steps:
        samples, x = rows.gather(step, tokens=tokens)
        if len(samples) != len(rows.samples):
            raise InvalidDirection(
                f"PCA: {len(rows.samples) - len(samples)} maps of step {step} were not recorded or are not finite; "
                "this way of computing needs all of them."
            )
        parts.append(x.astype(np.float64) - x.mean(0, dtype=np.float64))
    return np.concatenate(parts)
