"""The code of one sample at every step: which features are on in which cell, and how strongly.

Kept sparse, as the dictionary gives it: k slots for each (step, cell). With z_i(s, c) the activation of feature i at
step s in cell c, and C the chosen cells,

    mean   a_i(s) = sum over c in C of z_i(s, c) / |C|
    peak   p_i(s) = max over c in C of z_i(s, c)

One sample at all steps is one read of the store and one encoding on the CPU. Rows that were drawn instead of read are
encoded by the same function, so a recorded prompt drawn again has the same code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from activations_store import ActivationStore
    from sae import OpenedSAE

Rows = Mapping[str, np.ndarray]
"""Site -> (n_steps, tokens, channels) rows of one sample and branch, all steps of the store."""


@dataclass(frozen=True, eq=False)
class Codes:
    """What every feature does in one sample.

    Attributes:
        values: (n_steps, tokens, slots) float32 >= 0; 0 is an unused slot.
        features: (n_steps, tokens, slots) int32 in [0, d_sae).
        d_sae: number of features.
        grid: (height, width) of the map; (1, tokens) for a site without a grid.
    """

    values: np.ndarray
    features: np.ndarray
    d_sae: int
    grid: tuple[int, int]

    def mean(self, tokens: np.ndarray) -> np.ndarray:
        """(n_steps, d_sae) float64: mean activation over some cells at every step."""
        values, features = self.values[:, tokens], self.features[:, tokens]
        n_steps = len(values)
        entry = features + np.arange(n_steps)[:, None, None] * self.d_sae
        sums = np.bincount(entry.ravel(), values.ravel(), n_steps * self.d_sae)
        return sums.reshape(n_steps, self.d_sae) / len(tokens)

    def peak(self, tokens: np.ndarray, step: int) -> np.ndarray:
        """(d_sae,) float32: largest activation in some cells at the step of this index."""
        found = np.zeros(self.d_sae, np.float32)
        np.maximum.at(found, self.features[step, tokens], self.values[step, tokens])
        return found

    def maps(self, feature: int) -> np.ndarray:
        """(n_steps, height, width) float32: one feature everywhere."""
        return np.where(self.features == feature, self.values, 0).max(-1).reshape(-1, *self.grid)


def recorded_codes(store: ActivationStore, sae: OpenedSAE, sample: int, *, steps: Sequence[int], branch: str) -> Codes:
    """The code of a sample of a store.

    Args:
        store: where it was recorded.
        sae: the dictionary.
        sample: number of the sample.
        steps: which steps, in sampling order.
        branch: guidance branch.

    Raises:
        sae.errors.SAESiteMismatch, SAEModelMismatch: the dictionary belongs to another site or model.
        sae.errors.EmptySelection, activations_store.errors.MissingSamples: the sample, or a map of it, is not there.
    """
    from sae import check_fits
    from sae.data import select, stream

    site = check_fits(sae, store)
    chosen = select(store, site, samples=[sample], steps=list(steps), branches=[branch], blocks=sae.config.blocks)
    return _encode(sae, next(stream(store, chosen)).x, chosen.log_snr, store.site(site).spec.grid)


def drawn_codes(
    sae: OpenedSAE, rows: Rows, *, steps: Sequence[int], log_snr: Sequence[float], grid: tuple[int, int] | None
) -> Codes:
    """The code of a sample that was just drawn.

    Args:
        sae: the dictionary.
        rows: of every site that the dictionary reads.
        steps: which of their steps to encode; a crosscoder over steps has its own.
        log_snr: of these steps.
        grid: (height, width) of the map, or None.
    """
    config = sae.config
    blocks = config.blocks or ((config.site, None, config.d_in),)
    if blocks[0][1] is not None:
        steps, log_snr = list(steps)[:1], list(log_snr)[:1]
    parts = [rows[site][list(steps) if step is None else [step]] for site, step, _ in blocks]
    return _encode(sae, np.concatenate(parts, axis=-1)[None].astype(np.float32), log_snr, grid)


def _encode(sae: OpenedSAE, x: np.ndarray, log_snr: Sequence[float], grid: tuple[int, int] | None) -> Codes:
    """x: (1, n_steps, tokens, d) float32."""
    import torch

    from sae.architectures.timed import encode_maps

    with torch.no_grad():
        code = encode_maps(sae, torch.from_numpy(np.ascontiguousarray(x)).to(sae.W_dec.device), log_snr)
    values, features = code.values[0].float().cpu().numpy(), code.indices[0].int().cpu().numpy()
    return Codes(values, features, sae.config.d_sae, grid or (1, x.shape[2]))
