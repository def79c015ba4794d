"""Which rows a run trains on, and in which order.

Whole samples are held out: rows of one image are correlated. The order is the loader's, a pure function of (order
seed, position), so a run that continues at step n asks for position n and gets the rows it would have had. Where
processes share the batches, each reads its own part of every epoch.
"""

from typing import Any

import numpy as np

from activations_store import ActivationStore, RowLoader
from sae.architectures.joint import JointRows
from sae.train_config import TrainConfig
from sae.training.prepare import InitialRows, kinds_of, levels_of

_INIT_STREAM = 1  # separates the rows drawn for initial values from the training order of the same seed


def split_samples(store: ActivationStore, config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """(training, held-out) sample numbers, both ascending."""
    present = store.committed_samples()
    n_held = int(len(present) * config.holdout)
    order = np.random.default_rng(config.order_seed).permutation(len(present))
    return np.sort(present[order[n_held:]]), np.sort(present[order[:n_held]])


def open_rows(
    store: ActivationStore, config: TrainConfig, position: int, rank: int = 0, world: int = 1
) -> RowLoader | JointRows:
    """The shuffled batches of a run from step `position` on, or the part of rank `rank` of `world` in them."""
    options: dict[str, Any] = {"seed": config.order_seed, "position": position, "rank": rank, "world": world}
    return _open(store, config, config.batch_size // world, options)


def spread_rows(store: ActivationStore, config: TrainConfig, n: int) -> InitialRows:
    """n rows for initial values: the loader's shuffle spreads them over samples, steps, branches and cells."""
    seed = int(np.random.SeedSequence([config.order_seed, _INIT_STREAM]).generate_state(1)[0])
    with _open(store, config, n, {"seed": seed}).tensors() as rows:
        batch = next(rows)
    return InitialRows(batch.x, levels_of(store)[batch.step])


def _open(
    store: ActivationStore, config: TrainConfig, batch_size: int, options: dict[str, Any]
) -> RowLoader | JointRows:
    options |= {
        "branches": config.branches,
        "samples": split_samples(store, config)[0],
        "pool_rows": config.pool_rows,
    }
    kinds = kinds_of(store, config)
    if kinds is not None:
        return JointRows(store, kinds, batch_size, **options)
    return RowLoader(store, config.site, batch_size, steps=config.steps, **options)


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
        config.time == "residual",
        config.across_sites,
        config.across_steps,
    )
