"""sae: sparse dictionaries learned from the rows of an activation store.

Train with `train`, measure with `evaluate`, score concepts with `score_concepts`, and hand the dashboard a
`FeatureBundle`. No diffusion model is ever seen here. Read contract.py first, then step.py.
"""

from . import errors
from .architectures import make_sae
from .autoencoder import SparseAutoencoder
from .batchtopk import BatchTopKSAE
from .bundle import Example, FeatureBundle
from .bundle_build import build_bundle
from .concepts import ConceptScores, score_concepts
from .config import SAEConfig, TrainConfig
from .contract import Architecture, SparseDictionary
from .data import check_fits
from .folder import load_sae, save_sae
from .interop import open_sae
from .jumprelu import JumpReLUSAE
from .matryoshka import MatryoshkaSAE
from .metrics import evaluate
from .peers import ALONE, Peers
from .processes import joined
from .relu import ReluSAE
from .rows import split_samples
from .sparse import FlatCode, TopKCode
from .timed import TimedSAE
from .topk import TopKSAE
from .train import TrainResult, train, train_many
from .train_log import TrainProgress

__all__ = [
    "ALONE",
    "Architecture",
    "BatchTopKSAE",
    "ConceptScores",
    "Example",
    "FeatureBundle",
    "FlatCode",
    "JumpReLUSAE",
    "MatryoshkaSAE",
    "ReluSAE",
    "Peers",
    "SAEConfig",
    "SparseAutoencoder",
    "SparseDictionary",
    "TimedSAE",
    "TopKCode",
    "TopKSAE",
    "TrainConfig",
    "TrainProgress",
    "TrainResult",
    "build_bundle",
    "check_fits",
    "errors",
    "evaluate",
    "joined",
    "load_sae",
    "make_sae",
    "open_sae",
    "save_sae",
    "score_concepts",
    "split_samples",
    "train",
    "train_many",
]
