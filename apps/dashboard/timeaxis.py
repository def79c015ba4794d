"""Denoising time in the reader's unit: step, t or log-SNR. Sampling always runs from left to right.

A step is a position in sampling order (0 = most noise), t is the scheduler's own time, log-SNR is log(abar
/ (1 - abar)), the unit that compares models. The unit is chosen once and used on every page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

UNITS = {"step": "step", "t": "timestep t", "logsnr": "log-SNR"}
"""Value in a link -> name shown."""


@dataclass(frozen=True)
class TimeAxis:
    """Positions of a run's steps on a time axis.

    Attributes:
        steps: positions in sampling order.
        timesteps: the scheduler's t at each step.
        log_snr: log-SNR at each step.
        unit: a key of ``UNITS``.
    """

    steps: tuple[int, ...]
    timesteps: tuple[float, ...]
    log_snr: tuple[float, ...]
    unit: str = "step"

    @property
    def values(self) -> Sequence[float]:
        """Where each step lies, in the chosen unit."""
        return {"step": self.steps, "t": self.timesteps, "logsnr": self.log_snr}[self.unit]

    @property
    def title(self) -> str:
        """Axis title with the direction of sampling."""
        return f"{UNITS[self.unit]} (noise → image)"

    @property
    def reversed(self) -> bool:
        """Whether values fall while sampling goes on (t does)."""
        return len(self.values) > 1 and self.values[0] > self.values[-1]

    def label(self, index: int) -> str:
        """One step in all three units: ``step 4 of 19 · t 761 · log-SNR -1.2``."""
        t = self.timesteps[index]
        return f"step {self.steps[index]} of {self.steps[-1]} · t {t:g} · log-SNR {self.log_snr[index]:.1f}"

    def short(self, index: int) -> str:
        """One step in the chosen unit."""
        value = self.values[index]
        return f"{value:.1f}" if self.unit == "logsnr" else f"{value:g}"
