"""Object masks of a store that was collected from real images with masks, on the grid of a site."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from apps.errors import InvalidFile

if TYPE_CHECKING:
    from activations_store import ActivationStore

MASKS = "masks"
_NAME = re.compile(r"\d{1,12}\.png")


def object_masks(store: ActivationStore, site: str, samples: np.ndarray) -> np.ndarray | None:
    """(n_samples, tokens) bool: cells of which the object covers at least half.

    Args:
        store: the store.
        site: one whose tokens are the cells of a map.
        samples: which samples.

    Returns:
        None if the store has no masks, or the site no grid. A sample without a mask has no cell.

    Raises:
        InvalidFile: a mask cannot be read, or its name is not one that ``collect`` gives.
    """
    grid = store.site(site).spec.grid
    if grid is None or "mask" not in store.samples.column_names:
        return None
    names = store.samples.column("mask").to_pylist()
    found = np.zeros((len(samples), grid[0] * grid[1]), dtype=bool)
    for row, sample in enumerate(samples):
        if names[sample]:
            if not _NAME.fullmatch(str(names[sample])):
                raise InvalidFile(f"mask of sample {sample}: {names[sample]!r} is no name of a mask file.")
            path = store.path / MASKS / str(names[sample])
            try:
                with Image.open(path) as image:
                    found[row] = covered(image, grid)
            except OSError as error:
                raise InvalidFile(f"mask of sample {sample}: {path} cannot be read: {error}.") from error
    return found if found.any() else None


def covered(mask: Image.Image, grid: tuple[int, int]) -> np.ndarray:
    """(tokens,) bool: cells of a grid (height, width) of which at least half is white in a mask."""
    return np.asarray(mask.convert("F").resize((grid[1], grid[0]), Image.Resampling.BOX)).ravel() >= 127.5
