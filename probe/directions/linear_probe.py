"""Linear probes: the vector of a classifier of rows, logistic or ridge.

    logistic   w = argmin  sum log(1 + exp(-y (w.x + b))) + |w~|^2 / (2 C)             y = +-1
    ridge      w = argmin  sum (y - w.x - b)^2 + penalty |w|^2

Both weigh the two classes equally. A probe reads (see ``lda.py``): that a probe works does not show that the model uses
what it reads, which only an intervention can.

The logistic probe is fitted by scikit-learn on standardised rows, with w~ the vector there, and brought back to the
site's own coordinates. The ridge probe is solved from the moments of the rows, so it streams.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from probe.directions.finder import ContrastFinder
from probe.directions.rows import Moments, SiteRows
from probe.errors import InvalidDirection


@dataclass(kw_only=True, eq=False)
class LogisticProbe(ContrastFinder):
    """Logistic probe. Needs a store with labels; rows of one step are held in memory, at most a gibibyte.

    Attributes:
        C: inverse strength of the penalty.
        max_iter: of the solver.

    After ``fit``: as ``ContrastFinder``, and ``converged_``, whether the solver did so at every step.

    Example, after ``denoscope collect --sites mid_block unet:in --prompts canvas:16 --steps 2 --out runs/x``:
        >>> from activations_store import ActivationStore
        >>> from probe.directions import LogisticProbe
        >>> store = ActivationStore.open("runs/x/store")
        >>> found = LogisticProbe(site="unet.mid_block:out", factor="background", positive="dark").fit(store)
        >>> found.auc_.shape, found.auc_se_.shape, found.converged_
        ((2,), (2,), True)
    """

    C: float = 1.0
    max_iter: int = 1000

    converged_: bool = field(init=False, repr=False, default=True)

    def _vector(self, rows: SiteRows, step: int, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
        parts = [rows.gather(step, samples)[1] for samples in (positive, negative)]
        w, converged = logistic(parts[0], parts[1], self.C, self.max_iter)
        self.converged_ = converged and (step == rows.chosen[0] or self.converged_)
        return w


def logistic(positive: np.ndarray, negative: np.ndarray, C: float, max_iter: int) -> tuple[np.ndarray, bool]:
    """The vector (width,) of a logistic probe of two sets of rows, and whether the solver converged."""
    x = np.concatenate([positive, negative]).astype(np.float64)
    y = np.r_[np.ones(len(positive)), np.zeros(len(negative))]
    std = x.std(0)
    used = std > 1e-12 * std.max()  # a channel that never moves says nothing
    model = LogisticRegression(C=C, max_iter=max_iter, class_weight="balanced")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit((x[:, used] - x[:, used].mean(0)) / std[used], y)
    w = np.zeros(x.shape[1])
    w[used] = model.coef_[0] / std[used]
    return w, not any(issubclass(item.category, ConvergenceWarning) for item in caught)


@dataclass(kw_only=True, eq=False)
class RidgeProbe(ContrastFinder):
    """Ridge probe. Needs a store with labels; streams, with a width x width matrix in memory.

    Attributes:
        penalty: as a share of the mean variance of a channel, times the number of rows.
        max_side: largest width.

    Example, after ``denoscope collect --sites mid_block unet:in --prompts canvas:16 --steps 2 --out runs/x``:
        >>> from activations_store import ActivationStore
        >>> from probe.directions import RidgeProbe
        >>> store = ActivationStore.open("runs/x/store")
        >>> found = RidgeProbe(site="unet.mid_block:out", factor="background", positive="dark", negative="white")
        >>> found.fit(store).auc_.shape
        (2,)
    """

    penalty: float = 0.01
    max_side: int = 4096

    def _vector(self, rows: SiteRows, step: int, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
        if not self.penalty >= 0 or rows.width > self.max_side:
            raise InvalidDirection(
                f"RidgeProbe: penalty {self.penalty} (>= 0), rows of {rows.width} numbers (at most {self.max_side})."
            )
        classes = [Moments.of(rows, step, samples) for samples in (positive, negative)]
        # Moments of all rows with weight 1/2 for each class: y has mean 0, and its covariance with x is half the gap.
        gap = classes[0].mean - classes[1].mean
        within = sum((m.scatter / max(1, m.n) for m in classes), np.zeros((rows.width, rows.width))) / 2
        total = within + np.outer(gap, gap) / 4
        total[np.diag_indices(rows.width)] += self.penalty * np.trace(total) / rows.width
        try:
            return scipy.linalg.solve(total, gap / 2, assume_a="pos")
        except np.linalg.LinAlgError as error:
            raise InvalidDirection("RidgeProbe: the rows are degenerate; raise penalty.") from error
