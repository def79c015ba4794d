"""The family: the name of each architecture and time option in a configuration, and its class."""

from typing import Any

from sae.architectures.autoencoder import SparseAutoencoder
from sae.architectures.batchtopk import BatchTopKSAE
from sae.architectures.film import FilmSAE
from sae.architectures.inputs import InputMap, map_shapes
from sae.architectures.jumprelu import JumpReLUSAE
from sae.architectures.matryoshka import MatryoshkaSAE
from sae.architectures.per_step import PerStepSAE
from sae.architectures.relu import ReluSAE
from sae.architectures.residual import ResidualSAE
from sae.architectures.timed import TimedSAE, core_config
from sae.architectures.topk import TopKSAE
from sae.config import SAEConfig

CLASSES: dict[str, type[SparseAutoencoder]] = {
    "topk": TopKSAE,
    "batchtopk": BatchTopKSAE,
    "matryoshka": MatryoshkaSAE,
    "jumprelu": JumpReLUSAE,
    "relu": ReluSAE,
}


TIMED: dict[str, type[TimedSAE]] = {"per_step": PerStepSAE, "film": FilmSAE, "residual": ResidualSAE}
Dictionary = SparseAutoencoder | TimedSAE


def make_sae(
    config: SAEConfig, *, seed: int = 0, metadata: dict[str, Any] | None = None, folded: bool = False
) -> Dictionary:
    """A new dictionary of the configured architecture and options.

    Args:
        folded: without the input maps that a finished dictionary has in its weights; for reading one.
    """
    if config.time != "shared":
        own = core_config(config)
        keep = config.time == "film"
        cores = [_core(own, seed + g, None, folded and not keep) for g in range(config.n_groups)]
        return TIMED[config.time](config, cores, seed=seed, metadata=metadata)
    return _core(config, seed, metadata, folded)


def _core(config: SAEConfig, seed: int, metadata: dict[str, Any] | None, folded: bool) -> SparseAutoencoder:
    made = CLASSES[config.architecture](config, seed=seed, metadata=metadata)
    if folded and made.input.affine:
        made.input = InputMap()
    return made


def file_shapes(config: SAEConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the file of a finished dictionary."""
    if config.time != "shared":
        own = core_config(config)
        keep = config.time == "film"
        shapes = {f"{g}.{n}": shape for g in range(config.n_groups) for n, shape in _core_shapes(own, keep).items()}
        return shapes | TIMED[config.time].own_shapes(config)
    return _core_shapes(config, keep_input=False)


def _core_shapes(config: SAEConfig, keep_input: bool) -> dict[str, tuple[int, ...]]:
    d_in, d_sae = config.d_in, config.d_sae
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, d_sae),
        "W_dec": (d_sae, d_in),
        "b_enc": (d_sae,),
        "b_dec": (d_in,),
    }
    if CLASSES[config.architecture].HAS_THRESHOLD:
        shapes["threshold"] = (d_sae,)
    kept = config.input if keep_input or config.input == "unit" else "raw"
    return shapes | {f"input_{name}": shape for name, shape in map_shapes(kept, d_in).items()}
