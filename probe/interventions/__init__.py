"""Change what a model computes while it generates: one type of edit, many operations, recipes that replay.

Read ``intervention.py`` first, then ``ops.py``. ``apply.py`` puts edits into a running pipeline.
"""

from probe.interventions.apply import intervene
from probe.interventions.dictionary import Dictionary, TopKDictionary, as_dictionary
from probe.interventions.features import ScaleFeatures, SetFeatures, add_feature
from probe.interventions.intervention import BRANCH_POLICIES, Intervention
from probe.interventions.ops import AddDirection, Op, Replace, StepContext
from probe.interventions.recipe import Recipe

__all__ = [
    "BRANCH_POLICIES",
    "AddDirection",
    "Dictionary",
    "Intervention",
    "Op",
    "Recipe",
    "Replace",
    "ScaleFeatures",
    "SetFeatures",
    "StepContext",
    "TopKDictionary",
    "add_feature",
    "as_dictionary",
    "intervene",
]
