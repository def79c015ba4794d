"""From a run and a store to a dictionary that is ready to be trained: the store's part of the options.

What the configuration of a run leaves to the data: the width of rows, the noise levels of the steps, the blocks of a
crosscoder, the statistics of the input maps, the predictor of a residual dictionary, and first values.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from activations_store import ActivationStore
from sae.architectures.crosscoder import fit_blocks, with_blocks
from sae.architectures.inputs import Moments
from sae.architectures.joint import Kind
from sae.architectures.make import Dictionary
from sae.architectures.per_step import PerStepSAE
from sae.architectures.residual import ResidualSAE, TrajectoryMoments
from sae.architectures.timed import TimedSAE
from sae.config import SAEConfig
from sae.data import Selection, select, stream
from sae.errors import ConfigError
from sae.train_config import TrainConfig

PREDICTOR_ROWS = 2_000_000  # rows that a predictor between steps is fitted on, at most


class InitialRows(NamedTuple):
    """Attributes: x: (n, d) rows spread over the data. log_snr: (n,) float64, their noise levels."""

    x: Tensor
    log_snr: Tensor


def levels_of(store: ActivationStore) -> Tensor:
    """(n_steps,) float64 log-SNR of the steps of a store."""
    return torch.tensor(store.spec.log_snr, dtype=torch.float64)


def kinds_of(store: ActivationStore, config: TrainConfig) -> list[Kind] | None:
    """What is read together for each row of a run; None where it is one row alone."""
    steps = _steps(store, config)
    if config.is_crosscoder:
        return with_blocks(store, config, steps)[0]
    if config.time == "residual":
        before = [steps[0], *steps[:-1]]
        return [(step, ((config.site, step), (config.site, last))) for step, last in zip(steps, before, strict=True)]
    return None


def selection_of(store: ActivationStore, config: TrainConfig, samples: np.ndarray) -> Selection:
    """The rows of a run in samples with these (n,) numbers; raises `EmptySelection` as `select` does."""
    blocks = with_blocks(store, config, _steps(store, config))[1] if config.is_crosscoder else None
    return select(store, config.site, samples=samples, steps=config.steps, branches=config.branches, blocks=blocks)


def sae_config(store: ActivationStore, config: TrainConfig, selection: Selection) -> SAEConfig:
    """The dictionary of a run on this store.

    Args:
        selection: what the run trains on.

    Raises:
        ConfigError: the options do not fit the store.
    """
    plain = config.sae_config(store.site(config.site).spec.channels, selection.n_rows)
    steps = _steps(store, config)
    if config.is_crosscoder:
        return replace(plain, d_in=selection.channels, blocks=selection.blocks)
    if config.time == "shared":
        return plain
    levels = tuple(float(store.spec.log_snr[step]) for step in steps)
    groups = _groups(config, steps, levels)
    # An expansion asks for about so many features; a number given outright is not changed.
    spare = plain.d_sae % len(set(groups)) if groups and config.expansion is not None else 0
    return replace(plain, time=config.time, levels=levels, groups=groups, d_sae=plain.d_sae - spare)


def prepare(
    sae: Dictionary, store: ActivationStore, config: TrainConfig, selection: Selection, rows: InitialRows
) -> None:
    """Fits what depends on the data, in place."""
    steps = _steps(store, config)
    if isinstance(sae, ResidualSAE):
        sums = TrajectoryMoments(len(steps), sae.d_in)
        few = select(
            store,
            config.site,
            samples=selection.samples,
            steps=steps,
            branches=selection.branches,
            max_rows=PREDICTOR_ROWS,
        )
        for block in stream(store, few):
            sums.add(torch.from_numpy(block.x).transpose(1, 2).reshape(-1, len(steps), sae.d_in))
        predictor, moments = sums.fit()
        sae.set_predictor(predictor)
        sae.fit([moments])
    elif isinstance(sae, PerStepSAE):
        groups = [[step for step, own in zip(steps, sae.group, strict=True) if own == g] for g in range(len(sae.cores))]
        sae.fit([_moments(store, config, group) for group in groups])
    elif isinstance(sae, TimedSAE):
        sae.fit([_moments(store, config, steps)])
    elif sae.config.blocks is not None:
        fit_blocks(sae, store, config, steps)
    else:
        sae.fit(_moments(store, config, steps))
    sae.initialise(rows.x, rows.log_snr)


def _steps(store: ActivationStore, config: TrainConfig) -> list[int]:
    return list(range(store.spec.n_steps)) if config.steps is None else sorted(config.steps)


def _groups(config: TrainConfig, steps: Sequence[int], levels: Sequence[float]) -> tuple[int, ...] | None:
    """per_step: the number of the group of every level."""
    if config.time != "per_step":
        return None
    groups = config.groups or tuple((step,) for step in steps)
    listed = sorted(step for group in groups for step in group)
    if listed != list(steps):
        raise ConfigError(
            f"groups hold the steps {listed}; expected each of the steps trained on, {list(steps)}, in one of them."
        )
    number = {step: g for g, group in enumerate(groups) for step in group}
    first = {level: number[step] for step, level in zip(reversed(steps), reversed(levels), strict=True)}
    for step, level in zip(steps, levels, strict=True):
        if first[level] != number[step]:
            raise ConfigError(
                f"Step {step} has the same noise level as an earlier one (log-SNR {level:.2f}) and is in another "
                "group; dictionaries are chosen by noise level. Put both in one group."
            )
    return tuple(number[step] for step in steps)


def _moments(store: ActivationStore, config: TrainConfig, steps: Sequence[int]) -> Moments:
    """Mean and covariance of the rows of some steps together; nothing is computed for raw rows."""
    if config.input == "raw":
        empty = torch.zeros(0, dtype=torch.float64)
        return Moments(empty, empty)
    whiten = config.input == "whitened"
    found: Any = store.statistics(config.site, branches=config.branches, covariance=whiten)
    at = list(steps)
    share = found.n_rows[at] / found.n_rows[at].sum()
    mean = share @ found.mean[at]
    if not whiten:
        return Moments(torch.from_numpy(mean), torch.zeros(0, dtype=torch.float64))
    apart = found.mean[at] - mean
    covariance = np.einsum("t,tij->ij", share, found.covariance[at].astype(np.float64)) + (apart.T * share) @ apart
    return Moments(torch.from_numpy(mean), torch.from_numpy(covariance))
