"""Dictionaries of features as tensors: what a trained one comes down to at one moment.

All read p = (x - b_dec) W_enc + b_enc and reconstruct x_hat = z W_dec + b_dec. They differ in which features are on:

    TopKDictionary         z = ReLU(TopK_k(p))
    ThresholdDictionary    z_i = p_i where p_i > threshold_i       (thresholds 0: a ReLU)
    UnitNormDictionary     z = ||x - m|| z', with z' the code of (x - m) / ||x - m|| in another dictionary
    StandardisedDictionary z = s z', with z' the code of (x - m) / s in another; m, s: mean and deviation of each row

They are held as tensors because a recipe stores them, so that it replays without the autoencoder's folder. And an edit
of a few features needs only their codes. With thresholds each feature stands alone. Among the k largest a feature is on
exactly where p is positive and fewer than k entries are larger, so rows where it cannot be on cost nothing more than
one product with its own encoder column, and no row is sorted; all of W_enc is needed for the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from probe.errors import InvalidIntervention

_CHUNK_VALUES = 1 << 20
_GROUP = 8
_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


class Dictionary(Protocol):
    """A dictionary of features over rows of length d.

    ``W_dec`` is (d_sae, d), one direction a feature.
    """

    @property
    def W_dec(self) -> torch.Tensor:
        """(d_sae, d)."""
        ...

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """(..., d) rows to a dense (..., d_sae) code, >= 0."""
        ...

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """(..., d_sae) code to (..., d) rows."""
        ...


@dataclass(frozen=True, eq=False)
class _Affine:
    """The four tensors that all share.

    Attributes:
        W_enc: (d, d_sae) float32.
        b_enc: (d_sae,).
        W_dec: (d_sae, d).
        b_dec: (d,), subtracted before encoding and added after decoding.
    """

    W_enc: torch.Tensor
    b_enc: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor

    def __post_init__(self) -> None:
        d, d_sae = self.W_enc.shape if self.W_enc.ndim == 2 else (-1, -1)
        found = {name: tuple(getattr(self, name).shape) for name in _NAMES}
        expected = {"W_enc": (d, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d), "b_dec": (d,)}
        if found != expected:
            raise InvalidIntervention(f"{type(self).__name__}: shapes {found} do not fit; expected {expected}.")
        for name in _NAMES:
            object.__setattr__(self, name, getattr(self, name).detach().float().contiguous())

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """(..., d_sae) code to (..., d) rows."""
        return z @ self.W_dec + self.b_dec

    def pre(self, x: torch.Tensor) -> torch.Tensor:
        """(..., d) rows to all pre-activations (..., d_sae)."""
        flat = (x.float() - self.b_dec).reshape(-1, x.shape[-1])
        return torch.addmm(self.b_enc, flat, self.W_enc).reshape(*x.shape[:-1], -1)

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors, by name."""
        return {name: getattr(self, name) for name in _NAMES}


