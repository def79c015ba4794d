"""Directions: vectors at a site of a model, found by one method a file, and used by interventions without glue.

Read ``direction.py`` first, then ``finder.py`` for what fits on a store and ``points.py`` for what needs a model. The
README beside this file says what each finder needs, and its equation.
"""

from probe.directions.adapter import Adapter, random_adapter
from probe.directions.asymmetry import Asymmetry
from probe.directions.asyrp import Asyrp
from probe.directions.cav import CAV, TCAVScore
from probe.directions.components import ICA, NMF
from probe.directions.concept_vector import ConceptVector
from probe.directions.dictionary import DictionaryColumns
from probe.directions.dimension import ScoreRank, TraceDimension
from probe.directions.direction import Direction, random_direction
from probe.directions.files import load_direction, save_direction
from probe.directions.finder import ContrastFinder, StoreFinder
from probe.directions.h_jacobian import HJacobian
from probe.directions.jacobian import Jacobian, Restricted
from probe.directions.latent_svd import LatentSVD
from probe.directions.lda import LDA
from probe.directions.linear_probe import LogisticProbe, RidgeProbe
from probe.directions.loco import LocalEdit
from probe.directions.mean_difference import MeanDifference
from probe.directions.noise_clr import NoiseCLR
from probe.directions.objectives import JudgeFeatures, JudgeObjective, PromptContrast
from probe.directions.optimised import self_generated
from probe.directions.pca import PCA
from probe.directions.points import Point, jacobian, trajectory
from probe.directions.pullback import Pullback
from probe.directions.slider_space import AdapterSliders, TokenSliders
from probe.directions.spectrum import JacobianSpectrum
from probe.directions.subspace import Singular, principal_angles, top_singular
from probe.directions.text_directions import TextDifference, TextPCA
from probe.directions.transport import transported

__all__ = [
    "Adapter",
    "random_adapter",
    "Asyrp",
    "ConceptVector",
    "NoiseCLR",
    "JudgeFeatures",
    "JudgeObjective",
    "PromptContrast",
    "self_generated",
    "AdapterSliders",
    "TokenSliders",
    "TextDifference",
    "TextPCA",
    "CAV",
    "ICA",
    "LDA",
    "NMF",
    "PCA",
    "Asymmetry",
    "ContrastFinder",
    "DictionaryColumns",
    "Direction",
    "HJacobian",
    "Jacobian",
    "JacobianSpectrum",
    "LatentSVD",
    "LocalEdit",
    "LogisticProbe",
    "MeanDifference",
    "Point",
    "Pullback",
    "Restricted",
    "RidgeProbe",
    "ScoreRank",
    "Singular",
    "StoreFinder",
    "TCAVScore",
    "TraceDimension",
    "jacobian",
    "load_direction",
    "principal_angles",
    "random_direction",
    "save_direction",
    "top_singular",
    "trajectory",
    "transported",
]
