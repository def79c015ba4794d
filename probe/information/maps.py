"""Maps of one word by every method, on one grid, for looking at and for comparing.

    MI                      orthogonal information of the word alone, over nothing said
    CMI                     of the caption over the caption without the word
    null                    the same for another image's word in its place: what any word would move
    PID unique              the part of MI that a second word does not carry, decided pixel by pixel
    guidance difference     mean over log SNR of |eps(caption) - eps(nothing)|, what guidance pushes along
    attention               where the word looks (``probe.lenses``), interpolated to the grid
    gradient x attention    where looking there makes the image more likely
    attention x CMI         the product of two maps that fail in different ways

All are 0 or more. Units differ (nats, noise, shares), so that maps are compared by shape: ranks, or shares of the
maximum.
"""

from __future__ import annotations

import numpy as np
import torch

from probe.errors import InvalidRequest
from probe.information.columns import CAPTION, EMPTY, pair, swap, without, word
from probe.information.mutual import pixel_nats
from probe.information.pid import atoms
from probe.information.table import NodeTable
from probe.lenses.attention_maps import resample


def word_maps(
    table: NodeTable,
    role: str,
    *,
    other: str | None = None,
    attention: np.ndarray | None = None,
    gradient: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Maps of a role's word.

    Args:
        table: with the columns of ``caption_columns``; a method whose columns it lacks is left out.
        role: of the word.
        other: the second role of "PID unique".
        attention, gradient: (images, h, w) maps of the word, of ``attention_maps(...).heat()[:, k]`` and
            ``gradient_attention(...).heat()[:, k]``.

    Returns:
        (images, height, width) float64 by method, in the order above.

    Raises:
        InvalidRequest: the samples are no maps, or ``attention`` has another number of images.
    """
    if table.grid is None:
        raise InvalidRequest("word_maps: the samples are vectors, which have no map.")
    wanted = {"MI": (word(role), EMPTY), "CMI": (CAPTION, without(role)), "null": (swap(role), without(role))}
    have = set(table.columns)
    found = {name: pixel_nats(table, *columns) for name, columns in wanted.items() if have >= set(columns)}
    if other is not None:
        both = next((c for c in (pair(role, other), pair(other, role)) if c in have), None)
        if both is not None:
            # One image at a time is one "average": the leading axis is what atoms are averaged over.
            parts = [pixel_nats(table, c)[None] for c in (word(role), word(other), both)]
            found["PID unique"] = atoms(*parts).unique_first
    if have >= {CAPTION, EMPTY}:
        found["guidance difference"] = guidance_difference(table)
    maps = {name: v.reshape(-1, *table.grid).astype(np.float64) for name, v in found.items()}
    for name, given in (("attention", attention), ("gradient x attention", gradient)):
        if given is not None:
            maps[name] = on_grid(given, table)
    if "attention" in maps and "CMI" in maps:
        maps["attention x CMI"] = maps["attention"] * maps["CMI"]
    return maps


def guidance_difference(table: NodeTable) -> np.ndarray:
    """(images, tokens) mean over log SNR, all levels alike, of the length of eps_caption - eps_empty."""
    share = table.weight / table.weight.sum(1, keepdims=True)
    return np.einsum("ij,ijt->it", share, np.sqrt(table.differences(EMPTY, CAPTION)))


def on_grid(maps: np.ndarray, table: NodeTable) -> np.ndarray:
    """(images, h, w) maps on the table's grid."""
    if maps.ndim != 3 or len(maps) != table.n_images or table.grid is None:
        raise InvalidRequest(f"word_maps: maps {maps.shape} for {table.n_images} images; expected (images, h, w).")
    return resample(torch.from_numpy(maps[None]).float(), table.grid)[0].numpy().astype(np.float64)
