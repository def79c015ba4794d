"""Does a word's information say how the image changes when the word is left out?

A caption is drawn, and drawn again from the same noise without one of its words, for each of its four words. Observed
is the mean absolute difference of the two images, whole and cell by cell. Predicted is what every method says about the
word on the first image alone. Image level: correlation over all captions and words. Word level: over the captions for
one factor, averaged over factors, so that factors of different kinds (style is detail, background is area) are not
compared. Cell level: over the cells of one image, averaged. Intervals draw captions; the null gives every prediction
another caption's change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.stats import rankdata

from apps.bench.information_maps import attention_levels

if TYPE_CHECKING:
    import torch

    from probe.information import Column, NodeTable
    from probe.model import PipelineEps

_RESAMPLES = 1000


class Removals(NamedTuple):
    """Images before and after.

    Attributes:
        captions, names: captions and their words by factor.
        images: uint8 (n, H, W, 3) of the whole captions.
        x: their clean samples.
        change: (n, factors, cells) mean absolute difference by cell, of colours in [0, 1].
    """

    captions: list[str]
    names: list[dict[str, str]]
    images: np.ndarray
    x: torch.Tensor
    change: np.ndarray


def draw_removals(model: PipelineEps, n: int, seed: int, path: Path, batch_size: int) -> Removals:
    """Generate, or read what was generated into ``path``."""
    from apps.images import change_map
    from apps.progress import bar
    from apps.prompts import balanced
    from probe.canvas import FACTORS, parse_caption
    from probe.canvas.captions import partial_caption
    from probe.capture.noising import encode
    from probe.model import generate

    captions = list(balanced(n, seed=seed).prompts)
    names = [parse_caption(text) for text in captions]
    if not path.is_file():
        prompts = captions + [
            partial_caption({k: v for k, v in given.items() if k != factor}) for factor in FACTORS for given in names
        ]
        seeds = list(range(seed, seed + n)) * (1 + len(FACTORS))
        with bar("words left out") as progress:
            drawn = generate(model.pipe, prompts, seeds, batch_size=batch_size, progress=progress)
        temporary = path.with_name(f".{path.name}")
        with temporary.open("wb") as file:
            np.savez_compressed(file, images=drawn)
        temporary.replace(path)
    images = np.load(path)["images"].reshape(1 + len(FACTORS), n, *_shape(path))
    h, w = model.sample_shape[-2:]
    maps = np.stack([[change_map(a, b) for a, b in zip(images[0], after, strict=True)] for after in images[1:]], 1)
    cells = maps.reshape(*maps.shape[:2], h, maps.shape[2] // h, w, maps.shape[3] // w).mean((3, 5))
    x = encode(model.pipe, images[0], model.sample_shape)
    return Removals(captions, names, images[0], x, cells.reshape(*cells.shape[:2], -1))


def removal_columns(names: Sequence[Mapping[str, str]]) -> list[Column]:
    """Nothing, the caption, and the caption without and with another image's word for each factor."""
    from apps.bench.information import word_columns

    skipped = ("word:", "pair:", "shuffled", "caption-object-colour")
    return [c for c in word_columns(names) if not c.name.startswith(skipped)]


def removal_rows(model: PipelineEps, table: NodeTable, drawn: Removals) -> list[dict[str, Any]]:
    """One row a method and level."""
    from probe.canvas import FACTORS
    from probe.information import word_information, word_maps
    from probe.lenses import attention_maps

    words = [[given[f] for f in FACTORS] for given in drawn.names]
    levels = attention_levels(table)
    attention = attention_maps(model.pipe, drawn.captions, words, images=drawn.images, log_snr=levels).heat()
    n = len(drawn.captions)
    by_word = [word_maps(table, f, attention=attention[:, k]) for k, f in enumerate(FACTORS)]
    methods = {name: np.stack([maps[name] for maps in by_word], 1) for name in by_word[0]}
    predicted = {name: maps.reshape(n, len(FACTORS), -1) for name, maps in methods.items()}
    whole = {name: maps.mean(2) for name, maps in predicted.items()}
    whole["CMI, standard form"] = np.stack([word_information(table, f).pointwise for f in FACTORS], 1)
    order = np.random.default_rng(0).permutation(n)
    whole["shuffled captions"] = whole["CMI"][order]
    predicted["shuffled captions"] = predicted["CMI"][order]
    change = drawn.change.mean(2)
    rows = [_row(level, name, v, change) for level in ("image", "word") for name, v in whole.items()]
    return rows + [_row("cell", name, maps, drawn.change) for name, maps in predicted.items()]


def _row(level: str, method: str, predicted: np.ndarray, observed: np.ndarray) -> dict[str, Any]:
    """Correlations of (captions, words) values, or (captions, words, cells) maps, with 95 % intervals."""
    n = len(observed)
    row: dict[str, Any] = {"part": "removals", "level": level, "method": method, "n": int(np.prod(observed.shape[:2]))}
    draws = np.random.default_rng(0).integers(n, size=(_RESAMPLES, n))
    for name, ranked in (("pearson", False), ("rank", True)):

        def of(at: np.ndarray, ranked: bool = ranked) -> float:
            a, b = predicted[at], observed[at]
            if level == "image":
                a, b = a.ravel(), b.ravel()
            elif level == "word":
                a, b = a.T, b.T
            return float(_correlation(a, b, ranked).mean())

        if level == "cell":  # every caption has its own correlation, and those are drawn
            each = _correlation(predicted, observed, ranked).mean(1)
            value, again = float(each.mean()), each[draws].mean(1)
        else:
            value, again = of(np.arange(n)), np.array([of(at) for at in draws])
        low, high = np.quantile(again, (0.025, 0.975))
        row |= {name: value, f"{name}_low": float(low), f"{name}_high": float(high)}
    return row


def _correlation(a: np.ndarray, b: np.ndarray, ranked: bool) -> np.ndarray:
    """Over the last axis, of values or of ranks; zero where one side does not vary."""
    if ranked:
        a, b = rankdata(a, axis=-1), rankdata(b, axis=-1)
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    norm = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return np.divide((a * b).sum(-1), norm, out=np.zeros_like(norm), where=norm > 0)


def _shape(path: Path) -> tuple[int, ...]:
    return np.load(path)["images"].shape[1:]
