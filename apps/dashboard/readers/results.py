"""Results of commands: measurement files, and the pictures that unlearning and steering keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from apps.dashboard import findings
from apps.dashboard.findings import Finding
from apps.dashboard.readers.stamps import Stamp, json_object, stamp
from apps.dashboard.tiles import png
from apps.images import labelled_grid, read_image
from apps.measurement import read_measurement
from apps.runs import Run
from apps.unlearning.edits import SHOWN_FILE


def measurement(run: Run) -> dict[str, Any] | None:
    """The run's ``results.json``, or None if there is none. Raises ``InvalidFile`` for a damaged one."""
    return _measurement(str(run.results), stamp(run.results)) if run.results.is_file() else None


@st.cache_resource(max_entries=8, show_spinner=False)
def _measurement(path: str, mark: Stamp) -> dict[str, Any]:
    return read_measurement(path)


def found(folder: Path) -> list[Finding]:
    """Everything the commands left in a folder: measurement files and lenses."""
    listed = (
        _finding(label, str(path), stamp(path), findings.picture_of(path)) for label, path in findings.files(folder)
    )
    return [finding for finding in listed if finding is not None]


@st.cache_resource(max_entries=64, show_spinner=False)
def _finding(label: str, path: str, mark: Stamp, picture: Path | None) -> Finding | None:
    return findings.read(label, Path(path))


def before_after(run: Run, name: str, limit: int = 12) -> tuple[bytes, list[str]] | None:
    """Images of a run's unlearning, edited below unedited with the same prompt and seed, and their prompts.

    Args:
        run: the run.
        name: of the edit, such as ``object-star``: one of the names in ``unlearned``.
        limit: columns at most.

    Returns:
        PNG and one prompt a column; None where a picture of either row is missing.
    """
    folder = run.folder / "unlearn" / name
    before, listed = folder / "unedited", folder / SHOWN_FILE
    files = [path for path in sorted(folder.glob("[0-9]*.png")) if (before / path.name).is_file()][:limit]
    if not files or not listed.is_file():
        return None
    prompts = json_object(listed)
    return _sheet(
        tuple(str(before / path.name) for path in files),
        tuple(str(path) for path in files),
        labels=("unedited", "edited"),
        marks=tuple(stamp(path) for path in files),
    ), [prompts[path.name] for path in files]


def unlearned(run: Run) -> list[str]:
    """Names of the edits whose images are kept."""
    folder = run.folder / "unlearn"
    names = [child.name for child in sorted(folder.iterdir()) if child.is_dir()] if folder.is_dir() else []
    return [name for name in names if name not in ("steer", "unedited")]


def steered(run: Run, n_prompts: int = 4) -> bytes | None:
    """The demo's steered images as one PNG: strengths from left to right, the control below each prompt."""
    folder, record = run.folder / "unlearn" / "steer", run.stage("steer")
    if not record.is_file():
        return None
    result = json_object(record)["result"]
    columns = [f"{s:+g} p99" if s else "unedited" for s in result["strengths"]]
    rows, labels = [], []
    for i, prompt in enumerate(result["prompts"][:n_prompts]):
        for kind in ("feature", "random"):
            rows.append(tuple(str(folder / f"{kind}-{j:02d}-{i:03d}.png") for j in range(len(columns))))
            labels.append(prompt if kind == "feature" else "random direction")
    return _sheet(*rows, labels=tuple(labels), columns=tuple(columns), marks=(stamp(record),))


@st.cache_resource(max_entries=16, show_spinner=False)
def _sheet(
    *rows: tuple[str, ...], labels: tuple[str, ...], marks: tuple[Stamp, ...], columns: tuple[str, ...] = ()
) -> bytes:
    images = [[read_image(path) for path in row] for row in rows]
    return png(labelled_grid(images, row_labels=labels, column_labels=columns, side=104))
