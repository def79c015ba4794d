"""The difference of two class means, mu_+ - mu_-.

The simplest supervised direction (Haas et al. 2024 for diffusion models), and the one to steer with: it points to where
the class lies. A probe points to where it is told apart best, which is another direction wherever noise is not
isotropic (see ``lda.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from probe.directions.finder import ContrastFinder, class_mean
from probe.directions.rows import SiteRows


@dataclass(kw_only=True, eq=False)
class MeanDifference(ContrastFinder):
    """Difference of class means. Needs a store with labels; streams.

    After ``fit``: as ``ContrastFinder``. The vectors are the differences themselves, so that strength 1 in unit
    ``raw`` moves the mean of one class to that of the other.

    Example, after ``denoscope collect --sites mid_block unet:in --prompts canvas:16 --steps 2 --out runs/x``:
        >>> from activations_store import ActivationStore
        >>> from probe.directions import MeanDifference
        >>> store = ActivationStore.open("runs/x/store")
        >>> found = MeanDifference(site="unet.mid_block:out", factor="background", positive="dark").fit(store)
        >>> found.auc_.shape  # one for each step
        (2,)
        >>> edit = found.direction_.intervention(strength=1.0, unit="raw")
    """

    def _vector(self, rows: SiteRows, step: int, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
        return class_mean(rows, step, positive) - class_mean(rows, step, negative)
