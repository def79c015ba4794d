"""Remove a concept from what a model draws, and score what was removed and what survived.

``saeuron.py`` is an unlearner, ``protocol.py`` defines the scores, ``evaluate.py`` runs model, edit and judge
over a grid.
"""

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
from probe.unlearning.protocol import METRICS, Interval, Predictions, UnlearnScores, average, score
from probe.unlearning.saeuron import OBJECTS, STYLES, ConceptScores, Setting, saeuron

__all__ = [
    "METRICS",
    "OBJECTS",
    "STYLES",
    "Candidate",
    "ConceptScores",
    "Evaluation",
    "Interval",
    "Judge",
    "Predictions",
    "PromptGrid",
    "Setting",
    "TargetResult",
    "UnlearnScores",
    "Verdict",
    "average",
    "balanced",
    "evaluate",
    "saeuron",
    "score",
    "search",
]
