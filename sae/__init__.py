"""sae: sparse dictionaries learned from the rows of an activation store.

Train with `train`, measure with `evaluate`, score concepts with `score_concepts`, and hand the dashboard a
`FeatureBundle`. No diffusion model is ever seen here. Read contract.py first, then step.py.
"""

from sae.architectures.autoencoder import SparseAutoencoder
from sae.architectures.batchtopk import BatchTopKSAE
from sae.architectures.jumprelu import JumpReLUSAE
from sae.architectures.make import Dictionary, make_sae
from sae.architectures.matryoshka import MatryoshkaSAE
from sae.architectures.relu import ReluSAE
from sae.architectures.timed import TimedSAE
from sae.architectures.topk import TopKSAE
from sae.config import SAEConfig
from sae.contract import Architecture, SparseDictionary
from sae.data import check_fits
from sae.evaluation.bundle import Example, FeatureBundle
from sae.evaluation.bundle_build import build_bundle
from sae.evaluation.concepts import ConceptScores, score_concepts
from sae.evaluation.metrics import evaluate
from sae.interchange.folder import load_sae, save_sae
from sae.interchange.interop import OpenedSAE, open_sae
from sae.numerics.peers import ALONE, Peers
from sae.numerics.sparse import FlatCode, TopKCode
from sae.train_config import TrainConfig
from sae.training.log import TrainProgress
from sae.training.processes import joined
from sae.training.rows import split_samples
from sae.training.train import TrainResult, train, train_many

from . import errors

__all__ = [
    "ALONE",
    "Architecture",
    "BatchTopKSAE",
    "ConceptScores",
    "Dictionary",
    "Example",
    "FeatureBundle",
    "FlatCode",
    "JumpReLUSAE",
    "MatryoshkaSAE",
    "ReluSAE",
    "OpenedSAE",
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
