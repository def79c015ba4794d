"""What is done to a row before the dictionary reads it, and how it is undone.

With m and C the mean and covariance of the site over the chosen steps and branches (`ActivationStore.statistics`), and
y what the encoder reads, up to the input scale s:

    raw         y = x
    centred     y = x - m
    unit        y = (x - m) / ||x - m||
    whitened    y = (x - m) P        P = U diag(max(lambda, f lambda_max))^(-1/2) U^T,   C = U diag(lambda) U^T

`whitened` is ZCA (Bell & Sejnowski 1997): of all whitening matrices the one that moves rows least, so that channels
keep their meaning. Directions with less than f = 1e-4 of the largest variance are not blown up to unit variance, and P
always has an inverse. Decoding goes back:

    raw, centred    xh = yh (+ m)                    a code has the units of x, as without
    whitened        xh = yh P^-1 + m                 a code counts standard deviations: z_i is the length of feature i's
                                                     part of y, and its part of x is z_i d_i P^-1, not of unit length
    unit            xh = ||x - m|| yh + m            the factor goes into the codes, z <- ||x - m|| z, which then have
                                                     the units of x; b_dec stays 0, so decoding needs no norm

All but `unit` are affine and are folded into the weights of a finished dictionary: it then reads x itself, computes
the same codes and reconstructions, and sae-lens loads it.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sae.config import SAEConfig

FLOOR = 1e-4  # f: smallest variance that is brought to 1, as a share of the largest


class Moments(NamedTuple):
    """Mean (d,) and covariance (d, d) of rows, float64."""

    mean: Tensor
    covariance: Tensor


class InputMap(nn.Module):
    """Raw: rows as they are. The other maps override what they change."""

    fixes_bias = False  # True where b_dec must stay 0
    affine = True  # False where the map cannot be folded into the weights

    def into(self, x: Tensor) -> Tensor:
        """(..., d) rows to what the dictionary reads, before the input scale."""
        return x

    def out(self, y: Tensor) -> Tensor:
        """(..., d) reconstructions of y to reconstructions of x, from codes that `carry` went over."""
        return y

    def carry(self, z: Tensor, x: Tensor) -> Tensor:
        """(..., n) codes of y to codes of x."""
        return z

    def directions(self, decoder: Tensor) -> Tensor:
        """(n, d) decoder rows as directions at the site, for a code of 1."""
        return decoder

    def fit(self, moments: Moments) -> None:
        """Takes over the statistics."""

    def encoder_rows(self, encoder: Tensor) -> Tensor:
        """(n, d) encoder rows that read x where `encoder` reads y."""
        return encoder

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint and a file hold of it."""
        return dict(self.named_buffers())


class Centred(InputMap):
    """x - m, channel by channel divided by `width`: 1 unless several sites are read together."""

    mean: Tensor
    width: Tensor

    def __init__(self, d: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("width", torch.ones(d))

    def into(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.width

    def out(self, y: Tensor) -> Tensor:
        return y * self.width + self.mean

    def directions(self, decoder: Tensor) -> Tensor:
        return decoder * self.width

    def encoder_rows(self, encoder: Tensor) -> Tensor:
        return encoder / self.width

    def fit(self, moments: Moments) -> None:
        self.mean.copy_(moments.mean)


class UnitNorm(InputMap):
    """(x - m) / ||x - m||; a row at the mean stays 0."""

    fixes_bias = True
    affine = False
    mean: Tensor

    def __init__(self, d: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(d))

    def into(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self._length(x)

    def out(self, y: Tensor) -> Tensor:
        return y + self.mean

    def carry(self, z: Tensor, x: Tensor) -> Tensor:
        return z * self._length(x)

    def fit(self, moments: Moments) -> None:
        self.mean.copy_(moments.mean)

    def _length(self, x: Tensor) -> Tensor:
        return (x - self.mean).norm(dim=-1, keepdim=True).clamp_min(torch.finfo(self.mean.dtype).tiny)


class Whitened(InputMap):
    """(x - m) P."""

    mean: Tensor
    whiten: Tensor
    colour: Tensor

    def __init__(self, d: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("whiten", torch.eye(d))
        self.register_buffer("colour", torch.eye(d))

    def into(self, x: Tensor) -> Tensor:
        return (x - self.mean) @ self.whiten

    def out(self, y: Tensor) -> Tensor:
        return y @ self.colour + self.mean

    def directions(self, decoder: Tensor) -> Tensor:
        return decoder @ self.colour

    def encoder_rows(self, encoder: Tensor) -> Tensor:
        return encoder @ self.whiten  # P is symmetric

    def fit(self, moments: Moments) -> None:
        values, vectors = torch.linalg.eigh(moments.covariance.double())
        largest = values[-1].clamp_min(torch.finfo(torch.float32).tiny)
        spread = values.clamp_min(FLOOR * largest).sqrt()
        self.mean.copy_(moments.mean)
        self.whiten.copy_((vectors / spread) @ vectors.T)
        self.colour.copy_((vectors * spread) @ vectors.T)


class Modulated(InputMap):
    """Another map, then y' = y g + h with one g > 0 and h for all rows: one noise level of a FiLM dictionary."""

    affine = False
    gain: Tensor
    shift: Tensor

    def __init__(self, base: InputMap, gain: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("gain", gain)
        self.register_buffer("shift", shift)
        self.fixes_bias = base.fixes_bias

    def into(self, x: Tensor) -> Tensor:
        return self.base.into(x) * self.gain + self.shift

    def out(self, y: Tensor) -> Tensor:
        return self.base.out((y - self.shift) / self.gain)

    def carry(self, z: Tensor, x: Tensor) -> Tensor:
        return self.base.carry(z, x)

    def directions(self, decoder: Tensor) -> Tensor:
        return self.base.directions(decoder / self.gain)


class Residual(InputMap):
    """What a prediction of each row leaves over, then another map: one step of a residual dictionary."""

    affine = False

    def __init__(self, base: InputMap, prediction: Tensor) -> None:
        super().__init__()
        self.base = base
        self.prediction = prediction  # (..., d), for the rows that will be given

    def into(self, x: Tensor) -> Tensor:
        return self.base.into(x - self.prediction)

    def out(self, y: Tensor) -> Tensor:
        return self.base.out(y) + self.prediction

    def carry(self, z: Tensor, x: Tensor) -> Tensor:
        return self.base.carry(z, x - self.prediction)

    def directions(self, decoder: Tensor) -> Tensor:
        return self.base.directions(decoder)


_MAPS: dict[str, type[InputMap]] = {"centred": Centred, "unit": UnitNorm, "whitened": Whitened}


def input_map(config: SAEConfig) -> InputMap:
    """The map of a configuration, before its statistics are known."""
    if config.blocks is not None:
        return Centred(config.d_in)
    return InputMap() if config.input == "raw" else _MAPS[config.input](config.d_in)  # type: ignore[call-arg]


def map_shapes(kind: str, d: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of the tensors of a map."""
    shapes: dict[str, tuple[int, ...]] = {} if kind == "raw" else {"mean": (d,)}
    if kind == "centred":
        shapes["width"] = (d,)
    if kind == "whitened":
        shapes |= {"whiten": (d, d), "colour": (d, d)}
    return shapes
