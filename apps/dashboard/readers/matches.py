"""How alike one feature is to every feature of a dictionary, from the files of two bundles and their dictionaries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import streamlit as st

from apps.dashboard.matching import LEAST_SAMPLES, Key, Matches, common, match
from apps.dashboard.readers.bundles import bundle
from apps.dashboard.readers.dictionaries import WEIGHTS, decoder
from apps.dashboard.readers.stamps import Stamp, stamp
from apps.runs import BUNDLE_MARK


@dataclass(frozen=True)
class Place:
    """A bundle and the dictionary that it was made from.

    Attributes:
        bundle: folder of the bundle.
        sae: folder of the dictionary, or None where it is not there.
    """

    bundle: Path
    sae: Path | None

    @property
    def mark(self) -> tuple[Stamp, Stamp]:
        """Key of what both hold now."""
        return stamp(self.bundle / BUNDLE_MARK), (0, 0) if self.sae is None else stamp(self.sae / WEIGHTS)


def matches(first: Place, feature: int, second: Place) -> Matches:
    """A feature of the first dictionary beside all features of the second; itself left out in its own dictionary."""
    return _matches(first, feature, second, (first.mark, second.mark))


@st.cache_resource(max_entries=64, show_spinner="Comparing with every feature")
def _matches(first: Place, feature: int, second: Place, marks: object) -> Matches:
    rows, reason = _decoders(first, second)
    at_a, at_b = common_samples(first.bundle, second.bundle)
    enough = len(at_a) >= LEAST_SAMPLES
    if not enough:
        reason = (
            f"{reason} The bundles share {len(at_a)} samples (prompt and seed); a correlation takes {LEAST_SAMPLES}."
        )
    return match(
        rows[0][feature] if rows else None,
        rows[1] if rows else None,
        bundle(first.bundle).pooled(feature)[at_a] if enough else None,
        _pooled(second.bundle, stamp(second.bundle / BUNDLE_MARK), at_b.tobytes()) if enough else None,
        without=feature if first.bundle == second.bundle else None,
        reason=reason.strip(),
    )


def common_samples(first: Path, second: Path) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the samples that two bundles share, in the order of the first."""
    return _common(first, second, (stamp(first / BUNDLE_MARK), stamp(second / BUNDLE_MARK)))


@st.cache_resource(max_entries=8, show_spinner=False)
def _common(first: Path, second: Path, marks: object) -> tuple[np.ndarray, np.ndarray]:
    return common(_keys(first), _keys(second))


def _keys(folder: Path) -> list[Key]:
    table = bundle(folder).samples
    return list(zip(table.column("prompt").to_pylist(), table.column("seed").to_pylist(), strict=True))


@st.cache_resource(max_entries=4, show_spinner=False)
def _pooled(folder: Path, mark: Stamp, positions: bytes) -> np.ndarray:
    """(d_sae, n) float16 shares of each feature's maximum at some samples: a correlation does not see the scale."""
    opened, at = bundle(folder), np.frombuffer(positions, np.int64)
    rows = np.empty((opened.n_features, len(at)), np.float16)
    for feature, top in enumerate(opened.table.column("max").to_pylist()):
        rows[feature] = opened.pooled(feature)[at] / (top or 1.0)
    return rows


def _decoders(first: Place, second: Place) -> tuple[tuple[np.ndarray, np.ndarray] | None, str]:
    """Both decoders, or why their rows cannot be compared."""
    infos = [bundle(place.bundle).info for place in (first, second)]
    sites = [info["site"] for info in infos]
    if sites[0] != sites[1]:
        return None, f"Decoder rows of {sites[0]} and {sites[1]} have different coordinates: no cosine."
    weights = [info["store"]["fingerprint"].get("weights_hash") for info in infos]
    if weights[0] != weights[1]:
        return None, "The dictionaries belong to different models, whose coordinates differ: no cosine."
    if first.sae is None or second.sae is None:
        return None, "A dictionary is missing beside its bundle: no cosine."
    rows = decoder(first.sae), decoder(second.sae)
    if any(r.ndim != 2 for r in rows) or rows[0].shape[1] != rows[1].shape[1]:
        return None, "A dictionary over several sites or steps has no single decoder row a feature: no cosine."
    return rows, ""
