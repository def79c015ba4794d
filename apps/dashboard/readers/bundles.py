"""Feature bundles: their tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from apps.dashboard.readers.stamps import Stamp, stamp
from apps.runs import BUNDLE_MARK

if TYPE_CHECKING:
    import pandas as pd

    from sae import ConceptScores, FeatureBundle


def bundle(folder: Path) -> FeatureBundle:
    """A feature bundle of the run. Raises the bundle's own errors for a damaged one."""
    return _bundle(str(folder), stamp(folder / BUNDLE_MARK))


@st.cache_resource(max_entries=4, show_spinner="Opening the feature bundle")
def _bundle(path: str, mark: Stamp) -> FeatureBundle:
    from sae import FeatureBundle

    return FeatureBundle.open(path)


def features(folder: Path) -> pd.DataFrame:
    """The feature table."""
    return _features(str(folder), stamp(folder / BUNDLE_MARK))


@st.cache_resource(max_entries=4, show_spinner=False)
def _features(path: str, mark: Stamp) -> pd.DataFrame:
    frame = bundle(Path(path)).table.to_pandas()
    profile = bundle(Path(path)).mean_by_step.T
    top = profile.max(axis=1, keepdims=True)
    frame["profile"] = list(np.divide(profile, top, out=np.zeros_like(profile), where=top > 0))
    return frame


def concept_scores(folder: Path, factor: str) -> ConceptScores:
    """Concept scores of a factor at every step."""
    return _concept_scores(str(folder), stamp(folder / BUNDLE_MARK), factor)


@st.cache_resource(max_entries=16, show_spinner=False)
def _concept_scores(path: str, mark: Stamp, factor: str) -> ConceptScores:
    return bundle(Path(path)).scores(factor)
