"""The family: the name of each architecture in a configuration, and its class."""

from typing import Any

from .autoencoder import SparseAutoencoder
from .batchtopk import BatchTopKSAE
from .config import SAEConfig
from .jumprelu import JumpReLUSAE
from .matryoshka import MatryoshkaSAE
from .relu import ReluSAE
from .topk import TopKSAE

CLASSES: dict[str, type[SparseAutoencoder]] = {
    "topk": TopKSAE,
    "batchtopk": BatchTopKSAE,
    "matryoshka": MatryoshkaSAE,
    "jumprelu": JumpReLUSAE,
    "relu": ReluSAE,
}


def make_sae(config: SAEConfig, *, seed: int = 0, metadata: dict[str, Any] | None = None) -> SparseAutoencoder:
    """A new dictionary of the configured architecture."""
    return CLASSES[config.architecture](config, seed=seed, metadata=metadata)
