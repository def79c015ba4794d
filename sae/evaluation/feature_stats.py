"""Numbers about every feature at once: streamed statistics, percentiles, discrimination of labels, decoder geometry.

density            share of rows with z_i > 0
ev_contribution    rise of the squared error if the feature were removed, over the total variance:
                   sum over rows of ||e + z_i d_i||^2 - ||e||^2 = sum of 2 z_i <e, d_i> + z_i^2 ||d_i||^2, with
                   e = x - xh and d_i what a code of 1 adds to x
AUC of a concept   probability that a sample with the concept has a larger pooled activation than one without (ties
                   count half)
"""

from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from sae.architectures.timed import members, stack_steps
from sae.contract import SparseDictionary
from sae.data import Block, Selection
from sae.evaluation.metrics import DENSE_ABOVE, VarianceSums
from sae.evaluation.separation import auc
from sae.numerics.sparse import TopKCode, row_dots

_PER_OCTAVE = 16  # histogram bins for a doubling: a percentile is known within 2^(1/16) = 4.4 %
_OCTAVES = 24
_RANKED_TOGETHER = 256  # features whose ranks are in memory at once
_QUANTILES = {"p50": 0.5, "p99": 0.99, "p999": 0.999}


class FeatureStats:
    """Statistics of all features over a selection, fed one block at a time."""

    def __init__(self, sae: SparseDictionary, chosen: Selection) -> None:
        self._sae, self._chosen = sae, chosen
        d_sae, device = sae.config.d_sae, sae.W_dec.device
        n_steps, tokens = len(chosen.steps), chosen.tokens
        self._sum = torch.zeros(n_steps * d_sae, dtype=torch.float64, device=device)
        self._max = torch.zeros(n_steps * d_sae, device=device)
        self._by_cell = torch.zeros(d_sae * tokens, dtype=torch.float64, device=device)
        self._fired = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self._gain = torch.zeros(d_sae, dtype=torch.float64, device=device)
        self._histogram = torch.zeros(d_sae * _OCTAVES * _PER_OCTAVE, dtype=torch.int64, device=device)
        self._variance = VarianceSums(1, chosen.channels)
        self._low = 0.0
        self.pooled = np.zeros((len(chosen.samples), d_sae), dtype=np.float32)
        """(n_samples, d_sae): largest activation over steps and cells."""

    @property
    def histogram_spec(self) -> dict[str, float]:
        """Lower edge of the first bin and bins for each doubling."""
        return {"low": self._low, "per_octave": _PER_OCTAVE}

    def add(self, block: Block) -> TopKCode:
        """Adds a block and returns its (S, T, tokens, k) code, so that callers need not encode again."""
        sae, d_sae = self._sae, self._sae.config.d_sae
        x = torch.from_numpy(block.x).to(sae.W_dec.device)
        dictionaries = members(sae, x, self._chosen.log_snr)
        codes = [member.encode_sparse(x[:, t]) for t, member in enumerate(dictionaries)]
        for t, (member, code) in enumerate(zip(dictionaries, codes, strict=True)):
            self._add_gain(member, x[:, t], code)
        code = stack_steps(codes)
        n, n_steps, tokens, k = code.indices.shape
        values, indices = code.values.float().reshape(-1), code.indices.reshape(-1)
        entry = torch.arange(indices.numel(), device=indices.device) // k  # the row of each entry
        by_step = (entry // tokens) % n_steps * d_sae + indices
        self._sum.index_add_(0, by_step, values.double())
        self._max.scatter_reduce_(0, by_step, values, "amax")
        self._by_cell.index_add_(0, indices * tokens + entry % tokens, values.double())
        pooled = torch.zeros(n * d_sae, device=values.device)
        pooled.scatter_reduce_(0, entry // (tokens * n_steps) * d_sae + indices, values, "amax")
        self.pooled[block.samples] = pooled.view(n, d_sae).cpu().numpy()

        on = values > 0
        if self._low == 0.0 and bool(on.any()):
            # Twenty octaves below the largest value of the first block, four above it.
            self._low = float(values.max()) * 2.0 ** (4 - _OCTAVES)
        self._fired += torch.bincount(indices[on], minlength=d_sae)
        n_bins = _OCTAVES * _PER_OCTAVE
        octave = torch.log2(values[on] / self._low) if self._low > 0 else values[on]
        bins = (octave * _PER_OCTAVE).long().clamp(0, n_bins - 1)
        self._histogram += torch.bincount(indices[on] * n_bins + bins, minlength=d_sae * n_bins)
        return code

    def _add_gain(self, member: SparseDictionary, x: torch.Tensor, code: TopKCode) -> None:
        """Adds one step to `ev_contribution`: (n, tokens, d) maps and their (n, tokens, k) code."""
        directions = member.directions.detach()
        rows = x.reshape(-1, x.shape[-1]).to(directions.dtype)
        with torch.no_grad():
            error = rows - member.decode_sparse(code).reshape(rows.shape)
        k = code.indices.shape[-1]
        flat = TopKCode(code.values.reshape(-1, k), code.indices.reshape(-1, k)).flat()
        along = row_dots(flat, error, directions)  # <e, d_i> at the entries
        length = directions.square().sum(1)[flat.indices]
        self._gain.index_add_(0, flat.indices, (2 * flat.values * along + flat.values.square() * length).double())
        self._variance.add(0, rows, error)

    def tensors(self) -> dict[str, np.ndarray]:
        """Arrays for `stats.safetensors`."""
        d_sae = self._sae.config.d_sae
        n_steps, tokens = len(self._chosen.steps), self._chosen.tokens
        rows_per_step = self._chosen.n_rows / n_steps
        return {
            "mean_by_step": (self._sum / rows_per_step).view(n_steps, d_sae).float().cpu().numpy(),
            "max_by_step": self._max.view(n_steps, d_sae).cpu().numpy(),
            "mean_by_cell": (self._by_cell / (self._chosen.n_rows / tokens)).view(d_sae, tokens).float().cpu().numpy(),
            "histogram": self._histogram.view(d_sae, -1).cpu().numpy(),
        }

    def columns(self) -> dict[str, Any]:
        """Columns for `features.parquet`."""
        d_sae, n_rows = self._sae.config.d_sae, self._chosen.n_rows
        total = self._sum.view(-1, d_sae).cpu().numpy()
        fired = self._fired.cpu().numpy()
        density = fired / n_rows
        variance = self._variance.total_variance()
        peak = np.where(fired > 0, np.asarray(self._chosen.steps)[total.argmax(axis=0)], -1)
        columns = {
            "density": density,
            "mean": total.sum(axis=0) / n_rows,
            "mean_active": total.sum(axis=0) / np.maximum(fired, 1),
            "max": self.pooled.max(axis=0),
            **self._quantiles(fired),
            "sample_fraction": (self.pooled > 0).mean(axis=0),
            "ev_contribution": self._gain.cpu().numpy() / (variance if variance > 0 else 1.0),
        }
        typed: dict[str, Any] = {name: np.asarray(value, dtype=np.float32) for name, value in columns.items()}
        return typed | {
            "peak_step": peak.astype(np.int32),
            "dead": fired == 0,
            "dense": density > DENSE_ABOVE,
        }

    def _quantiles(self, fired: np.ndarray) -> dict[str, np.ndarray]:
        """Percentiles of the active values, interpolated in log activation inside a bin; 0 for a dead
        feature.
        """
        counts = self._histogram.view(len(fired), -1).cpu().numpy()
        cumulative = counts.cumsum(axis=1)
        at = np.arange(len(fired))
        found = {}
        for name, q in _QUANTILES.items():
            target = q * fired
            bins = (cumulative < target[:, None]).sum(axis=1).clip(0, counts.shape[1] - 1)
            inside = np.maximum(counts[at, bins], 1)
            position = bins + (target - (cumulative[at, bins] - counts[at, bins])) / inside
            value = self._low * 2.0 ** (position / _PER_OCTAVE)
            found[name] = np.where(fired > 0, np.minimum(value, self.pooled.max(axis=0)), 0.0)
        return found


def auc_by_concept(pooled: np.ndarray, membership: np.ndarray) -> np.ndarray:
    """(n_concepts, d) float32 AUC of each feature for each concept against all other labelled samples.

    Args:
        pooled: (n_samples, d).
        membership: (n_concepts, n_samples) bool; samples in no concept are left out. An undefined AUC is 0.5.
    """
    labelled = membership.any(axis=0)
    member = membership[:, labelled]
    found = np.full((len(member), pooled.shape[1]), 0.5, dtype=np.float32)
    for start in range(0, pooled.shape[1], _RANKED_TOGETHER):
        at = slice(start, start + _RANKED_TOGETHER)
        areas = auc(rankdata(pooled[labelled, at], axis=0), member)
        found[:, at] = np.where(np.isnan(areas), 0.5, areas)
    return found


def decoder_neighbours(decoder: torch.Tensor, n: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """((d_sae, n) int32, (d_sae, n) float32): nearest other features by decoder cosine, and the cosines."""
    rows = torch.nn.functional.normalize(decoder.detach().float(), dim=1)
    n = min(n, rows.shape[0] - 1)
    near, cosine = [], []
    for start in range(0, rows.shape[0], 1024):
        similar = rows[start : start + 1024] @ rows.T
        own = torch.arange(similar.shape[0], device=rows.device)
        similar[own, own + start] = -2.0
        values, indices = similar.topk(n, dim=1)
        near.append(indices.to(torch.int32).cpu().numpy())
        cosine.append(values.cpu().numpy())
    return np.concatenate(near), np.concatenate(cosine)


def decoder_layout(decoder: torch.Tensor) -> np.ndarray:
    """(d_sae, 2) float32: decoder rows on their first two principal axes, for a map of features; signs are
    fixed.
    """
    rows = decoder.detach().cpu().double().numpy()
    centred = rows - rows.mean(axis=0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    layout = np.zeros((len(rows), 2), dtype=np.float32)  # one input dimension has one axis
    layout[:, : axes.shape[1]] = centred @ axes
    return layout
