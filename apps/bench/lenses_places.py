"""Where is the object, and which point is this? Lenses with a place, against true masks and keypoints.

Localisation: the map of the object's word, gradient x attention, and segments without any word, of which the one at the
border is called ground and the rest object. To beat: every cell; and the mean mask of the choosing half, which knows
where objects tend to be and nothing of the image.

Correspondence: one object of one style drawn twice, at other places, sizes, angles, colours and backgrounds; points on
the first are carried to the second by the renderer's own placement. PCK counts matches within a tenth of the object's
longer side. To beat: the same point of the image; any point of the object; and the picture's own colours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from apps.bench.information_maps import overlap
from apps.lenses.pairs import drawn_pairs
from apps.measurement import bootstrap_mean
from apps.progress import bar

if TYPE_CHECKING:
    from apps.bench.lenses import LensWorld, Row

SEGMENT_SITES = (
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1",
    "up_blocks.1.attentions.0.transformer_blocks.0.attn1",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn1",
    "up_blocks.1",
)
ALPHAS = (2.0, 10.0)
MATCH_SITES = ("down_blocks.1", "up_blocks.0", "up_blocks.1", "up_blocks.2")


def localisation_rows(world: LensWorld) -> list[Row]:
    """One row a lens."""
    from probe.lenses import attention_maps, gradient_attention

    batch, levels = world.renders, world.config.log_snr
    words = [[scene.object] for scene in batch.scenes]
    with bar("attention") as progress:
        attention = attention_maps(
            world.pipe, batch.captions, words, images=batch.images, log_snr=levels, progress=progress
        )
    with bar("gradient x attention") as progress:
        gradient = gradient_attention(world.pipe, batch.captions, words, batch.images, levels, progress=progress)
    n, side = len(batch.images), int(np.sqrt(world.masks.shape[1]))
    found: dict[str, tuple[np.ndarray, dict[str, Any]]] = {}
    for name, maps in (("attention", attention), ("gradient x attention", gradient)):
        found[f"{name}, all sites and levels"] = maps.heat(side=side)[:, 0].reshape(n, -1), {}
        single = {
            (site, step): maps.heat(sites=[site], steps=[step], side=side)[:, 0].reshape(n, -1)
            for site in maps.maps
            for step in range(len(levels))
        }
        best = max(single, key=lambda key: _chosen_iou(single[key], world))
        found[f"{name}, best site and level"] = single[best], {"site": best[0], "log_snr": levels[best[1]]}
    found["normalised cut"] = _segments(world)
    prior = np.broadcast_to(world.masks[world.chosen].mean(0), world.masks.shape)
    found["mean mask (no model)"] = prior, {}
    found["everywhere"] = np.ones(world.masks.shape), {}
    rows = []
    for name, (maps, about) in found.items():
        scores = overlap(np.asarray(maps, np.float64), world.masks, world.chosen)
        rows.append(
            {
                "what": f"IoU, {name}",
                "headline": "iou_" + name.split(" (")[0].replace(" x ", "_").replace(", ", "_").replace(" ", "_"),
                "value": scores["iou"],
                "low": scores["iou_low"],
                "high": scores["iou_high"],
                "n": scores["n"],
                "auc": scores["auc"],
                "threshold": scores["threshold"],
                **about,
            }
        )
    return rows


def correspondence_rows(world: LensWorld) -> list[Row]:
    """One row a descriptor."""
    from probe.lenses import Hyperfeatures, diffusion_features

    pairs = drawn_pairs(world.config.pairs, [world.config.seed, 2])
    choosing, held = np.arange(len(pairs) // 2), np.arange(len(pairs) // 2, len(pairs))
    with bar("features") as progress:
        features = diffusion_features(world.pipe, pairs.images, MATCH_SITES, world.config.log_snr, progress=progress)

    def score(maps: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        return pairs.share(pairs.matched(maps, chosen.tolist()), chosen.tolist())

    single = {(site, step): maps[step] for site, maps in features.maps.items() for step in range(maps.shape[0])}
    best = max(single, key=lambda key: score(single[key], choosing).mean())
    mixed = Hyperfeatures(seed=world.config.seed).fit(
        features.maps, [pairs.numbers[i] for i in choosing], [(pairs.points[i], pairs.truth[i]) for i in choosing]
    )
    descriptors = mixed.transform(features.maps)
    strongest = np.unravel_index(int(mixed.weights_.argmax()), mixed.weights_.shape)
    pixels = pairs.images.reshape(-1, 32, 2, 32, 2, 3).mean((2, 4)).transpose(0, 3, 1, 2).astype(np.float32)
    rng = np.random.default_rng(world.config.seed)
    any_point = pairs.share([pairs.truth[i][rng.permutation(len(pairs.truth[i]))] for i in held], held.tolist())
    same_place = pairs.share([pairs.points[i] for i in held], held.tolist())
    log_snr = world.config.log_snr
    results: list[tuple[str, str, np.ndarray, dict[str, Any]]] = [
        (
            "best site and level",
            "pck_features",
            score(single[best], held),
            {"site": best[0], "log_snr": log_snr[best[1]]},
        ),
        (
            "learned mixing",
            "pck_hyperfeatures",
            score(descriptors, held),
            {"site": mixed.sites_[int(strongest[0])], "log_snr": log_snr[int(strongest[1])]},
        ),
        ("colours of the picture", "pck_pixels", score(pixels, held), {}),
        ("the same place", "pck_same_place", same_place, {}),
        ("any point of the object", "pck_any_point", any_point, {}),
    ]
    rows = []
    for name, headline, values, about in results:
        mean = bootstrap_mean(values)
        rows.append(
            {"what": f"PCK, {name}", "headline": headline, "value": mean.value, "low": mean.low, "high": mean.high,
             "n": len(values), **about}
        )  # fmt: skip
    for (site, step), maps in single.items():
        rows.append(
            {"what": "PCK on the choosing half", "site": site, "log_snr": log_snr[step],
             "value": float(score(maps, choosing).mean()), "n": len(choosing)}
        )  # fmt: skip
    return rows


def _segments(world: LensWorld) -> tuple[np.ndarray, dict[str, Any]]:
    """Object maps from segments, at the site, level and exponent that do best on the choosing half."""
    from probe.lenses import diffusion_features

    with bar("features") as progress:
        features = diffusion_features(
            world.pipe, world.renders.images, SEGMENT_SITES, world.config.log_snr, progress=progress
        )
    best: tuple[float, tuple[str, int, float]] | None = None
    choosing = np.flatnonzero(world.chosen)
    with bar("normalised cuts", "cut") as progress:
        total, done = len(features.maps) * len(world.config.log_snr) * len(ALPHAS), 0
        for site, maps in features.maps.items():
            for step in range(maps.shape[0]):
                for alpha in ALPHAS:
                    found = np.stack([_object_of(maps[step, i], alpha, world) for i in choosing])
                    truth = world.masks[choosing]
                    iou = ((found > 0) & truth).sum(1) / ((found > 0) | truth).sum(1)
                    if best is None or iou.mean() > best[0]:
                        best = float(iou.mean()), (site, step, alpha)
                    done += 1
                    progress(done, total)
    assert best is not None
    site, step, alpha = best[1]
    objects = np.stack([_object_of(m, alpha, world) for m in features.maps[site][step]])
    return objects, {"site": site, "log_snr": world.config.log_snr[step], "alpha": alpha}


def _object_of(features: np.ndarray, alpha: float, world: LensWorld) -> np.ndarray:
    """(tokens,) 1 where a cell is not in the ground's segment, on the grid of the masks."""
    from probe.lenses import background_segment, normalised_cut

    segments = normalised_cut(features, alpha=alpha, max_segments=2, limit=2.0)
    thing = (segments != background_segment(segments)).astype(np.float64)
    side = int(np.sqrt(world.masks.shape[1]))
    return thing.repeat(side // thing.shape[0], 0).repeat(side // thing.shape[1], 1).ravel()


def _chosen_iou(maps: np.ndarray, world: LensWorld) -> float:
    """The best mean IoU of any threshold on the choosing half, which stands in for both halves of ``overlap``."""
    n = int(world.chosen.sum())
    maps, masks = maps[world.chosen], world.masks[world.chosen]
    twice = np.concatenate([maps, maps]).astype(np.float64)
    return float(overlap(twice, np.concatenate([masks, masks]), np.arange(2 * n) < n)["iou"])
