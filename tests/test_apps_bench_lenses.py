"""The bench of lenses: its truth is the renderer's, its answers without a model are what they are said to be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from apps.bench.information_maps import overlap
from apps.bench.lenses import QUICK, SIDE, LensWorld, lenses_table, ratios
from apps.bench.lenses_places import _chosen_iou, _object_of
from apps.lenses.pairs import POINTS, drawn_pairs


def world(**changes: Any) -> LensWorld:
    nothing: Any = None  # neither the model nor the judge is asked
    return LensWorld(nothing, nothing, replace(QUICK, **changes))


def test_matched_points_lie_on_both_objects():
    pairs = drawn_pairs(6, 5)
    assert len(pairs.images) == 12 and all(
        len(p) == len(t) == POINTS for p, t in zip(pairs.points, pairs.truth, strict=True)
    )
    again = drawn_pairs(6, 5)
    assert all(np.array_equal(a, b) for a, b in zip(pairs.truth, again.truth, strict=True))
    for number, (points, truth) in enumerate(zip(pairs.points, pairs.truth, strict=True)):
        first, second = (pairs.images[side].astype(float) for side in pairs.numbers[number])
        size = len(first)
        ground = [np.median(np.concatenate([i[0], i[-1], i[:, 0], i[:, -1]]), axis=0) for i in (first, second)]
        # On the object a picture differs from its ground at most points (marks may have the ground's colour).
        for image, where, behind in ((first, points, ground[0]), (second, truth, ground[1])):
            x, y = np.minimum((where * size).astype(int), size - 1).T
            assert (np.abs(image[y, x] - behind).sum(1) > 30).mean() > 0.6
        box = truth.max(0) - truth.min(0)
        assert box.max() <= pairs.sizes[number] + 2 / size


def test_segments_find_an_object_before_its_ground():
    """Features that are the mask itself, with noise: the object is found exactly, and scores one."""
    given = world()
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.standard_normal((8, 2)))[0].T
    masks = given.masks.reshape(-1, SIDE, SIDE)
    found = np.stack(
        [
            _object_of(
                vectors[mask.astype(int)].transpose(2, 0, 1) + 0.01 * rng.standard_normal((8, SIDE, SIDE)), 10, given
            )
            for mask in masks
        ]
    )
    np.testing.assert_array_equal(found > 0, given.masks)
    assert overlap(found, given.masks, given.chosen)["iou"] == 1.0 and _chosen_iou(found, given) == 1.0
    everywhere = overlap(np.ones_like(found), given.masks, given.chosen)["iou"]
    assert np.isclose(everywhere, given.masks[~given.chosen].mean())


def test_headlines_are_named_and_shown():
    rows = [
        {"part": "a", "what": "first", "headline": "one", "value": 0.5, "low": 0.4, "high": 0.6, "n": 7},
        {"part": "a", "what": "second", "value": 0.1},
        {"part": "b", "what": "third", "headline": "two", "value": None},
    ]
    assert ratios(rows) == {
        "one": 0.5, "one_low": 0.4, "one_high": 0.6, "two": None, "two_low": None, "two_high": None
    }  # fmt: skip
    shown = lenses_table(rows)
    assert "a: first" in shown and "0.400 to 0.600" in shown and "second" not in shown and "n/a" in shown
