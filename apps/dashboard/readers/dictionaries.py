"""Dictionaries and saved directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from apps.dashboard import directions
from apps.dashboard.readers.stamps import Stamp, json_object, stamp
from apps.runs import SAE_MARK

WEIGHTS = "sae_weights.safetensors"


def metrics(folder: Path) -> dict[str, Any]:
    """``metrics.json`` of a dictionary; {} if there is none."""
    path = folder / "metrics.json"
    return json_object(path) if path.is_file() else {}


def dictionary(folder: Path) -> dict[str, Any]:
    """``cfg.json`` of a dictionary."""
    return json_object(folder / SAE_MARK)


def decoder(folder: Path) -> np.ndarray:
    """(d_sae, d) decoder of a dictionary; of another shape for dictionaries that read several sites or steps."""
    return _decoder(str(folder), stamp(folder / WEIGHTS))


@st.cache_resource(max_entries=4, show_spinner=False)
def _decoder(path: str, mark: Stamp) -> np.ndarray:
    from safetensors.numpy import load_file

    return load_file(Path(path) / WEIGHTS)["W_dec"]


def direction(folder: Path) -> directions.Saved:
    """A saved direction. Raises ``InvalidFile`` for a damaged one."""
    return _direction(str(folder), stamp(folder / directions.JSON_FILE))


@st.cache_resource(max_entries=64, show_spinner=False)
def _direction(path: str, mark: Stamp) -> directions.Saved:
    return directions.read(Path(path))
