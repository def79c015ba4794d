"""Node tables: how wrong a denoiser is, node by node, pixel by pixel, under every condition, with shared noise.

For image i and node j one noise n is drawn and one noisy sample z = alpha x + sigma n made. All columns c meet that z:

    error[i, j, t, c]            ||n - eps_c(z)||^2 at pixel t, summed over channels
    difference[i, j, t, (c, d)]  ||eps_c(z) - eps_d(z)||^2

Nothing is integrated, so that mutual information, likelihood, classification and decompositions are reductions of one
table and cost no further denoiser call. Guidance is 1: a guided noise is no posterior mean, and none of the identities
would hold. The noise of image i depends on the seed and i alone, not on batch or order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch

from probe.errors import InvalidRequest
from probe.information.columns import Column
from probe.information.node_noise import node_noise
from probe.information.nodes import Nodes
from probe.information.suitable import check_pipeline
from probe.model.eps_model import EpsModel, check_samples, noised
from probe.model.pipeline_eps import PipelineEps

Progress = Callable[[int, int], None]
"""Called with (done, total) denoiser evaluations."""


@dataclass(frozen=True, eq=False)
class NodeTable:
    """Errors and differences of some images.

    Attributes:
        columns: names.
        nodes: how the nodes were placed.
        log_snr, weight: (images, nodes) float64.
        error: (images, nodes, tokens, columns).
        difference: (images, nodes, tokens, pairs), pairs in the order of ``combinations(columns, 2)``.
        dimensions: numbers in a sample, all channels.
        grid: (height, width) of the tokens, or None for vectors.
        x: (images, dimensions) the clean samples, which the Gaussian control's own likelihood needs.
    """

    columns: tuple[str, ...]
    nodes: Nodes
    log_snr: np.ndarray
    weight: np.ndarray
    error: np.ndarray
    difference: np.ndarray
    dimensions: int
    grid: tuple[int, int] | None
    x: np.ndarray

    @property
    def n_images(self) -> int:
        """Images in the table."""
        return len(self.error)

    @property
    def n_nodes(self) -> int:
        """Nodes an image."""
        return self.error.shape[1]

    def errors(self, column: str) -> np.ndarray:
        """(images, nodes, tokens) squared errors of one column, a view."""
        return self.error[..., self.position(column)]

    def differences(self, first: str, second: str) -> np.ndarray:
        """(images, nodes, tokens) squared difference of two columns; zero for a column and itself."""
        a, b = sorted((self.position(first), self.position(second)))
        if a == b:
            return np.zeros(self.error.shape[:3], self.error.dtype)
        return self.difference[..., list(combinations(range(len(self.columns)), 2)).index((a, b))]

    def position(self, column: str) -> int:
        """Number of a column.

        Raises:
            InvalidRequest: there is none of that name.
        """
        if column not in self.columns:
            raise InvalidRequest(f"NodeTable: no column {column!r}; expected one of {', '.join(self.columns)}.")
        return self.columns.index(column)

    def select(self, images: Sequence[int] | np.ndarray) -> NodeTable:
        """The table of some of the images."""
        at = np.asarray(images)
        parts = {name: getattr(self, name)[at] for name in ("log_snr", "weight", "error", "difference", "x")}
        return replace(self, **parts)

    def within(self, low: float, high: float) -> NodeTable:
        """The table of the nodes between two levels; the window shrinks to their cells.

        Raises:
            InvalidRequest: no node lies there, or every image has nodes of its own.
        """
        level = self.log_snr[0]
        kept = np.flatnonzero((level >= low) & (level <= high))
        if not len(kept) or not self.nodes.shared:
            raise InvalidRequest(
                f"NodeTable.within: {len(kept)} of {len(level)} nodes between {low:g} and {high:g}, placement "
                f"{self.nodes.placement!r}; expected at least one, shared by all images."
            )
        edge = self.nodes.window[0] + np.concatenate([[0.0], self.weight[0].cumsum()])
        window = (float(edge[kept[0]]), min(float(edge[kept[-1] + 1]), self.nodes.window[1]))
        nodes = replace(self.nodes, n=len(kept), window=window, location=None, scale=None)
        parts = {name: getattr(self, name)[:, kept] for name in ("log_snr", "weight", "error", "difference")}
        return replace(self, nodes=nodes, **parts)


class Cost(NamedTuple):
    """What a table takes.

    Attributes:
        evaluations: denoiser evaluations, one a noisy sample and column.
        seconds: by a trial of one batch of every column.
        bytes: of errors and differences as float32, in memory or on disk.
    """

    evaluations: int
    seconds: float
    bytes: int


def estimate(model: EpsModel, x: torch.Tensor, columns: Sequence[Column], nodes: Nodes, *, batch: int = 64) -> Cost:
    """Size and time of ``measure`` before it runs; costs one batch a column, of the first images.

    Raises:
        InvalidRequest: as ``measure`` would.
    """
    check_request(model, x, columns, nodes, batch)
    log_snr, _ = nodes.place(len(x))
    images, part = range(min(len(x), max(1, batch // nodes.n))), slice(0, min(nodes.n, batch))
    _evaluate(model, x, columns, log_snr, images, slice(0, 1), 0)  # the first call of a network is slow
    start = time.perf_counter()
    _evaluate(model, x, columns, log_snr, images, part, 0)
    tried = len(images) * (part.stop - part.start)
    seconds = (time.perf_counter() - start) * len(x) * nodes.n / tried
    values = len(x) * nodes.n * n_tokens(x) * math.comb(len(columns) + 1, 2)
    return Cost(len(x) * nodes.n * len(columns), seconds, 4 * values)


def measure(
    model: EpsModel,
    x: torch.Tensor,
    columns: Sequence[Column],
    nodes: Nodes,
    *,
    seed: int = 0,
    batch: int = 64,
    progress: Progress | None = None,
) -> NodeTable:
    """Evaluate all columns at all nodes of all images: images x nodes x columns denoiser evaluations.

    Args:
        model: the denoiser of columns that have none.
        x: (images, *sample_shape) clean samples in the denoiser's own scale (``probe.capture.noising.encode``).
        columns: see ``caption_columns``.
        nodes: see ``Nodes``; ``adaptive_nodes`` finds them.
        seed: of the noise.
        batch: samples in a denoiser call.
        progress: called after every batch.

    Raises:
        InvalidRequest: arguments that do not fit together; raised before the first evaluation.
    """
    check_request(model, x, columns, nodes, batch)
    log_snr, weight = nodes.place(len(x))
    total = len(x) * nodes.n * len(columns)

    def tell(done: int) -> None:
        if progress is not None:
            progress(done, total)

    error, difference = evaluate(model, x, columns, log_snr, range(len(x)), seed=seed, batch=batch, tell=tell)
    clean = x.reshape(len(x), -1).to("cpu").numpy()
    names = tuple(c.name for c in columns)
    return NodeTable(names, nodes, log_snr, weight, error, difference, clean.shape[1], grid_of(x), clean)


def evaluate(
    model: EpsModel,
    x: torch.Tensor,
    columns: Sequence[Column],
    log_snr: np.ndarray,
    images: range,
    *,
    seed: int,
    batch: int,
    tell: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Errors and differences of some images at all nodes; ``tell`` gets the evaluations done so far."""
    n, n_nodes, done = len(images), log_snr.shape[1], 0
    dtype = np.float64 if x.dtype == torch.float64 else np.float32
    error = np.empty((n, n_nodes, n_tokens(x), len(columns)), dtype)
    difference = np.empty((*error.shape[:3], math.comb(len(columns), 2)), dtype)
    group = max(1, batch // n_nodes)  # images whose nodes share a call
    for start in range(0, n, group):
        rows = range(start, min(start + group, n))
        for first in range(0, n_nodes, batch):
            part = slice(first, min(first + batch, n_nodes))
            at = np.s_[rows.start : rows.stop, part]
            some = range(images.start + rows.start, images.start + rows.stop)
            error[at], difference[at] = _evaluate(model, x, columns, log_snr, some, part, seed)
            done += len(rows) * (part.stop - part.start) * len(columns)
            tell(done)
    return error, difference


def check_request(model: EpsModel, x: torch.Tensor, columns: Sequence[Column], nodes: Nodes, batch: int) -> None:
    """Raise InvalidRequest for arguments of ``measure`` that do not fit together."""
    check_samples(model, x)
    for denoiser in (model, *(c.model for c in columns if c.model is not None)):
        if isinstance(denoiser, PipelineEps):
            check_pipeline(denoiser.pipe)
    names = [c.name for c in columns]
    if not columns or len(set(names)) < len(names):
        raise InvalidRequest(f"measure: columns {', '.join(names) or 'none'}; expected at least one, names unique.")
    for c in columns:
        if c.conds is not None and len(c.conds) != len(x):
            raise InvalidRequest(f"measure: column {c.name!r} has {len(c.conds)} conditions for {len(x)} images.")
    for denoiser in (model, *(c.model for c in columns if c.model is not None)):
        low, high = denoiser.log_snr_range
        if nodes.window[0] < low - 1e-6 or nodes.window[1] > high + 1e-6:
            raise InvalidRequest(
                f"measure: nodes reach from {nodes.window[0]:.4g} to {nodes.window[1]:.4g}, but "
                f"{type(denoiser).__name__} knows log SNR from {low:.4g} to {high:.4g}; pass model= to Nodes.logistic "
                "or Nodes.fitted, which cut the window."
            )
        if tuple(denoiser.sample_shape) != tuple(x.shape[1:]):
            raise InvalidRequest(
                f"measure: {type(denoiser).__name__} takes samples {tuple(denoiser.sample_shape)}, not "
                f"{tuple(x.shape[1:])}."
            )
    if batch < 1:
        raise InvalidRequest(f"measure: batch is {batch}; expected at least 1.")


def n_tokens(x: torch.Tensor) -> int:
    """Tokens of samples: pixels of (B, C, H, W), coordinates of anything else."""
    return x[0, 0].numel() if x.ndim == 4 else x[0].numel()


def grid_of(x: torch.Tensor) -> tuple[int, int] | None:
    """(height, width) of samples (B, C, H, W), else None."""
    return (x.shape[2], x.shape[3]) if x.ndim == 4 else None


@torch.no_grad()
def _evaluate(
    model: EpsModel,
    x: torch.Tensor,
    columns: Sequence[Column],
    log_snr: np.ndarray,
    images: range,
    part: slice,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Errors and differences of some images at some nodes: (images, nodes, tokens, columns and pairs)."""
    n_nodes = part.stop - part.start
    noise = node_noise(x, log_snr.shape[1], images, seed)[:, part].flatten(0, 1).to(x.device)
    clean = x[images.start : images.stop].repeat_interleave(n_nodes, 0)
    level = torch.from_numpy(log_snr[images.start : images.stop, part].reshape(-1))
    z = noised(clean, noise, level)
    off = torch.stack([_eps(column, model, z, level, images, n_nodes) - noise for column in columns])
    pairs = list(combinations(range(len(columns)), 2))
    channels = 2 if x.ndim == 4 else None

    def squared(values: torch.Tensor) -> np.ndarray:
        s = values**2 if channels is None else (values**2).sum(channels)
        return s.reshape(len(values), len(images), n_nodes, -1).permute(1, 2, 3, 0).cpu().numpy()

    if not pairs:
        error = squared(off)
        return error, np.empty((*error.shape[:3], 0), error.dtype)
    first, second = (list(p) for p in zip(*pairs, strict=True))
    return squared(off), squared(off[first] - off[second])


def _eps(
    column: Column, model: EpsModel, z: torch.Tensor, level: torch.Tensor, images: range, n_nodes: int
) -> torch.Tensor:
    denoiser = model if column.model is None else column.model
    conds = None if column.conds is None else [c for c in column.of(images) for _ in range(n_nodes)]
    return denoiser.eps(z, level, conds)
