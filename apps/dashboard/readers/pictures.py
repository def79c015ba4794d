"""Pictures of a bundle's features: examples under their maps, as JPEG tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import streamlit as st

from apps.dashboard.readers.bundles import bundle
from apps.dashboard.readers.stamps import Stamp, stamp
from apps.dashboard.tiles import Look, strip, tiles
from apps.images import read_image
from apps.runs import BUNDLE_MARK


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
