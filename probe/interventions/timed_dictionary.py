"""Dictionaries in which the denoising step enters, as interventions use them.

At one noise level such a dictionary is a plain one that reads changed rows; with l the log-SNR of the step:

    per step    one of several plain dictionaries; features are numbered through all of them
    film        rows y g(l) + h(l), with (log g, h) = W2 tanh(u(l) w1 + b1) + b2 and y = (x - m) P; a feature's
                direction is then d / g(l) P^-1
    residual    rows x - x' A - c, with x' the same rows at the step before

``at`` gives the dictionary of a moment. The rows of the step before are remembered by the operation (``RowMemory``):
they are what the model computed there, before this operation changed it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from probe.errors import InvalidIntervention
from probe.interventions.plain_dictionary import PlainDictionary

_LIMIT = 30.0  # log-SNRs beyond are as good as infinite, and stores keep them inside


class Film(NamedTuple):
    """A network from noise level to modulation, and what rows go through before it.

    Attributes:
        w1, b1: (H,).
        w2, b2: (2 d, H), (2 d,).
        mean: (d,), m.
        whiten, colour: (d, d), P and its inverse.
    """

    w1: torch.Tensor
    b1: torch.Tensor
    w2: torch.Tensor
    b2: torch.Tensor
    mean: torch.Tensor
    whiten: torch.Tensor
    colour: torch.Tensor


class Predictor(NamedTuple):
    """Attributes: transition: (T, d, d), A of each level, not used at the first. offset: (T, d), c."""

    transition: torch.Tensor
    offset: torch.Tensor


@dataclass(frozen=True, eq=False)
class TimedDictionary:
    """Plain dictionaries and how a noise level chooses or changes them.

    Attributes:
        members: of equal size; features are numbered through them in this order.
        levels: (T,) float64 log-SNR of the steps of training.
        groups: for each level, which member reads it.
        film, predictor: None without.
    """

    members: tuple[PlainDictionary, ...]
    levels: torch.Tensor
    groups: tuple[int, ...]
    film: Film | None = None
    predictor: Predictor | None = None

    @property
    def W_dec(self) -> torch.Tensor:
        """(d_sae, d) directions of all features; of a film dictionary, without modulation."""
        rows = torch.cat([member.W_dec for member in self.members])
        return rows if self.film is None else rows @ self.film.colour

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Not defined without a noise level."""
        raise InvalidIntervention("TimedDictionary: a code depends on the noise level; use at(log_snr).")

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Not defined without a noise level."""
        raise InvalidIntervention("TimedDictionary: a reconstruction depends on the noise level; use at(log_snr).")

    def level_of(self, log_snr: float) -> int:
        """Position of the nearest level.

        Raises:
            InvalidIntervention: the scheduler does not say how noisy a step is.
        """
        if log_snr != log_snr:
            raise InvalidIntervention(
                "TimedDictionary: the noise level of this step is not known, and codes depend on it. Use it at a site "
                "of the denoiser, with a scheduler that has sigmas or alphas_cumprod."
            )
        return int((self.levels - max(-_LIMIT, min(_LIMIT, log_snr))).abs().argmin())

    def at(self, log_snr: float, previous: torch.Tensor | None = None) -> MomentDictionary:
        """The dictionary of one noise level.

        Args:
            log_snr: the level.
            previous: with a predictor, (..., d) rows of the step before, shaped as those that will be encoded; None at
                the first level.
        """
        level = self.level_of(log_snr)
        number = self.groups[level]
        prediction = None
        if self.predictor is not None:
            prediction = self.predictor.offset[level]
            if level:
                assert previous is not None
                prediction = previous.to(prediction) @ self.predictor.transition[level] + prediction
        modulation = None if self.film is None else self._modulation(self.film, log_snr)
        return MomentDictionary(self, number, prediction, modulation)

    def _modulation(self, film: Film, log_snr: float) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = float(self.levels.min()), float(self.levels.max())
        u = max(-1.0, min(1.0, (log_snr - (low + high) / 2) / max((high - low) / 2, 1e-6)))
        a, shift = (torch.tanh(u * film.w1 + film.b1) @ film.w2.T + film.b2).chunk(2)
        return a.exp(), shift


class MomentDictionary:
    """A timed dictionary at one moment; features of other members are off and have no direction."""

    def __init__(
        self,
        whole: TimedDictionary,
        number: int,
        prediction: torch.Tensor | None,
        modulation: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None:
        self._plain, self._film = whole.members[number], whole.film
        self._prediction, self._modulation = prediction, modulation
        self._size = self._plain.W_dec.shape[0]
        self._first, self._d_sae = number * self._size, len(whole.members) * self._size
        self.device = self._plain.W_dec.device

    @property
    def W_dec(self) -> torch.Tensor:
        """(d_sae, d)."""
        return self.directions(torch.arange(self._d_sae, device=self.device))

    def directions(self, features: torch.Tensor) -> torch.Tensor:
        """(m, d) directions of some features."""
        mine = self._mine(features)
        rows = self._plain.W_dec[torch.where(mine, features - self._first, 0)]
        if self._modulation is not None and self._film is not None:
            rows = (rows / self._modulation[0]) @ self._film.colour
        return rows * mine[:, None]

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """(..., d) rows to a dense (..., d_sae) code."""
        z = self._plain.encode(self._into(x))
        whole = z.new_zeros(*z.shape[:-1], self._d_sae)
        whole[..., self._first : self._first + self._size] = z
        return whole

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """(..., d_sae) code to (..., d) rows."""
        y = self._plain.decode(z[..., self._first : self._first + self._size])
        if self._modulation is not None and self._film is not None:
            gain, shift = self._modulation
            y = ((y - shift) / gain) @ self._film.colour + self._film.mean
        return y if self._prediction is None else y + self._prediction

    def encode_features(self, x: torch.Tensor, features: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
        """(..., m) codes of a few features of (..., d) rows; 0 allowed where they are not above ``above``."""
        mine = self._mine(features)
        y = self._into(x)
        z = y.new_zeros(*x.shape[:-1], len(features))
        if bool(mine.any()):
            found = self._plain.encode_features(y.reshape(-1, y.shape[-1]), features[mine] - self._first, above[mine])
            z[..., mine] = found.view(*x.shape[:-1], -1)
        return z

    def _mine(self, features: torch.Tensor) -> torch.Tensor:
        return (features >= self._first) & (features < self._first + self._size)

    def _into(self, x: torch.Tensor) -> torch.Tensor:
        y = x.float()
        if self._prediction is not None:
            y = y - self._prediction
        if self._modulation is not None and self._film is not None:
            gain, shift = self._modulation
            y = ((y - self._film.mean) @ self._film.whiten) * gain + shift
        return y


class RowMemory:
    """The rows that an operation was given at the step before, by place and branch."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], tuple[int, torch.Tensor, torch.Tensor | None]] = {}

    def previous(self, place: tuple[str, str], level: int, x: torch.Tensor) -> torch.Tensor | None:
        """Rows of level - 1; None at level 0. Remembers x. Asked again about the same x, it answers the same.

        Raises:
            InvalidIntervention: the step before was not seen in this generation.
        """
        seen = self._last.get(place)
        if seen is not None and seen[0] == level and seen[1] is x:
            return seen[2]
        found = None
        if level:
            if seen is None or seen[0] != level - 1 or seen[1].shape != x.shape:
                raise InvalidIntervention(
                    f"A residual dictionary at {place[0]} reads each step after the one before, and met step {level} "
                    "of its levels without. Apply the edit from the first step on with the step count of training; "
                    "where nothing is to change, give feature -1."
                )
            found = seen[1]
        self._last[place] = (level, x, found)
        return found
