"""What finders that need only a store have in common.

A finder is constructed with its parameters and nothing else; ``fit`` reads a store and returns the finder; what was
learned ends in an underscore, and ``direction_`` is the result. Every parameter, and hashes of everything that was
read, are in the direction's provenance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from activations_store import ActivationStore
from probe.directions.direction import Direction, Frame
from probe.directions.fitted import Fitted
from probe.directions.rows import SiteRows, View
from probe.errors import InvalidDirection


@dataclass(kw_only=True, eq=False)
class StoreFinder(Fitted, ABC):
    """Base of the finders that fit on a store.

    Attributes:
        site: full name of the site.
        branch: of guidance.
        view: what a row is, see ``rows.py``.
        steps: positions of the store's steps; None for all.
    """

    site: str
    branch: str = "cond"
    view: View = "mean"
    steps: tuple[int, ...] | None = None

    direction_: Direction = field(init=False, repr=False)

    @abstractmethod
    def fit(self, store: ActivationStore) -> Self:
        """Read the store and learn ``direction_``."""

    def _rows(self, store: ActivationStore) -> SiteRows:
        return SiteRows(store, self.site, self.branch, self.view, self.steps)

    def _direction(self, rows: SiteRows, vectors: np.ndarray, frame: Frame, **about: Any) -> Direction:
        """A direction of vectors (n, k, width), n steps or one for all; one pass measures their scale at each step."""
        scale = np.empty((len(rows.chosen), vectors.shape[1]))
        unit = vectors / np.linalg.norm(vectors, axis=2, keepdims=True).clip(1e-300)
        for i, step in enumerate(rows.chosen):
            scale[i] = rows.projected(step, unit[i if len(unit) > 1 else 0])[1].std(0)
        basis = np.broadcast_to(vectors, (len(rows.chosen), *vectors.shape[1:])).copy()
        return Direction(
            rows.site,
            torch.from_numpy(basis).float().unflatten(2, rows.shape),
            torch.from_numpy(scale),
            timesteps=rows.timesteps,
            frame=frame,
            provenance={
                "finder": type(self).__name__,
                "parameters": self._parameters(),
                "model": rows.store.fingerprint,
                "rows": rows.record(),
            }
            | about,
        )

    def _parameters(self) -> dict[str, Any]:
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.init}


@dataclass(kw_only=True, eq=False)
class ContrastFinder(StoreFinder):
    """Base of the finders that tell samples with a label from others. One vector a step.

    A share of the samples is held out; on them the vector is judged by the area under the ROC curve of samples scored
    by their mean product with it.

    Attributes:
        factor: the store's label column, without ``label_``.
        positive: the label that the vector points to.
        negative: the label that it points away from; None for all others. Samples without a label are left out.
        against: directions of other attributes at the site; the vector is made orthogonal to all of theirs.
        holdout: share of the samples of each class that is only used to judge.
        seed: decides which.

    After ``fit``: ``direction_``; ``auc_`` and ``auc_se_``, (n_steps,), on held-out samples, which the direction keeps
    in its provenance as ``quality``, with their number in either class.
    """

    factor: str
    positive: str
    negative: str | None = None
    against: Sequence[Direction] = ()
    holdout: float = 0.25
    seed: int = 0

    auc_: np.ndarray = field(init=False, repr=False)
    auc_se_: np.ndarray = field(init=False, repr=False)

    def fit(self, store: ActivationStore) -> Self:
        """Learn from labelled samples of a store.

        Raises:
            UnknownLabel, UnknownSite: the store has no such labels or site.
            InvalidDirection: a class has fewer than two samples on a side of the split, or a class is degenerate.
        """
        rows = self._rows(store)
        (positive, test_positive), (negative, test_negative) = (self._split(s) for s in self._classes(rows))
        vectors = np.stack([self._vector(rows, step, positive, negative) for step in rows.chosen])[:, None]
        length = np.linalg.norm(vectors, axis=2)
        if self.against:
            raw = Direction(rows.site, torch.from_numpy(vectors).unflatten(2, rows.shape))
            vectors = raw.project_out(self.against).flat.numpy()
        if not (np.linalg.norm(vectors, axis=2) > 1e-6 * length).all():  # also where it is NaN
            raise InvalidDirection(
                f"{type(self).__name__}: the vector at {self.site} is zero: the classes do not differ"
                + (", or only along the directions that it must avoid." if self.against else ".")
            )
        self.auc_, self.auc_se_ = np.empty((2, len(rows.chosen)))
        for i, step in enumerate(rows.chosen):
            scores = [_by_sample(*rows.projected(step, vectors[i], s)) for s in (test_positive, test_negative)]
            self.auc_[i], self.auc_se_[i] = auc(*scores)
        quality = {"auc": self.auc_.tolist(), "auc_se": self.auc_se_.tolist()}
        quality["held_out"] = [len(test_positive), len(test_negative)]
        self.direction_ = self._direction(rows, vectors, "per_step", quality=quality)
        return self

    @abstractmethod
    def _vector(self, rows: SiteRows, step: int, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
        """The vector (width,) of one step from the samples of the two classes."""

    def _classes(self, rows: SiteRows) -> tuple[np.ndarray, np.ndarray]:
        labels = rows.store.labels(self.factor)[rows.samples]
        known = set(labels.tolist())
        for label in (self.positive, self.negative):
            if label is not None and label not in known:
                raise InvalidDirection(
                    f"{type(self).__name__}: no committed sample has the {self.factor} {label!r}; there are "
                    f"{', '.join(sorted(known)[:20])}."
                )
        other = (labels != self.positive) & (labels != "") if self.negative is None else labels == self.negative
        return rows.samples[labels == self.positive], rows.samples[other]

    def _split(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(train, held out), each ascending."""
        if not 0.0 < self.holdout < 1.0:
            raise InvalidDirection(f"{type(self).__name__}: holdout {self.holdout}; expected between 0 and 1.")
        n = round(self.holdout * len(samples))
        if n < 1 or len(samples) - n < 2:
            raise InvalidDirection(
                f"{type(self).__name__}: {len(samples)} samples of a class of {self.factor}; at least two to learn "
                f"from and one held out (holdout={self.holdout}) are needed."
            )
        order = np.random.default_rng(self.seed).permutation(samples)
        return np.sort(order[n:]), np.sort(order[:n])


