"""Does the map of the object's word lie on the object? Overlap with the true mask, for every kind of map.

A map is divided by its largest value. The threshold with the best mean overlap is chosen on the first half of the
images and used on the second; AUC needs none: how often a cell of the object has more than a cell beside it. A map that
is on everywhere, a random map, and the map of another image's word are what there is to beat.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from apps.measurement import bootstrap_mean

if TYPE_CHECKING:
    from apps.bench.information import World
    from probe.information import NodeTable
    from probe.model import PipelineEps

THRESHOLDS = np.linspace(0.01, 0.95, 95)
LEVELS = 8  # noise levels of the attention maps


def localisation_rows(model: PipelineEps, table: NodeTable, world: World) -> list[dict[str, Any]]:
    """One row a kind of map."""
    maps = object_maps(model, table, world)
    chosen = np.arange(len(world.masks)) < len(world.masks) // 2
    return [{"part": "localisation", "method": name} | overlap(m, world.masks, chosen) for name, m in maps.items()]


def object_maps(model: PipelineEps, table: NodeTable, world: World) -> dict[str, np.ndarray]:
    """(images, tokens) of every method for the object's word, a random map and one that is on everywhere."""
    from probe.information import word_maps
    from probe.lenses import attention_maps, gradient_attention

    words = [[names["object"]] for names in world.names]
    levels = attention_levels(table)
    attention = attention_maps(model.pipe, world.captions, words, images=world.images, log_snr=levels).heat()[:, 0]
    gradient = gradient_attention(model.pipe, world.captions, words, world.images, levels).heat()[:, 0]
    found = word_maps(table, "object", other="colour", attention=attention, gradient=gradient)
    n = len(world.masks)
    maps: dict[str, np.ndarray] = {name: values.reshape(n, -1) for name, values in found.items()}
    maps["random"] = np.random.default_rng(0).random(world.masks.shape)
    maps["everywhere"] = np.ones(world.masks.shape)
    return maps


def attention_levels(table: NodeTable) -> list[float]:
    """Some of the table's levels, evenly."""
    level = table.log_snr[0]
    return level[np.unique(np.linspace(0, len(level) - 1, LEVELS).round().astype(int))].tolist()


def overlap(maps: np.ndarray, masks: np.ndarray, chosen: np.ndarray) -> dict[str, Any]:
    """Overlap and AUC of maps with masks.

    Args:
        maps: (images, tokens), 0 or more.
        masks: (images, tokens) bool.
        chosen: (images,) bool: those that choose the threshold; the others are measured.
    """
    from sklearn.metrics import roc_auc_score

    top = maps.max(1, keepdims=True)
    share = np.divide(maps, top, out=np.zeros_like(maps), where=top > 0)
    on = share[None] >= THRESHOLDS[:, None, None]  # (thresholds, images, tokens)
    iou = (on & masks).sum(2) / np.maximum((on | masks).sum(2), 1)
    best = int(iou[:, chosen].mean(1).argmax())
    held = ~chosen & masks.any(1) & ~masks.all(1)
    auc = [roc_auc_score(mask, values) for mask, values in zip(masks[held], share[held], strict=True)]
    row: dict[str, Any] = {"threshold": float(THRESHOLDS[best]), "n": int(held.sum())}
    for name, values in (("iou", iou[best, held]), ("auc", auc)):
        found = bootstrap_mean(values)
        row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return row
