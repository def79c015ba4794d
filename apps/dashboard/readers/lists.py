"""The run's lists of features."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from apps.dashboard import list_files
from apps.dashboard.feature_lists import Lists
from apps.dashboard.readers.stamps import Stamp, stamp
from apps.runs import Run


def lists(run: Run) -> Lists:
    """Lists by name. Raises ``InvalidFile`` for a damaged file."""
    path = list_files.file_of(run)
    return _lists(path, stamp(path))


@st.cache_resource(max_entries=8, show_spinner=False)
def _lists(path: Path, mark: Stamp) -> Lists:
    return list_files.read(path)
