"""What a window of log SNR leaves out.

Outside the window the gap falls off exponentially for samples that have a density: towards noise f ~ e^a, since the
noise of a posterior mean grows with alpha^2; towards the clean end f ~ e^-a, since the mean is pinned to within
sigma^2. The mass beyond an edge is then half the gap at the edge,

    1/2 INT_{-inf}^{lo} f(lo) e^{a - lo} da = f(lo) / 2,        the same above hi

A gap that is still rising at an edge makes this a lower bound: the information is cut off, at (hi - lo) / 2 nats a
dimension at most.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from probe.information.nodes import GapCurve

THRESHOLD = 0.05
"""Share of the greatest gap that is left at an edge when a window counts as truncated."""
NEGLIGIBLE = 1e-6
"""Nats that may be missing whatever the shares are: conditions that hardly differ leave a gap of rounding errors."""


class TruncatedWindow(UserWarning):
    """The gap is not over at an edge of the window: part of the information is missing."""


@dataclass(frozen=True)
class Window:
    """What is known of the parts beyond a window.

    Attributes:
        lo, hi: the window.
        missing_low, missing_high: estimated nats beyond each edge; at least that if the gap still rises there.
        share_low, share_high: gap at each edge over the greatest gap.
    """

    lo: float
    hi: float
    missing_low: float
    missing_high: float
    share_low: float
    share_high: float

    @property
    def missing(self) -> float:
        """Estimated nats on both sides."""
        return self.missing_low + self.missing_high

    @property
    def truncated(self) -> bool:
        """Whether an edge has more than a twentieth of the greatest gap, and the missing part counts."""
        return max(self.share_low, self.share_high) > THRESHOLD and self.missing > NEGLIGIBLE

    def warn(self, what: str) -> None:
        """Warn with ``TruncatedWindow`` if the window is truncated."""
        if self.truncated:
            warnings.warn(
                f"{what}: window truncated. At log SNR {self.lo:.4g} the gap is {self.share_low:.0%} of its maximum "
                f"and at {self.hi:.4g} it is {self.share_high:.0%}; about {self.missing_low:.3g} + "
                f"{self.missing_high:.3g} nats are missing, more if it rises further. Widen the window if the model "
                "knows more levels.",
                TruncatedWindow,
                stacklevel=3,
            )


def check_window(curve: GapCurve, window: tuple[float, float]) -> Window:
    """Estimate what lies beyond a window from the gap inside.

    The gap at an edge is the mean of the nodes nearest to it, carried there by the exponential laws: those within one
    unit, or the outermost one.

    Args:
        curve: a gap that is not negative (the orthogonal form), over the whole window.
        window: (lo, hi).
    """
    lo, hi = window
    a, gap = curve.log_snr, np.maximum(curve.gap, 0.0)
    top = float(gap.max())
    low, high = _edge(a - lo, gap), _edge(hi - a, gap)
    share = (low / top, high / top) if top > 0 else (0.0, 0.0)
    return Window(lo, hi, low / 2.0, high / 2.0, *share)


def _edge(distance: np.ndarray, gap: np.ndarray) -> float:
    near = distance <= max(1.0, float(distance.min()))
    # A gap that falls towards the edge is carried there; one that does not is taken as it is, by its mean.
    return float((gap[near] * np.exp(-distance[near])).mean())
