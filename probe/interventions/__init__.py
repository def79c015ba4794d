"""Change what a model computes while it generates: one type of edit, many operations, recipes that replay.

Read ``intervention.py`` first, then ``places.py`` (where) and ``ops.py`` (what). ``apply.py`` puts edits into a running
pipeline.
"""

from probe.interventions.apply import intervene
from probe.interventions.dictionary import Dictionary, TopKDictionary, as_dictionary
from probe.interventions.directions import AddDirection, LowRank, ProjectOut
from probe.interventions.equal_norm import EqualNorm, random_control
from probe.interventions.features import ClampFeatures, ScaleFeatures, SetFeatures, ablate_features, add_feature
from probe.interventions.guide import Guide, text_embedding
from probe.interventions.heads import ScaleHeads
from probe.interventions.intervention import BRANCH_POLICIES, INJECT, Intervention
from probe.interventions.ops import Moment, Op, StepContext
from probe.interventions.patching import Patch, Replace, Swap, record_run
from probe.interventions.recipe import Recipe
from probe.interventions.whole_code import DeactivateFeatures, NormScaleFeatures, ReplaceFlagged
from probe.interventions.windows import Schedule, Window

__all__ = [
    "BRANCH_POLICIES",
    "INJECT",
    "AddDirection",
    "ClampFeatures",
    "DeactivateFeatures",
    "Dictionary",
    "EqualNorm",
    "Guide",
    "Intervention",
    "LowRank",
    "Moment",
    "NormScaleFeatures",
    "Op",
    "Patch",
    "ProjectOut",
    "Recipe",
    "Replace",
    "ReplaceFlagged",
    "ScaleFeatures",
    "ScaleHeads",
    "Schedule",
    "SetFeatures",
    "StepContext",
    "Swap",
    "TopKDictionary",
    "Window",
    "ablate_features",
    "add_feature",
    "as_dictionary",
    "intervene",
    "random_control",
    "record_run",
    "text_embedding",
]
