"""Independent components and non-negative parts of a site, by scikit-learn, for each step.

ICA (Hyvarinen and Oja 2000): x - mean = A s with independent, non-Gaussian s; the directions are the columns of A.
PCA cannot tell rotations of equal variances apart, ICA can. NMF (Lee and Seung 1999): x = s W with nothing negative,
which gives parts that only add. Activations have signs, so each row is split, [max(x, 0), max(-x, 0)], and a part W =
[W+, W-] is the direction W+ - W-.

Both are iterative and need their rows in memory: at most ``max_rows`` are drawn from the samples of a step.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from sklearn.decomposition import NMF as _NMF
from sklearn.decomposition import FastICA
from sklearn.exceptions import ConvergenceWarning

from activations_store import ActivationStore
from probe.directions.finder import StoreFinder
from probe.directions.rows import SiteRows
from probe.errors import InvalidDirection


@dataclass(kw_only=True, eq=False)
class ComponentFinder(StoreFinder):
    """Base of the two.

    Attributes:
        n_components: k.
        max_rows: rows that are drawn at a step.
        max_iter: of the solver.
        seed: of the drawing and the solver.

    After ``fit``: ``direction_`` (unit vectors, largest scale first), and ``converged_`` (n,).
    """

    n_components: int = 10
    max_rows: int = 20_000
    max_iter: int = 500
    seed: int = 0

    converged_: np.ndarray = field(init=False, repr=False)

    def fit(self, store: ActivationStore) -> Self:
        """Fit every step on its own.

        Raises:
            InvalidDirection: more components than rows or numbers in a row.
        """
        rows = self._rows(store)
        vectors, converged = [], []
        for step in rows.chosen:
            x = self._drawn(rows, step)
            if not 1 <= self.n_components <= min(x.shape):
                raise InvalidDirection(
                    f"{type(self).__name__}: {self.n_components} components of {len(x)} rows of {rows.width} numbers."
                )
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", ConvergenceWarning)
                found, size = self._solve(x)
            vectors.append(found[np.argsort(-size, kind="stable")])
            converged.append(not any(issubclass(item.category, ConvergenceWarning) for item in caught))
        self.converged_ = np.array(converged)
        self.direction_ = self._direction(rows, np.stack(vectors), "per_step").normalised()
        return self

    @abstractmethod
    def _solve(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(vectors (k, width), size of each) from rows (m, width) float64."""

    def _drawn(self, rows: SiteRows, step: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, step])
        each = rows.store.site(rows.site).spec.tokens if rows.view == "tokens" else 1
        n = min(len(rows.samples), max(1, -(-self.max_rows // each)))
        samples = np.sort(rng.choice(rows.samples, n, replace=False))
        x = rows.gather(step, samples)[1]
        return x[np.sort(rng.permutation(len(x))[: self.max_rows])].astype(np.float64)


@dataclass(kw_only=True, eq=False)
class ICA(ComponentFinder):
    """Independent components. Needs a store; signs are those that make the skewness of each source positive.

    Example, after ``denoscope collect --sites mid_block unet:in --prompts canvas:16 --steps 2 --out runs/x``:
        >>> from activations_store import ActivationStore
        >>> from probe.directions import ICA
        >>> store = ActivationStore.open("runs/x/store")
        >>> ICA(site="unet.mid_block:out", view="tokens", n_components=8, max_rows=1000).fit(store).direction_.k
        8
    """

    def _solve(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        model: Any = FastICA(
            self.n_components, whiten="unit-variance", max_iter=self.max_iter, tol=1e-3, random_state=self.seed
        )
        sources: np.ndarray = model.fit_transform(x)
        sign = np.where((sources**3).mean(0) < 0, -1.0, 1.0)
        return (model.mixing_ * sign).T, np.linalg.norm(model.mixing_, axis=0)


@dataclass(kw_only=True, eq=False)
class NMF(ComponentFinder):
    """Non-negative parts of sign-split rows. Needs a store.

    Example, after ``denoscope collect --sites mid_block unet:in --prompts canvas:16 --steps 2 --out runs/x``:
        >>> from activations_store import ActivationStore
        >>> from probe.directions import NMF
        >>> store = ActivationStore.open("runs/x/store")
        >>> NMF(site="unet.mid_block:out", view="tokens", n_components=8, max_rows=1000).fit(store).direction_.k
        8
    """

    def _solve(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        k: Any = self.n_components  # the stubs know only "auto"
        model: Any = _NMF(k, init="nndsvda", max_iter=self.max_iter, random_state=self.seed)
        weights = model.fit_transform(np.concatenate([x.clip(min=0), (-x).clip(min=0)], 1))
        parts = model.components_[:, : x.shape[1]] - model.components_[:, x.shape[1] :]
        size = np.linalg.norm(parts, axis=1) * np.sqrt((weights**2).mean(0))
        if not (np.linalg.norm(parts, axis=1) > 0).all():
            raise InvalidDirection(f"NMF: one of the {self.n_components} parts is empty; ask for fewer.")
        return parts, size
