"""Unlearn a concept by projecting its direction out of a site, step by step.

With mu_1 the mean row of the concept's samples, mu_0 that of all others and S the covariance within the two groups:

    mean difference   x' = x - u (u . (x - mu_0)),                          u = (mu_1 - mu_0) / |mu_1 - mu_0|
    LDA               x' = x - delta (v . (x - mu_0)) / (v . delta),        delta = mu_1 - mu_0,  v = S^-1 delta

Both move the concept's mean to mu_0. After the first no row differs from mu_0 along delta; after the second no row's
linear discriminant does, which is what a linear probe reads, and rows move along delta only (LEACE, Belrose et al.
2023, is the same map). Kim et al. 2018 and Haas et al. 2024 steer by the first direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from activations_store import ActivationStore
from probe.errors import InvalidRequest, UnknownConcept
from probe.interventions.directions import ProjectOut
from probe.interventions.intervention import Intervention

_SAMPLES_AT_ONCE = 16


@dataclass(frozen=True)
class ConceptMoments:
    """First and second moments of a concept's rows and of the rest, by step.

    Attributes:
        mean: (n_steps, d) float64, of the concept's rows.
        rest: (n_steps, d), of all others.
        within: (n_steps, d, d), covariance within the two groups, pooled.
        timesteps: (n_steps,).
    """

    mean: np.ndarray
    rest: np.ndarray
    within: np.ndarray
    timesteps: tuple[int, ...]

    @classmethod
    def of(cls, concept: np.ndarray, rest: np.ndarray, timesteps: tuple[int, ...]) -> ConceptMoments:
        """From rows in memory, (n_steps, rows, d) each."""
        sums = [_Sums(rows.shape[0], rows.shape[2]) for rows in (concept, rest)]
        for total, rows in zip(sums, (concept, rest), strict=True):
            for step, of_step in enumerate(rows):
                total.add(step, of_step)
        return _moments(sums[0], sums[1], timesteps)

    @classmethod
    def from_store(
        cls, store: ActivationStore, site: str, factor: str, label: str, *, branch: str = "cond"
    ) -> ConceptMoments:
        """From all committed samples of a store.

        Args:
            store: the store.
            site: one of its sites.
            factor: a factor of its labels, such as "object".
            label: the concept; samples without a label are left out.
            branch: guidance branch whose rows are read.

        Raises:
            UnknownConcept: no committed sample has the label, or all have.
        """
        labels = store.labels(factor)
        used = np.asarray([i for i in store.committed_samples() if labels[i]])
        view = store.site(site)
        n_steps, d = view.shape[1], view.shape[4]
        target, rest = _Sums(n_steps, d), _Sums(n_steps, d)
        for group, total in ((used[labels[used] == label], target), (used[labels[used] != label], rest)):
            if not len(group):
                raise UnknownConcept(
                    f"moments: {factor} {label!r} must label some samples and not others; the store has "
                    f"{', '.join(sorted(set(labels[used].tolist())))}."
                )
            for start in range(0, len(group), _SAMPLES_AT_ONCE):
                rows = view.read(sample=group[start : start + _SAMPLES_AT_ONCE], branch=branch)
                for step in range(n_steps):
                    total.add(step, rows[:, step].reshape(-1, d))
        return _moments(target, rest, tuple(int(t) for t in store.spec.timesteps))


def mean_difference(moments: ConceptMoments, site: str, **where: Any) -> tuple[Intervention, ...]:
    """The edit that projects the difference of means out.

    Args:
        moments: of the concept at the site.
        site: where they were recorded.
        **where: ``steps``, ``branch``, ``strength``, ``mask``, ``inject`` of the intervention.
    """
    delta = torch.from_numpy(moments.mean - moments.rest).float()
    return (Intervention(site, _projection(delta, delta, moments), **where),)


def lda(moments: ConceptMoments, site: str, *, shrinkage: float = 1e-3, **where: Any) -> tuple[Intervention, ...]:
    """The edit that takes from every row what the linear discriminant reads.

    Args:
        moments: of the concept at the site.
        site: where they were recorded.
        shrinkage: share of the mean variance that is added to the covariance's diagonal before it is inverted, so that
            directions of no variance do not decide.
        **where: ``steps``, ``branch``, ``strength``, ``mask``, ``inject`` of the intervention.
    """
    if not shrinkage >= 0:
        raise InvalidRequest(f"lda: shrinkage must be at least 0, got {shrinkage!r}.")
    delta = moments.mean - moments.rest
    d = delta.shape[1]
    ridge = shrinkage * np.trace(moments.within, axis1=1, axis2=2)[:, None, None] / d * np.eye(d)
    v = np.linalg.solve(moments.within + ridge, delta[..., None])[..., 0]
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    op = _projection(torch.from_numpy(delta).float(), torch.from_numpy(v).float(), moments)
    return (Intervention(site, op, **where),)


def _projection(delta: torch.Tensor, v: torch.Tensor, moments: ConceptMoments) -> ProjectOut:
    centre = torch.from_numpy(moments.rest).float()
    return ProjectOut(delta[:, None], v[:, None], centre, moments.timesteps)


class _Sums:
    """Running mean and scatter by step, joined block by block (Chan, Golub and LeVeque 1979)."""

    def __init__(self, n_steps: int, d: int) -> None:
        self.n = np.zeros(n_steps)
        self.mean = np.zeros((n_steps, d))
        self.scatter = np.zeros((n_steps, d, d))

    def add(self, step: int, rows: np.ndarray) -> None:
        rows = np.asarray(rows, dtype=np.float64)
        n, mean = len(rows), rows.mean(0)
        total = self.n[step] + n
        shift = mean - self.mean[step]
        centred = rows - mean
        self.scatter[step] += centred.T @ centred + np.outer(shift, shift) * self.n[step] * n / total
        self.mean[step] += shift * n / total
        self.n[step] = total


def _moments(target: _Sums, rest: _Sums, timesteps: tuple[int, ...]) -> ConceptMoments:
    if (target.n < 2).any() or (rest.n < 2).any():
        raise InvalidRequest("moments: expected at least two rows of the concept and of the rest at every step.")
    within = (target.scatter + rest.scatter) / (target.n + rest.n)[:, None, None]
    return ConceptMoments(target.mean, rest.mean, within, timesteps)
