"""What cached readers share: the key of a file's present content, and small JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import streamlit as st

Stamp = tuple[int, int]
"""Modification time in nanoseconds and size of a file; (0, 0) if there is none."""


def stamp(path: Path) -> Stamp:
    """Key of a file's present content."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


def json_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file; {} for other JSON."""
    return _json(str(path), stamp(path))


@st.cache_resource(max_entries=32, show_spinner=False)
def _json(path: str, mark: Stamp) -> dict[str, Any]:
    value = json.loads(Path(path).read_bytes())
    return value if isinstance(value, dict) else {}
