"""Do two dictionaries of the same rows, trained from different seeds, learn the same features?

Features of dictionary a are paired with features of b one to one, so that the sum of similarities is largest (the
Hungarian method, Kuhn 1955, through SciPy). Two similarities:

    decoder       cosine of the decoder rows
    activation    Pearson correlation of the codes on the same rows; a feature that is never on correlates with nothing

A matched similarity is high for chance reasons too: with many features there is always one nearby. So the same matching
is done against a dictionary that was initialised on the same rows and not trained (random unit decoder rows, encoder =
decoder^T, the same number of features on), and the two are reported side by side. A feature counts as shared above 0.7
(Paulo & Belrose 2025, arXiv 2501.16615).

Cost: d_sae^2 memory and about d_sae^3 time, so only the most active features take part (``max_features``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from activations_store import ActivationStore
from sae.architectures.timed import TimedSAE, encode_maps
from sae.architectures.topk import TopKSAE
from sae.config import SAEConfig
from sae.data import Selection, select, stream
from sae.errors import EmptySelection, ShapeMismatch
from sae.interchange.interop import OpenedSAE

SHARED_ABOVE = 0.7
MAX_FEATURES = 2048
_BLOCK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Match:
    """One-to-one pairs of features, and how alike they are.

    Attributes:
        first, second: (n,) int64, features of the two dictionaries, in pairs.
        similarity: (n,) float64.
    """

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray

    def summary(self) -> dict[str, float]:
        """Mean, median and share of shared features, of those that took part."""
        return {
            "mean": float(self.similarity.mean()),
            "median": float(np.median(self.similarity)),
            "shared": float((self.similarity > SHARED_ABOVE).mean()),
        }


@dataclass(frozen=True)
class Stability:
    """Two dictionaries compared; the null is the first against an untrained one."""

    decoder: Match
    activation: Match
    decoder_null: Match
    activation_null: Match
    rows: int

    def summary(self) -> dict[str, Any]:
        """Numbers only."""
        names = ("decoder", "activation", "decoder_null", "activation_null")
        return {f"{n}_{k}": v for n in names for k, v in getattr(self, n).summary().items()} | {"rows": self.rows}


def compare(
    first: OpenedSAE,
    second: OpenedSAE,
    store: ActivationStore,
    *,
    site: str | None = None,
    max_rows: int = 100_000,
    max_features: int = MAX_FEATURES,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Stability:
    """Match the features of two dictionaries on rows of a store.

    Args:
        site: where no dictionary names one.
        max_rows: rows to correlate the codes on, spread over the store.
        max_features: the most active features of each that take part.
        seed: of the untrained dictionary.
        progress: called with (done, total) rows.

    Raises:
        ShapeMismatch: the dictionaries read rows of different widths or sites. EmptySelection: a dictionary is
            silent on all of them.
    """
    sites = {s for s in (first.config.site, second.config.site, site) if s}
    if first.config.d_in != second.config.d_in or first.config.blocks != second.config.blocks or len(sites) != 1:
        raise ShapeMismatch(
            f"One dictionary reads {first.config.site or 'an unnamed site'} ({first.config.d_in} wide), the other "
            f"{second.config.site or 'an unnamed site'} ({second.config.d_in} wide); only dictionaries of one site "
            "can be compared."
        )
    chosen = select(store, sites.pop(), max_rows=max_rows, blocks=first.config.blocks)
    null = untrained(first.config, store, chosen, seed)
    alive = [_most_active(sae, store, chosen, max_features) for sae in (first, second, null)]
    sums = [_CodeSums(len(alive[0]), len(other)) for other in alive[1:]]
    done = 0
    for block in stream(store, chosen, block_bytes=_BLOCK_BYTES):
        x = torch.from_numpy(block.x)
        codes = [_codes(sae, x, chosen.log_snr, at) for sae, at in zip((first, second, null), alive, strict=True)]
        for each, other in zip(sums, codes[1:], strict=True):
            each.add(codes[0], other)
        done += len(codes[0])
        if progress is not None:
            progress(done, chosen.n_rows)
    cosines = [_cosines(first, other, alive[0], at) for other, at in zip((second, null), alive[1:], strict=True)]
    matches = [
        _match(similar, alive[0], at)
        for similar, at in zip((*cosines, *(each.correlations() for each in sums)), alive[1:] * 2, strict=True)
    ]
    return Stability(matches[0], matches[2], matches[1], matches[3], done)


class _CodeSums:
    """Streaming correlations between the codes of two dictionaries, in float64."""

    def __init__(self, n_first: int, n_second: int) -> None:
        self._n = 0
        self._a, self._aa = np.zeros(n_first), np.zeros(n_first)
        self._b, self._bb = np.zeros(n_second), np.zeros(n_second)
        self._ab = np.zeros((n_first, n_second))

    def add(self, a: Tensor, b: Tensor) -> None:
        """Adds (rows, n_first) and (rows, n_second) codes."""
        self._n += len(a)
        self._a += a.double().sum(0).numpy()
        self._b += b.double().sum(0).numpy()
        self._aa += a.double().square().sum(0).numpy()
        self._bb += b.double().square().sum(0).numpy()
        self._ab += (a.T @ b).double().numpy()

    def correlations(self) -> np.ndarray:
        """(n_first, n_second)."""
        covariance = self._ab / self._n - np.outer(self._a, self._b) / self._n**2
        spread_a = np.sqrt(np.maximum(self._aa / self._n - (self._a / self._n) ** 2, 0))
        spread_b = np.sqrt(np.maximum(self._bb / self._n - (self._b / self._n) ** 2, 0))
        scale = np.outer(spread_a, spread_b)
        return np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 0)


def untrained(config: SAEConfig, store: ActivationStore, chosen: Selection, seed: int) -> TopKSAE:
    """A TopK dictionary of the same size with random weights, its bias and scale set from the rows."""
    sae = TopKSAE(SAEConfig(config.d_in, config.d_sae, min(config.k, config.d_sae), chosen.site), seed=seed + 1_000_003)
    block = next(iter(stream(store, chosen, block_bytes=_BLOCK_BYTES)))
    sae.initialise(torch.from_numpy(block.x.reshape(-1, chosen.channels)))
    return sae


def _most_active(sae: OpenedSAE, store: ActivationStore, chosen: Selection, limit: int) -> np.ndarray:
    """Features that are on in most rows, ascending; only those that are on at all."""
    fired = np.zeros(sae.config.d_sae, dtype=np.int64)
    for block in stream(store, chosen, block_bytes=_BLOCK_BYTES):
        code = encode_maps(sae, torch.from_numpy(block.x).to(sae.W_dec.device), chosen.log_snr)
        fired += torch.bincount(code.indices[code.values > 0], minlength=len(fired)).cpu().numpy()
    best = np.argsort(-fired, kind="stable")[:limit]
    alive = np.sort(best[fired[best] > 0])
    if not len(alive):
        raise EmptySelection(f"A dictionary of {chosen.site} is silent on all {chosen.n_rows} rows of {store.place}.")
    return alive


def _codes(sae: OpenedSAE, x: Tensor, log_snr: Sequence[float], features: np.ndarray) -> Tensor:
    """(rows, n) codes of some features on (samples, steps, tokens, d) maps."""
    dense = encode_maps(sae, x.to(sae.W_dec.device), log_snr).to_dense(sae.config.d_sae)
    return dense[..., torch.from_numpy(features)].flatten(0, -2).float().cpu()


def decoder_rows(sae: OpenedSAE) -> Tensor:
    """(d_sae, d_in): what a code of 1 of each feature adds, at the site; with time in it, as its cores see it."""
    return sae.W_dec if isinstance(sae, TimedSAE) else sae.directions


def _cosines(first: OpenedSAE, second: OpenedSAE, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    rows = [
        torch.nn.functional.normalize(decoder_rows(sae).detach().cpu().double()[torch.from_numpy(at)], dim=1)
        for sae, at in ((first, a), (second, b))
    ]
    return (rows[0] @ rows[1].T).numpy()


def _match(similarity: np.ndarray, first: np.ndarray, second: np.ndarray) -> Match:
    a, b = linear_sum_assignment(similarity, maximize=True)
    return Match(first[a], second[b], similarity[a, b])
