"""When an edit applies, and how its strength runs: by step, by timestep or by log-SNR.

Steps count positions in sampling order, so a window of steps means another stretch of noise when the number of steps
changes; a window of timesteps or of log-SNR does not, and log-SNR means the same in every model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probe.errors import InvalidIntervention
from probe.interventions.ops import Moment

AXES = ("step", "t", "log_snr")


def position(axis: str, moment: Moment, what: str) -> float:
    """Where a moment is on an axis.

    Raises:
        InvalidIntervention: there is no such place: a text encoder has no steps, some schedulers no log-SNR.
    """
    value = float(getattr(moment, axis))
    if math.isnan(value) or moment.step < 0:
        raise InvalidIntervention(
            f"{what}: it goes by {axis}, which is not known here (text encoders and their weights have no steps, and "
            "some schedulers do not say their noise level). Use steps at a site of the denoiser."
        )
    return value


@dataclass(frozen=True)
class Window:
    """A stretch of the generation, ends included.

    Attributes:
        axis: ``step``, ``t`` or ``log_snr``.
        low, high: ends; infinite ones are open.
    """

    axis: str
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if self.axis not in AXES:
            raise InvalidIntervention(f"Window: axis {self.axis!r}; expected one of {', '.join(AXES)}.")
        if not float(self.low) <= float(self.high):
            raise InvalidIntervention(f"Window: from {self.low!r} to {self.high!r} there is nothing.")

    def __contains__(self, moment: Moment) -> bool:
        return self.low <= position(self.axis, moment, "window") <= self.high

    def to_record(self) -> dict[str, Any]:
        """JSON values; an open end is None."""
        ends = {"low": self.low, "high": self.high}
        return {"axis": self.axis} | {name: end if math.isfinite(end) else None for name, end in ends.items()}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Window:
        """Inverse of ``to_record``."""
        low, high = record["low"], record["high"]
        return cls(record["axis"], -math.inf if low is None else low, math.inf if high is None else high)


@dataclass(frozen=True)
class Schedule:
    """Strength as a function of time: straight lines between points, constant outside them.

    Attributes:
        axis: ``step``, ``t`` or ``log_snr``.
        at: places on the axis, strictly rising.
        values: the strength at each, finite.
    """

    axis: str
    at: Sequence[float]
    values: Sequence[float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", tuple(float(place) for place in self.at))
        object.__setattr__(self, "values", tuple(float(value) for value in self.values))
        if self.axis not in AXES:
            raise InvalidIntervention(f"Schedule: axis {self.axis!r}; expected one of {', '.join(AXES)}.")
        if len(self.at) != len(self.values) or not self.at or not np.isfinite([*self.at, *self.values]).all():
            raise InvalidIntervention(
                f"Schedule: {len(self.at)} places, {len(self.values)} values; expected as many, finite, at least one."
            )
        if any(b <= a for a, b in zip(self.at, self.at[1:], strict=False)):
            raise InvalidIntervention(f"Schedule: places {self.at} do not rise.")

    def __call__(self, moment: Moment) -> float:
        """The strength at a moment."""
        return float(np.interp(position(self.axis, moment, "schedule"), self.at, self.values))

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        return {"axis": self.axis, "at": list(self.at), "values": list(self.values)}
