"""Samples: their prompts, pictures and codes. The code of a sample is one read and one encoding, then it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from apps.dashboard.readers.dictionaries import WEIGHTS
from apps.dashboard.readers.stamps import Stamp, stamp
from apps.images import read_image
from apps.inspecting import Codes, drawn_codes, recorded_codes
from apps.runs import SAE_MARK, STORE_MARK, Run

if TYPE_CHECKING:
    from activations_store import ActivationStore
    from apps.inspecting.drawing import Drawn
    from sae import OpenedSAE

Marks = tuple[Stamp, ...]


def opened_store(run: Run) -> ActivationStore:
    """The run's store, kept open. Raises the store's own errors."""
    return _store(str(run.store), _store_marks(run))


@st.cache_resource(max_entries=4, show_spinner=False)
def _store(path: str, marks: Marks) -> ActivationStore:
    from activations_store import ActivationStore

    return ActivationStore.open(path)


@st.cache_resource(max_entries=2, show_spinner="Opening the dictionary")
def _sae(path: str, marks: Marks) -> OpenedSAE:
    from sae import open_sae

    return open_sae(path)


def sites_of(folder: Path) -> tuple[str, ...]:
    """The sites that a dictionary reads: several for a crosscoder."""
    config = _sae(str(folder), _sae_marks(folder)).config
    return tuple(dict.fromkeys(site for site, _, _ in config.blocks)) if config.blocks else (config.site,)


def matching(run: Run, words: str, limit: int) -> tuple[list[int], int]:
    """Samples whose prompt holds every one of some words, in any letters; the first few, and how many there are."""
    return _matching(str(run.store), _store_marks(run), words.split(), limit)


@st.cache_resource(max_entries=64, show_spinner=False)
def _matching(path: str, marks: Marks, words: list[str], limit: int) -> tuple[list[int], int]:
    import pyarrow.compute

    compute: Any = pyarrow.compute  # its functions are made when it is imported, so no checker knows them
    store = _store(path, marks)
    kept = np.zeros(store.spec.n_samples, bool)
    kept[store.committed_samples()] = True
    for word in words:
        held = compute.match_substring(store.samples.column("prompt"), word, ignore_case=True)
        kept &= np.asarray(held, bool)
    found = np.flatnonzero(kept)
    return found[:limit].tolist(), len(found)


def sample(run: Run, number: int) -> dict[str, Any]:
    """A row of the sample table: sample, prompt, seed, label_<factor>."""
    return opened_store(run).samples.slice(number, 1).to_pylist()[0]


def sample_image(run: Run, number: int) -> np.ndarray | None:
    """The image of a sample, (H, W, 3) uint8; None if none was saved."""
    path = run.image(number)
    return _image(str(path), stamp(path)) if path.is_file() else None


@st.cache_resource(max_entries=16, show_spinner=False)
def _image(path: str, mark: Stamp) -> np.ndarray:
    return read_image(path)


def sample_codes(run: Run, sae: Path, number: int, steps: tuple[int, ...], branch: str) -> Codes:
    """The code of a recorded sample; raises as ``recorded_codes``."""
    return _codes(str(run.store), _store_marks(run), str(sae), _sae_marks(sae), number, steps, branch)


@st.cache_resource(max_entries=6, show_spinner="Reading the sample")
def _codes(
    store: str, marks: Marks, sae: str, sae_marks: Marks, number: int, steps: tuple[int, ...], branch: str
) -> Codes:
    return recorded_codes(_store(store, marks), _sae(sae, sae_marks), number, steps=steps, branch=branch)


def own_codes(run: Run, sae: Path, drawn: Drawn, steps: tuple[int, ...], branch: str) -> Codes:
    """The code of a drawn sample. What a request gives is always the same, so the request names it."""
    return _own_codes(drawn, str(run.store), _store_marks(run), str(sae), _sae_marks(sae), drawn.request, steps, branch)


@st.cache_resource(max_entries=4, show_spinner=False)
def _own_codes(
    _drawn: Drawn,
    store: str,
    marks: Marks,
    sae: str,
    sae_marks: Marks,
    request: Any,
    steps: tuple[int, ...],
    branch: str,
) -> Codes:
    held, dictionary = _store(store, marks), _sae(sae, sae_marks)
    levels = [held.spec.log_snr[step] for step in steps]
    grid = held.site(dictionary.config.site).spec.grid
    return drawn_codes(dictionary, _drawn.branch(branch), steps=steps, log_snr=levels, grid=grid)


def _store_marks(run: Run) -> Marks:
    return stamp(run.store / STORE_MARK), stamp(run.store / "commits"), stamp(run.store / "groups")


def _sae_marks(folder: Path) -> Marks:
    return stamp(folder / SAE_MARK), stamp(folder / WEIGHTS)
