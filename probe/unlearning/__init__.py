"""Remove a concept from what a model draws, and score what was removed and what survived.

Every method is a function in a file of its own and returns interventions; ``protocol.py`` defines the scores,
``evaluate.py`` runs model, edit and judge over a grid. Read ``saeuron.py`` first.
"""

from probe.unlearning.concept_steerers import concept_steerer
from probe.unlearning.controls import no_edit, random_controls
from probe.unlearning.deactivate import deactivate
from probe.unlearning.esd import ESDSetting, esd
from probe.unlearning.evaluate import (
    Candidate,
    Evaluation,
    Judge,
    TargetResult,
    Verdict,
    balanced,
    evaluate,
    search,
)
from probe.unlearning.grid import PromptGrid
from probe.unlearning.kernel_distance import KernelDistance, kernel_distance
from probe.unlearning.negative_prompt import negative_prompt
from probe.unlearning.norm_matched import norm_matched
from probe.unlearning.norm_scaled import norm_scaled
from probe.unlearning.patch_replacement import patch_replacement
from probe.unlearning.projection import ConceptMoments, lda, mean_difference
from probe.unlearning.protocol import METRICS, Interval, Predictions, UnlearnScores, average, score
from probe.unlearning.saeuron import OBJECTS, STYLES, ConceptScores, Setting, saeuron
from probe.unlearning.transport import transport
from probe.unlearning.uce import uce

__all__ = [
    "METRICS",
    "OBJECTS",
    "STYLES",
    "Candidate",
    "ConceptMoments",
    "ConceptScores",
    "ESDSetting",
    "Evaluation",
    "Interval",
    "Judge",
    "KernelDistance",
    "Predictions",
    "PromptGrid",
    "Setting",
    "TargetResult",
    "UnlearnScores",
    "Verdict",
    "average",
    "balanced",
    "concept_steerer",
    "deactivate",
    "esd",
    "evaluate",
    "kernel_distance",
    "lda",
    "mean_difference",
    "negative_prompt",
    "no_edit",
    "norm_matched",
    "norm_scaled",
    "patch_replacement",
    "random_controls",
    "saeuron",
    "score",
    "search",
    "transport",
    "uce",
]
