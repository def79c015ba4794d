"""Dictionaries of features, as interventions see them: anything with ``encode``, ``decode`` and ``W_dec``.

``TopKDictionary`` is a plain TopK autoencoder held as tensors,

    p = (x - b_dec) W_enc + b_enc,   z = ReLU(TopK_k(p)),   x_hat = z W_dec + b_dec

for two reasons. A recipe stores it, so that it replays without the autoencoder's folder; all of W_enc is
needed for that, since whether a feature is among the k largest depends on every other one. And an edit of a
few features needs only their codes: a feature is on exactly where p is positive and fewer than k entries are
larger, so rows where it cannot be on cost nothing more than one product with its own encoder column, and no
row is sorted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from probe.errors import InvalidIntervention

_CHUNK_VALUES = 1 << 20
_GROUP = 8


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
class TopKDictionary:
    """A TopK autoencoder as tensors.

    Attributes:
        W_enc: (d, d_sae) float32.
        b_enc: (d_sae,).
        W_dec: (d_sae, d).
        b_dec: (d,), subtracted before encoding and added after decoding.
        k: features kept for a row.
    """

    W_enc: torch.Tensor
    b_enc: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor
    k: int

    def __post_init__(self) -> None:
        d, d_sae = self.W_enc.shape if self.W_enc.ndim == 2 else (-1, -1)
        found = {name: tuple(getattr(self, name).shape) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        expected = {"W_enc": (d, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d), "b_dec": (d,)}
        if found != expected or not 1 <= self.k <= d_sae:
            raise InvalidIntervention(f"TopKDictionary: shapes {found} and k={self.k} do not fit; expected {expected}.")
        for name in found:
            object.__setattr__(self, name, getattr(self, name).detach().float().contiguous())

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """(..., d) rows to a dense (..., d_sae) code."""
        p = self._pre(x.float())
        top = p.topk(self.k, dim=-1)
        return torch.zeros_like(p).scatter(-1, top.indices, top.values.relu())

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """(..., d_sae) code to (..., d) rows."""
        return z @ self.W_dec + self.b_dec

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

    def _pre(self, x: torch.Tensor) -> torch.Tensor:
        flat = (x - self.b_dec).reshape(-1, x.shape[-1])
        return torch.addmm(self.b_enc, flat, self.W_enc).reshape(*x.shape[:-1], -1)

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """The four tensors, by name."""
        return {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}


def as_dictionary(source: Any) -> TopKDictionary:
    """A ``TopKDictionary`` with the weights of a trained TopK autoencoder.

    Args:
        source: an object with ``W_enc``, ``b_enc``, ``W_dec``, ``b_dec``, ``encode``, and ``k`` or ``cfg.k``;
            if it has ``folded()``, that is called first and must return the same with no scaling of its
            input.

    Raises:
        InvalidIntervention: it lacks one of these, or is not a TopK autoencoder of the form above (its codes
            differ).
    """
    if isinstance(source, TopKDictionary):
        return source
    if callable(getattr(source, "folded", None)):
        source = source.folded()  # an input scale is an exact part of the weights
    config = getattr(source, "cfg", getattr(source, "config", None))
    k = getattr(source, "k", getattr(config, "k", config.get("k") if isinstance(config, Mapping) else None))
    missing = [name for name in ("W_enc", "b_enc", "W_dec", "b_dec", "encode") if not hasattr(source, name)]
    if missing or not isinstance(k, int):
        raise InvalidIntervention(
            f"as_dictionary: {type(source).__name__} has no {', '.join(missing) or 'integer k'}; "
            "expected a TopK autoencoder with W_enc, b_enc, W_dec, b_dec, k and encode."
        )
    with torch.no_grad():
        made = TopKDictionary(
            *(getattr(source, name).detach().clone() for name in ("W_enc", "b_enc", "W_dec", "b_dec")), k=k
        )
        d = made.W_enc.shape[0]
        noise = torch.randn(64, d, generator=torch.Generator("cpu").manual_seed(0)).to(made.b_dec.device)
        x = made.b_dec + noise * made.W_enc.norm(dim=0).clamp_min(1e-12).mean().reciprocal()
        expected, found = source.encode(x).float(), made.encode(x)
    # A tie at rank k may be broken either way, hence a share of rows and not all of them.
    same = torch.isclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().amax())).all(-1).float().mean()
    if float(same) < 0.95:
        raise InvalidIntervention(
            f"as_dictionary: {type(source).__name__} does not compute ReLU(TopK((x - b_dec) W_enc + b_enc)); "
            "its codes agree "
            f"on {100 * float(same):.0f} % of test rows. Fold its scaling into the weights first."
        )
    return made


def feature_codes(dictionary: Dictionary, x: torch.Tensor, features: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
    """Codes (..., m) of a few features for rows (..., d), on the device of x; 0 allowed where they are not
    above ``above``.
    """
    home = dictionary.W_dec.device
    features, above = features.to(home), above.to(home)
    flat = x.reshape(-1, x.shape[-1]).to(home)
    with torch.no_grad():
        if isinstance(dictionary, TopKDictionary):
            z = dictionary.encode_features(flat, features, above)
        else:
            z = dictionary.encode(flat)[:, features].float()
    return z.to(x.device).reshape(*x.shape[:-1], len(features))
