"""Linear discriminant analysis: w = S^-1 (mu_+ - mu_-), S the covariance within classes.

The direction along which two Gaussian classes of one covariance are told apart best. It reads; to move samples from one
class to the other, use the difference of means: on a mixture with unequal noise their cosine is far from 1. S is
shrunk towards a multiple of the identity, (1 - g) S + g tr(S)/d I, which keeps it invertible when rows are few.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from probe.directions.finder import ContrastFinder
from probe.directions.rows import Moments, SiteRows
from probe.errors import InvalidDirection


@dataclass(kw_only=True, eq=False)
class LDA(ContrastFinder):
    """Linear discriminant. Needs a store with labels; streams, with a width x width matrix in memory.

    Attributes:
        shrinkage: g, from 0 (none) to 1 (the difference of means).
        max_side: largest width.

    Example, after ``denoscope collect --sites mid_block unet:in --prompts canvas:16 --steps 2 --out runs/x``:
        >>> from activations_store import ActivationStore
        >>> from probe.directions import LDA
        >>> store = ActivationStore.open("runs/x/store")
        >>> found = LDA(site="unet.mid_block:out", factor="background", positive="dark").fit(store)
        >>> found.auc_.shape
        (2,)
    """

    shrinkage: float = 0.01
    max_side: int = 4096

    def _vector(self, rows: SiteRows, step: int, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
        if not 0.0 <= self.shrinkage <= 1.0 or rows.width > self.max_side:
            raise InvalidDirection(
                f"LDA: shrinkage {self.shrinkage} (0 to 1), rows of {rows.width} numbers (at most {self.max_side})."
            )
        classes = [Moments.of(rows, step, samples) for samples in (positive, negative)]
        within = (classes[0].scatter + classes[1].scatter) / max(1, classes[0].n + classes[1].n - 2)
        middle = np.trace(within) / rows.width
        within = (1.0 - self.shrinkage) * within + self.shrinkage * middle * np.eye(rows.width)
        try:
            return scipy.linalg.solve(within, classes[0].mean - classes[1].mean, assume_a="pos")
        except np.linalg.LinAlgError as error:
            raise InvalidDirection(
                f"LDA: the covariance within classes is singular ({classes[0].n + classes[1].n} rows of {rows.width} "
                "numbers); raise shrinkage."
            ) from error
