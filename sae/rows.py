"""Which rows a run trains on, and in which order.

Whole samples are held out: rows of one image are correlated. The order is the loader's, a pure function of (order
seed, position), so a run that continues at step n asks for position n and gets the rows it would have had. Where
processes share the batches, each reads its own part of every epoch.
"""

from typing import Any

import numpy as np
import torch

from activations_store import ActivationStore, RowLoader

from .config import TrainConfig

_INIT_STREAM = 1  # separates the rows drawn for initial values from the training order of the same seed


def split_samples(store: ActivationStore, config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """(training, held-out) sample numbers, both ascending."""
    present = store.committed_samples()
    n_held = int(len(present) * config.holdout)
    order = np.random.default_rng(config.order_seed).permutation(len(present))
    return np.sort(present[order[n_held:]]), np.sort(present[order[:n_held]])


def open_rows(store: ActivationStore, config: TrainConfig, position: int, rank: int = 0, world: int = 1) -> RowLoader:
    """The shuffled batches of a run from step `position` on, or the part of rank `rank` of `world` in them."""
    options = _options(store, config)
    batch_size = config.batch_size // world
    return RowLoader(
        store,
        config.site,
        batch_size,
        seed=config.order_seed,
        position=position,
        rank=rank,
        world=world,
        **options,
    )


def spread_rows(store: ActivationStore, config: TrainConfig, n: int) -> torch.Tensor:
    """(n, d) rows for initial values: the loader's shuffle spreads them over samples, steps, branches and
    cells.
    """
    seed = int(np.random.SeedSequence([config.order_seed, _INIT_STREAM]).generate_state(1)[0])
    with RowLoader(store, config.site, n, seed=seed, **_options(store, config)) as loader:
        return torch.from_numpy(next(loader).x)


def same_rows(config: TrainConfig) -> tuple[Any, ...]:
    """Equal for two configurations exactly if they train on the same batches in the same order."""
    return (
        config.site,
        config.steps,
        config.branches,
        config.holdout,
        config.order_seed,
        config.batch_size,
        config.pool_rows,
    )


def _options(store: ActivationStore, config: TrainConfig) -> dict[str, Any]:
    return {
        "steps": config.steps,
        "branches": config.branches,
        "samples": split_samples(store, config)[0],
        "pool_rows": config.pool_rows,
    }
