"""Saved directions (``denoscope directions``) as the pages show them: compared with each other over steps, and with the
features of a dictionary. No Streamlit, and no model: the two files of a direction are read as they are.

Vectors are compared by cosine in the site's own coordinates. A direction has no sign that means anything unless its
finder was given labels, so features are ranked by the cosine's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apps.errors import InvalidFile
from apps.measurement import read_json

JSON_FILE, TENSOR_FILE = "direction.json", "direction.safetensors"


@dataclass(frozen=True)
class Saved:
    """A direction.

    Attributes:
        name: of its folder.
        path: its folder.
        site: where it is.
        about: its provenance.
        basis: (n, k, size) float64 of length 1: n steps, or 1 for all; size is d, or tokens x d for whole maps.
        scale: (n, k) length of one unit of strength.
        timesteps: of the rows; empty if one row serves all steps.
    """

    name: str
    path: Path
    site: str
    about: Mapping[str, Any]
    basis: np.ndarray
    scale: np.ndarray
    timesteps: tuple[int, ...]

    @property
    def concept(self) -> str:
        """What it was fitted for; empty for a method without labels."""
        given = self.about.get("parameters") or {}
        if not given.get("factor") or not given.get("positive"):
            return ""
        other = f" against {given['negative']}" if given.get("negative") else ""
        return f"{given['factor']} {given['positive']}{other}"

    @property
    def finder(self) -> str:
        """The method."""
        return str(self.about.get("finder", "unknown"))

    def over_steps(self, component: int = 0) -> np.ndarray:
        """(n, n) cosines of a vector between steps."""
        vectors = self.basis[:, component]
        return vectors @ vectors.T


def read(folder: Path) -> Saved:
    """A saved direction.

    Raises:
        InvalidFile: one of its files is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        record, tensors = read_json(folder / JSON_FILE), load_file(folder / TENSOR_FILE)
        basis = tensors["basis"].astype(np.float64)
        basis = basis.reshape(*basis.shape[:2], -1)
        length = np.linalg.norm(basis, axis=-1, keepdims=True)
        return Saved(
            folder.name,
            folder,
            str(record["site"]),
            record["provenance"],
            np.divide(basis, length, out=np.zeros_like(basis), where=length > 0),
            tensors["scale"].astype(np.float64),
            tuple(record.get("timesteps") or ()),
        )
    except (OSError, KeyError, TypeError, IndexError, SafetensorError) as error:
        raise InvalidFile(f"direction {str(folder)!r} cannot be read: {type(error).__name__}: {error}") from error


def names(run: Path) -> list[str]:
    """Directions of a run."""
    folder = run / "directions"
    return [p.name for p in sorted(folder.iterdir()) if (p / JSON_FILE).is_file()] if folder.is_dir() else []


def nearest_features(direction: Saved, decoder: np.ndarray, n: int = 8, component: int = 0) -> list[tuple[int, float]]:
    """Features of a dictionary at the same site whose decoder rows lie nearest to a direction, averaged over its steps.

    Args:
        direction: of vectors of length d.
        decoder: (d_sae, d).
        n: how many.
        component: which vector of the direction.

    Returns:
        (feature, mean cosine), largest size first; none for a direction of another length.
    """
    if decoder.ndim != 2 or decoder.shape[1] != direction.basis.shape[2]:
        return []
    length = np.linalg.norm(decoder, axis=1, keepdims=True)
    cosine = (decoder / np.where(length > 0, length, 1)) @ direction.basis[:, component].mean(0)
    return [(int(i), float(cosine[i])) for i in np.argsort(-np.abs(cosine), kind="stable")[:n]]


def likeness(listed: list[Saved]) -> np.ndarray:
    """(n, n) cosines between the first vectors of several directions, mean over steps; NaN at different sites."""
    found = np.full((len(listed), len(listed)), np.nan)
    for i, a in enumerate(listed):
        for j, b in enumerate(listed):
            rows = {len(a.basis), len(b.basis)} - {1}
            if a.site == b.site and a.basis.shape[2] == b.basis.shape[2] and len(rows) < 2:
                found[i, j] = float((a.basis[:, 0] * b.basis[:, 0]).sum(-1).mean())
    return found
