"""Cached readers of a run's files. Everything the pages show comes through here, and nothing here can load
a model.

A cache entry is keyed by the path and by the time and size of the file that marks the artefact, so a
rebuilt bundle is read anew and an unchanged one never again. Caches are bounded. Entries are shared between
readers, not copied: pages never change what they get.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from apps.dashboard import directions, findings
from apps.dashboard.findings import Finding
from apps.dashboard.tiles import Look, png, strip, tiles
from apps.images import labelled_grid, read_image
from apps.measurement import read_measurement
from apps.runs import BUNDLE_MARK, SAE_MARK, STORE_MARK, Run
from apps.unlearning.edits import SHOWN_FILE

if TYPE_CHECKING:
    import pandas as pd

    from sae import ConceptScores, FeatureBundle

WEIGHTS = "sae_weights.safetensors"
Stamp = tuple[int, int]
"""Modification time in nanoseconds and size of a file; (0, 0) if there is none."""


@dataclass(frozen=True)
class Collected:
    """What a store says about itself.

    Attributes:
        model: the model's fingerprint.
        plan: what was to be collected.
        sites: (name, tokens, channels, dtype) of each recorded tensor.
        n_samples: samples planned.
        n_committed: samples that are there.
        n_steps: denoising steps.
        branches: guidance branches.
        n_bytes: size of the arrays when complete.
        factors: labelled factors.
        prompts: the first prompts.
    """

    model: dict[str, Any]
    plan: dict[str, Any]
    sites: list[tuple[str, int, int, str]]
    n_samples: int
    n_committed: int
    n_steps: int
    branches: tuple[str, ...]
    n_bytes: int
    factors: tuple[str, ...]
    prompts: list[str]

    @property
    def complete(self) -> bool:
        """Whether every planned sample is there."""
        return self.n_committed == self.n_samples


def stamp(path: Path) -> Stamp:
    """Key of a file's present content."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


def collected(run: Run) -> Collected | None:
    """The run's store, or None if it has none. Raises the store's own errors for a damaged one."""
    if not (run.store / STORE_MARK).is_file():
        return None
    changing = (stamp(run.store / STORE_MARK), stamp(run.store / "commits"), stamp(run.store / "groups"))
    return _collected(str(run.store), changing)


@st.cache_resource(max_entries=8, show_spinner=False)
def _collected(path: str, changing: tuple[Stamp, ...]) -> Collected:
    from activations_store import ActivationStore

    store = ActivationStore.open(path)
    spec = store.spec
    return Collected(
        model=store.fingerprint,
        plan=store.plan,
        sites=[(s.name, s.tokens, s.channels, s.dtype) for s in (store.site(name).spec for name in store.sites)],
        n_samples=spec.n_samples,
        n_committed=store.n_committed_samples,
        n_steps=spec.n_steps,
        branches=spec.branches,
        n_bytes=sum(part.spec.n_bytes for part in (store, *store.groups.values())),
        factors=store.factors,
        prompts=store.samples.slice(0, 12).column("prompt").to_pylist(),
    )


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


def best_tile(folder: Path, feature: int, side: int) -> bytes | None:
    """JPEG tile of a feature's strongest example at its strongest step; None for a dead feature."""
    return _best_tile(str(folder), stamp(folder / BUNDLE_MARK), feature, side)


@st.cache_resource(max_entries=256, show_spinner=False)
def _best_tile(path: str, mark: Stamp, feature: int, side: int) -> bytes | None:
    opened = bundle(Path(path))
    examples = opened.examples(feature)
    if not examples:
        return None
    image = None if examples[0].image is None else read_image(examples[0].image)
    maps = _bands(opened.maps(feature))
    heat = maps[:1, opened.steps.index(examples[0].step)]
    return tiles([image], heat, scale=float(maps.max()), look=Look(), side=side)[0]


def example_tiles(folder: Path, feature: int, step: int | None, look: Look, side: int) -> list[bytes]:
    """JPEG tiles of a feature's examples at a step, or each at its own strongest step (None); one colour scale."""
    return _example_tiles(str(folder), stamp(folder / BUNDLE_MARK), feature, step, look, side)


@st.cache_resource(max_entries=256, show_spinner=False)
def _example_tiles(path: str, mark: Stamp, feature: int, step: int | None, look: Look, side: int) -> list[bytes]:
    opened = bundle(Path(path))
    images, maps = _pictures(path, mark, feature)
    examples = opened.examples(feature)
    at = [opened.steps.index(e.step) for e in examples] if step is None else [opened.steps.index(step)] * len(examples)
    chosen = maps[np.arange(len(examples)), at]
    return tiles(images, chosen, scale=float(maps.max(initial=0)), look=look, side=side)


def example_strip(folder: Path, feature: int, rank: int, look: Look, side: int) -> list[bytes]:
    """JPEG tiles of one example at every step, on the feature's colour scale."""
    return _example_strip(str(folder), stamp(folder / BUNDLE_MARK), feature, rank, look, side)


@st.cache_resource(max_entries=128, show_spinner=False)
def _example_strip(path: str, mark: Stamp, feature: int, rank: int, look: Look, side: int) -> list[bytes]:
    images, maps = _pictures(path, mark, feature)
    return strip(images[rank], maps[rank], scale=float(maps.max(initial=0)), look=look, side=side)


@st.cache_resource(max_entries=64, show_spinner=False)
def _pictures(path: str, mark: Stamp, feature: int) -> tuple[list[np.ndarray | None], np.ndarray]:
    """Images (None where missing) and (n, n_steps, height, width) maps of a feature's examples."""
    opened = bundle(Path(path))
    images = [None if e.image is None else read_image(e.image) for e in opened.examples(feature)]
    return images, _bands(opened.maps(feature))


def _bands(maps: np.ndarray) -> np.ndarray:
    """Maps with a height: a site without a grid has a row of tokens, which is drawn as a band."""
    return maps if maps.ndim == 4 else maps[:, :, None, :]


def metrics(folder: Path) -> dict[str, Any]:
    """``metrics.json`` of a dictionary; {} if there is none."""
    path = folder / "metrics.json"
    return _json(str(path), stamp(path)) if path.is_file() else {}


def dictionary(folder: Path) -> dict[str, Any]:
    """``cfg.json`` of a dictionary."""
    return _json(str(folder / SAE_MARK), stamp(folder / SAE_MARK))


@st.cache_resource(max_entries=32, show_spinner=False)
def _json(path: str, mark: Stamp) -> dict[str, Any]:
    value = json.loads(Path(path).read_bytes())
    return value if isinstance(value, dict) else {}


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
    prompts = _json(str(listed), stamp(listed))
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
    result = _json(str(record), stamp(record))["result"]
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