def auc(positive: np.ndarray, negative: np.ndarray) -> tuple[float, float]:
    """Area under the ROC curve of two sets of scores, and its standard error (Hanley and McNeil 1982)."""
    labels = np.r_[np.ones(len(positive)), np.zeros(len(negative))]
    a = float(roc_auc_score(labels, np.r_[positive, negative]))
    q1, q2 = a / (2 - a), 2 * a**2 / (1 + a)
    n, m = len(positive), len(negative)
    variance = (a * (1 - a) + (n - 1) * (q1 - a**2) + (m - 1) * (q2 - a**2)) / (n * m)
    return a, float(np.sqrt(max(variance, 0.0)))


def class_mean(rows: SiteRows, step: int, samples: np.ndarray) -> np.ndarray:
    """Mean (width,) float64 of the rows of some samples, in one pass."""
    n, total = 0, np.zeros(rows.width)
    for _, block in rows.blocks(step, samples):
        n += len(block)
        total += block.sum(0, dtype=np.float64)
    if n == 0:
        raise InvalidDirection(f"rows: step {step} of {rows.site} has no finite row in a class.")
    return total / n


def _by_sample(samples: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Mean product of each sample."""
    _, index = np.unique(samples, return_inverse=True)
    return np.bincount(index, products[:, 0]) / np.bincount(index)


def _plain(value: Any) -> Any:
    if isinstance(value, Direction):
        return value.hash
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
