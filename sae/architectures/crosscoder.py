"""Crosscoders: one code for several sites, or several steps, at once (Lindsey et al. 2024, "Sparse Crosscoders for
Cross-Layer Features and Model Diffing").

A row is the concatenation of *blocks*, one for each site (or site and step) at the same sample, branch and token. With
m_b and V_b the mean and total variance of block b,

    y = [ (x_1 - m_1) / sqrt(V_1) | (x_2 - m_2) / sqrt(V_2) | ... ]        L = sum_b ||e_b||^2 / V_b  / blocks  + ...

so every block counts alike, whatever its scale and width. On y stands any architecture: d_sae features with an encoder
and a decoder of sum_b d_b values each. Decoder rows have unit length over all blocks, and the lengths of their parts

    where_ib = || d_ib ||  in units of y,      sum_b where_ib^2 = 1

say where feature i lives: alike in all blocks, or in one. The map is affine, so the finished dictionary is a plain one
that reads the concatenated rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from activations_store import ActivationStore
from sae.architectures.autoencoder import SparseAutoencoder
from sae.architectures.joint import Kind, shared_tokens
from sae.contract import SparseDictionary
from sae.data import check_fits, select, stream
from sae.errors import ConfigError
from sae.evaluation.metrics import VarianceSums
from sae.train_config import TrainConfig

BLOCK_STD = "block_std"  # in the metadata of a crosscoder: sqrt(V_b) of its blocks


class Block(NamedTuple):
    """Attributes: site, step: None for all steps; columns: of the concatenated row."""

    site: str
    step: int | None
    columns: slice


def blocks_of(sae: SparseDictionary) -> list[Block]:
    """The blocks of a crosscoder, in the order of its rows.

    Raises:
        ConfigError: it is no crosscoder.
    """
    if sae.config.blocks is None:
        raise ConfigError(f"The dictionary of {sae.config.site} reads one site; it is no crosscoder.")
    ends = np.cumsum([width for _, _, width in sae.config.blocks]).tolist()
    starts = [0, *ends[:-1]]
    return [
        Block(site, step, slice(start, end))
        for (site, step, _), start, end in zip(sae.config.blocks, starts, ends, strict=True)
    ]


def where(sae: SparseDictionary) -> Tensor:
    """(d_sae, n_blocks): length of each feature's part in each block, in units of sqrt(V_b); squares add up to 1."""
    std = sae.metadata[BLOCK_STD]
    parts = [sae.directions[:, b.columns].norm(dim=1) / s for b, s in zip(blocks_of(sae), std, strict=True)]
    lengths = torch.stack(parts, 1)
    return lengths / lengths.norm(dim=1, keepdim=True).clamp_min(torch.finfo(lengths.dtype).tiny)


def direction(sae: SparseDictionary, feature: int, site: str, step: int | None = None) -> Tensor:
    """(d,) what a code of 1 of a feature adds at one of the crosscoder's sites, in the units of that site.

    Args:
        step: for a crosscoder over steps, which of them.
    """
    for block in blocks_of(sae):
        if block.site == site and block.step in (None, step):
            return sae.directions[feature, block.columns].detach()
    known = ", ".join(b.site if b.step is None else f"{b.site} at step {b.step}" for b in blocks_of(sae))
    raise ConfigError(f"The crosscoder has no block {site} (step {step}); it has {known}.")


def evaluate_blocks(
    sae: SparseDictionary,
    store: ActivationStore,
    *,
    samples: Sequence[int] | np.ndarray | None = None,
    steps: Sequence[int] | np.ndarray | None = None,
    branches: Sequence[str] | None = None,
    max_rows: int | None = None,
) -> dict[str, float]:
    """Explained variance of each block, about its own mean; by "site" or "site@step"."""
    site = check_fits(sae, store)
    chosen = select(
        store, site, samples=samples, steps=steps, branches=branches, max_rows=max_rows, blocks=sae.config.blocks
    )
    blocks = blocks_of(sae)
    sums = [VarianceSums(1, b.columns.stop - b.columns.start) for b in blocks]
    for part in stream(store, chosen):
        x = torch.from_numpy(part.x).to(sae.W_dec.device).reshape(-1, chosen.channels)
        with torch.no_grad():
            error = x - sae.decode_sparse(sae.encode_sparse(x))
        for block, total in zip(blocks, sums, strict=True):
            total.add(0, x[:, block.columns], error[:, block.columns])
    names = [b.site if b.step is None else f"{b.site}@{b.step}" for b in blocks]
    return {name: total.explained_variance() for name, total in zip(names, sums, strict=True)}


def with_blocks(store: ActivationStore, config: TrainConfig, steps: Sequence[int]) -> tuple[list[Kind], tuple]:
    """What a crosscoder's rows consist of: kinds for `JointRows`, and `SAEConfig.blocks`.

    Raises:
        ConfigError: its sites do not have the same tokens.
    """
    sites = (config.site, *(config.across_sites or ()))
    shared_tokens(store, sites)
    width = {site: store.site(site).spec.channels for site in sites}
    if config.across_steps:
        reads = tuple((site, int(step)) for step in steps for site in sites)
        return [(int(steps[0]), reads)], tuple((site, step, width[site]) for site, step in reads)
    kinds: list[Kind] = [(int(step), tuple((site, int(step)) for site in sites)) for step in steps]
    return kinds, tuple((site, None, width[site]) for site in sites)


def fit_blocks(sae: SparseAutoencoder, store: ActivationStore, config: TrainConfig, steps: Sequence[int]) -> None:
    """Sets the mean and width of every block from the statistics of its site."""
    mean, width, std = [], [], []
    for block in blocks_of(sae):
        found = store.statistics(block.site, branches=config.branches, covariance=False)
        own = [block.step] if block.step is not None else list(steps)
        share = found.n_rows[own] / found.n_rows[own].sum()
        centre = share @ found.mean[own]
        total = float(share @ (found.variance[own] + (found.mean[own] - centre) ** 2).sum(1))
        mean.append(centre)
        std.append(max(total, np.finfo(np.float32).tiny) ** 0.5)
        width.append(np.full(len(centre), std[-1]))
    sae.input.mean.copy_(torch.from_numpy(np.concatenate(mean)))  # type: ignore[union-attr]
    sae.input.width.copy_(torch.from_numpy(np.concatenate(width)))  # type: ignore[union-attr]
    sae.metadata[BLOCK_STD] = std
