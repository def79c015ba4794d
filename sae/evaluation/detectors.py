"""Anything that answers rows with numbers, so that features compete with what was there before them.

A detector turns rows (n, d) of a site into activations (n, n_units). Beside the features of a dictionary:

    PCA        projections on the principal axes of the site's rows, most variance first
    random     projections on random unit vectors
    neurons    the site's own channels

A projection can mean something by being low, so each direction comes with both signs, as a unit of its own; rows are
centred first. A detector is judged by its samples: over the cells of a map its activations are pooled by their mean and
by their maximum, and both are then averaged over steps.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from activations_store import ActivationStore
from sae.architectures.timed import members
from sae.data import Block, Selection, stream
from sae.interchange.interop import OpenedSAE

POOLINGS = ("mean", "max")
_BLOCK_VALUES = 2**24  # activations held at a time
Progress = Callable[[int, int], None]
"""Called with (done, total) samples."""


class Detector(Protocol):
    """Rows to activations."""

    @property
    def name(self) -> str:
        """What it is called in a table."""
        ...

    @property
    def n_units(self) -> int:
        """Number of activations of a row."""
        ...

    def by_step(self, x: Tensor, log_snr: Sequence[float]) -> Iterator[Tensor]:
        """Maps (samples, steps, tokens, d) float32 to (samples, tokens, n_units), one step after another."""
        ...


@dataclass(frozen=True)
class FeatureDetector:
    """The features of a dictionary, whatever it makes of the step."""

    sae: OpenedSAE
    name: str = "features"

    @property
    def n_units(self) -> int:
        return self.sae.config.d_sae

    def by_step(self, x: Tensor, log_snr: Sequence[float]) -> Iterator[Tensor]:
        x = x.to(self.sae.W_dec.device)
        for step, member in enumerate(members(self.sae, x, log_snr)):
            yield member.encode_sparse(x[:, step]).to_dense(self.n_units)


@dataclass(frozen=True, eq=False)
class DirectionDetector:
    """Projections of centred rows.

    Attributes:
        directions: (n_units, d).
        centre: (d,).
    """

    name: str
    directions: Tensor
    centre: Tensor

    @property
    def n_units(self) -> int:
        return len(self.directions)

    def by_step(self, x: Tensor, log_snr: Sequence[float]) -> Iterator[Tensor]:
        for step in range(x.shape[1]):
            yield (x[:, step] - self.centre) @ self.directions.T


def baselines(store: ActivationStore, chosen: Selection, n_random: int, *, seed: int = 0) -> list[DirectionDetector]:
    """PCA, random directions and neurons of a site, centred and fitted on a selection of rows.

    Args:
        n_random: random directions; as many as a dictionary has features makes the comparison even.
        seed: of the random directions.
    """
    d = chosen.channels
    total, second, n = np.zeros(d), np.zeros((d, d)), 0
    for block in stream(store, chosen):
        x = block.x.reshape(-1, d).astype(np.float64)
        total, second, n = total + x.sum(0), second + x.T @ x, n + len(x)
    mean = total / n
    axes = np.linalg.eigh(second / n - np.outer(mean, mean))[1][:, ::-1].T
    drawn = np.random.default_rng(seed).normal(size=(n_random, d))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    centre = torch.from_numpy(mean.astype(np.float32))
    return [
        DirectionDetector(name, torch.from_numpy(np.concatenate([v, -v]).astype(np.float32)), centre)
        for name, v in (("PCA", axes), ("random", drawn), ("neurons", np.eye(d)))
    ]


def pooled(
    detector: Detector, store: ActivationStore, chosen: Selection, *, progress: Progress | None = None
) -> np.ndarray:
    """(2, n_samples, n_units) float32: activations of each sample, pooled over cells by ``POOLINGS``, then averaged
    over the steps and branches of the selection. One pass over the rows.
    """
    n_maps = len(chosen.steps) * len(chosen.branches)
    found = np.zeros((len(POOLINGS), len(chosen.samples), detector.n_units), dtype=np.float32)
    for block, values in _maps(detector, store, chosen):
        found[0, block.samples] += values.mean(1).cpu().numpy() / n_maps
        found[1, block.samples] += values.amax(1).cpu().numpy() / n_maps
        if progress is not None:
            progress(int(block.samples[-1]) + 1, len(chosen.samples))
    return found


def mean_maps(
    detector: Detector,
    store: ActivationStore,
    chosen: Selection,
    units: np.ndarray,
    *,
    progress: Progress | None = None,
) -> np.ndarray:
    """(n_samples, tokens, n) float32: the maps of a few units, averaged over steps and branches."""
    n_maps = len(chosen.steps) * len(chosen.branches)
    found = np.zeros((len(chosen.samples), chosen.tokens, len(units)), dtype=np.float32)
    columns = torch.from_numpy(np.asarray(units, dtype=np.int64))
    for block, values in _maps(detector, store, chosen):
        found[block.samples] += values[..., columns.to(values.device)].cpu().numpy() / n_maps
        if progress is not None:
            progress(int(block.samples[-1]) + 1, len(chosen.samples))
    return found


def part(chosen: Selection, positions: np.ndarray) -> Selection:
    """The samples at some positions of a selection."""
    return replace(chosen, samples=chosen.samples[positions])


def _maps(detector: Detector, store: ActivationStore, chosen: Selection) -> Iterator[tuple[Block, Tensor]]:
    """Each step of each block with its (samples, tokens, n_units) activations; blocks are cut to keep those few."""
    samples = max(1, _BLOCK_VALUES // detector.n_units // chosen.tokens)
    size = samples * len(chosen.steps) * chosen.tokens * chosen.channels * 4
    for block in stream(store, chosen, block_bytes=size):
        with torch.no_grad():
            for values in detector.by_step(torch.from_numpy(block.x), chosen.log_snr):
                yield block, values