@dataclass(frozen=True, eq=False)
class TopKDictionary(_Affine):
    """A TopK autoencoder as tensors: those of all, and

    Attributes:
        k: features kept for a row.
    """

    k: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.k <= self.W_dec.shape[0]:
            raise InvalidIntervention(f"TopKDictionary: k is {self.k}, of {self.W_dec.shape[0]} features.")

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """(..., d) rows to a dense (..., d_sae) code."""
        p = self.pre(x)
        top = p.topk(self.k, dim=-1)
        return torch.zeros_like(p).scatter(-1, top.indices, top.values.relu())

    def encode_features(self, x: torch.Tensor, features: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
        """Codes of a few features, exact where they exceed ``above`` and 0 where they do not.

        Args:
            x: (N, d) rows.
            features: (m,) int64.
            above: (m,) lower bounds, >= 0.

        Returns:
            (N, m) codes.
        """
        centred = x.float() - self.b_dec
        own = centred @ self.W_enc[:, features] + self.b_enc[features]
        rows = (own > above).any(-1).nonzero().squeeze(-1)
        z = centred.new_zeros(len(x), len(features))
        d_sae = self.W_enc.shape[1]
        height = max(64, _CHUNK_VALUES // d_sae)  # chunks of pre-activations stay in a core's cache
        buffers = centred.new_empty(2, min(height, max(1, len(rows))), d_sae)
        for chunk in rows.split(height):
            p = torch.addmm(self.b_enc, centred[chunk], self.W_enc, out=buffers[0, : len(chunk)])
            z[chunk] = self._codes_from(p, features, above, buffers[1, : len(chunk)])
        return z

    def _codes_from(
        self, p: torch.Tensor, features: torch.Tensor, above: torch.Tensor, scratch: torch.Tensor
    ) -> torch.Tensor:
        """Codes of features from all pre-activations (N, d_sae); 0 where they are not above ``above``.

        An entry is out as soon as k groups of entries have a larger maximum, which excludes nearly all at an eighth
        of the cost; the entries larger than the others are counted one by one.
        """
        own = p[:, features]
        left = own > above
        n_groups = p.shape[1] // _GROUP
        if n_groups >= self.k:
            maxima = p[:, : n_groups * _GROUP].view(len(p), _GROUP, n_groups).amax(1)
            flags = scratch.view(-1)[: maxima.numel()].view(maxima.shape)  # floats: sums of booleans are slow
            for column in range(len(features)):
                left[:, column] &= torch.gt(maxima, own[:, column, None], out=flags).sum(-1) < self.k
        row, column = left.nonzero(as_tuple=True)
        z = torch.zeros_like(own)
        for part in torch.arange(len(row), device=p.device).split(len(scratch)):
            r, c = row[part], column[part]
            value = own[r, c]
            larger = torch.gt(p[r], value[:, None], out=scratch[: len(part)]).sum(-1)
            z[r, c] = torch.where(larger < self.k, value, 0.0)
        return z


@dataclass(frozen=True, eq=False)
class ThresholdDictionary(_Affine):
    """A JumpReLU autoencoder, or a ReLU one, as tensors: those of all, and

    Attributes:
        threshold: (d_sae,), >= 0.
    """

    threshold: torch.Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        threshold = self.threshold.detach().float().contiguous()
        if threshold.shape != self.b_enc.shape or not bool((threshold >= 0).all()):
            raise InvalidIntervention(
                f"ThresholdDictionary: the threshold has shape {tuple(threshold.shape)} and goes down to "
                f"{float(threshold.min()):g}; expected {tuple(self.b_enc.shape)} values of at least 0."
            )
        object.__setattr__(self, "threshold", threshold)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """(..., d) rows to a dense (..., d_sae) code."""
        p = self.pre(x)
        return p * (p > self.threshold)

    def encode_features(self, x: torch.Tensor, features: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
        """(N, m) codes of a few features; see ``TopKDictionary``."""
        p = (x.float() - self.b_dec) @ self.W_enc[:, features] + self.b_enc[features]
        return p * (p > self.threshold[features])

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors, by name."""
        return super().to_tensors() | {"threshold": self.threshold}


@dataclass(frozen=True, eq=False)
class UnitNormDictionary:
    """A dictionary of rows of unit length, as one of rows of any length.

    Attributes:
        inner: reads (x - mean) / ||x - mean||; its b_dec is 0.
        mean: (d,).
    """

    inner: TopKDictionary | ThresholdDictionary
    mean: torch.Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", self.mean.detach().float().contiguous())
        if self.mean.shape != self.inner.b_dec.shape or bool(self.inner.b_dec.any()):
            raise InvalidIntervention(
                f"UnitNormDictionary: mean of shape {tuple(self.mean.shape)} over a dictionary of width "
                f"{len(self.inner.b_dec)} with b_dec {'not ' if bool(self.inner.b_dec.any()) else ''}0; expected the "
                "same width and 0."
            )

    @property
    def W_dec(self) -> torch.Tensor:
        """(d_sae, d)."""
        return self.inner.W_dec

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """(..., d) rows to a dense (..., d_sae) code in the units of x."""
        y, length = self._split(x)
        return self.inner.encode(y) * length

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """(..., d_sae) code to (..., d) rows."""
        return self.inner.decode(z) + self.mean

    def encode_features(self, x: torch.Tensor, features: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
        """(N, m) codes of a few features; see ``TopKDictionary``."""
        y, length = self._split(x)
        return self.inner.encode_features(y, features, torch.zeros_like(above)) * length

    def _split(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        centred = x.float() - self.mean
        length = centred.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return centred / length, length


@dataclass(frozen=True, eq=False)
class StandardisedDictionary:
    """A dictionary of rows of mean 0 and deviation 1, as one of any rows: x_hat = s (z W_dec + b_dec) + m.

    Codes are s z, in the units of x, then three that say how the row was standardised: s (direction b_dec), and the
    positive and the negative part of m (directions (1, ..., 1) and its negative).

    Attributes:
        inner: reads (x - m) / (s + 1e-5), with m and s the mean and standard deviation of a row over its channels.
    """

    inner: TopKDictionary | ThresholdDictionary

    @property
    def W_dec(self) -> torch.Tensor:
        """(d_sae, d)."""
        ones = torch.ones_like(self.inner.b_dec)
        return torch.cat([self.inner.W_dec, torch.stack([self.inner.b_dec, ones, -ones])])

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """(..., d) rows to a dense (..., d_sae) code in the units of x."""
        y, more = self._split(x)
        return torch.cat([self.inner.encode(y) * more[..., :1], more], -1)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """(..., d_sae) code to (..., d) rows."""
        return z @ self.W_dec

    def encode_features(self, x: torch.Tensor, features: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
        """(N, m) codes of a few features; see ``TopKDictionary``."""
        y, more = self._split(x)
        first = self.inner.W_dec.shape[0]
        own = features < first
        z = more.new_empty(len(x), len(features))
        z[:, own] = self.inner.encode_features(y, features[own], torch.zeros_like(above[own])) * more[:, :1]
        z[:, ~own] = more[:, features[~own] - first]
        return z

    @staticmethod
    def _split(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = x.float().mean(-1, keepdim=True)
        centred = x.float() - mean
        deviation = centred.std(-1, keepdim=True)
        return centred / (deviation + 1e-5), torch.cat([deviation, mean.relu(), (-mean).relu()], -1)


PlainDictionary = TopKDictionary | ThresholdDictionary | UnitNormDictionary | StandardisedDictionary
