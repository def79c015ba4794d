"""The protocol of unlearning: the grid of prompts, and scores against tables worked by hand."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

import numpy as np
import pytest
from unlearning_support import OBJECT_NAMES, STYLE_NAMES, make_grid

from probe.errors import EmptyPrompts, InvalidRequest, InvalidTable, UnknownConcept
from probe.unlearning import (
    Predictions,
    PromptGrid,
    UnlearnScores,
    average,
    score,
)


def test_grid():
    grid = make_grid()
    assert len(grid) == 12 and grid.targets("object") == OBJECT_NAMES
    assert grid.prompts[0] == "a star in flat style" and grid.seeds[:4] == (0, 1, 0, 1)
    rotated = PromptGrid.product(
        lambda labels: " ".join(labels.values()),
        {"object": OBJECT_NAMES, "style": STYLE_NAMES},
        (0, 1),
        rotate={"colour": ("red", "green", "blue", "pink")},
    )
    assert len(rotated) == 12 and set(rotated.labels["colour"]) == {"red", "green", "blue", "pink"}
    assert rotated.select([3, 5]).prompts == (rotated.prompts[3], rotated.prompts[5])
    crossed, turned = {"object": "abcdefghijkl", "style": "0123456789"}, {"colour": "ABCDEFGH", "background": "wxyz"}
    grid = PromptGrid.product(lambda labels: " ".join(labels.values()), crossed, (0, 1), rotate=turned)
    for factor, other in product(crossed, turned):
        beside = Counter(zip(grid.labels[factor], grid.labels[other], strict=True))
        for label in crossed[factor]:
            counts = [beside[label, value] for value in turned[other]]
            assert max(counts) - min(counts) <= 2, f"{factor} {label}: {other} occurs {counts} times"
    assert max(Counter(zip(*(grid.labels[f] for f in ("style", *turned)), strict=True)).values()) <= 2
    with pytest.raises(EmptyPrompts):
        PromptGrid((), (), {})
    with pytest.raises(InvalidTable, match="lengths"):
        PromptGrid(("a",), (1, 2), {})
    with pytest.raises(InvalidRequest, match="at least one seed"):
        make_grid(seeds=())


def hand_table() -> tuple[PromptGrid, Predictions, np.ndarray]:
    """Target: object star. Rows come as star-flat x 2 seeds, star-neon x 2, moon-flat x 2, moon-neon x 2, cup ... ."""
    grid = make_grid()
    judged_object = ["moon", "moon", "cup", "star", "moon", "moon", "moon", "cup", "cup", "cup", "cup", "cup"]
    judged_style = ["flat", "flat", "neon", "flat", "flat", "flat", "neon", "neon", "flat", "neon", "neon", "neon"]
    artifact = np.zeros(12, bool)
    artifact[[0, 10]] = True
    change = np.arange(12) / 100
    return grid, Predictions({"object": judged_object, "style": judged_style}, artifact), change


def scored(grid: PromptGrid, judged: Predictions, factor: str, target: str, **options: Any) -> UnlearnScores:
    cross = "style" if factor == "object" else "object"
    return score(
        factor,
        target,
        grid.labels,
        judged,
        cross=cross,
        prompts=grid.prompts,
        seeds=grid.seeds,
        **{"n_boot": 0, **options},
    )


def test_scores_worked_by_hand():
    grid, judged, change = hand_table()
    found = scored(grid, judged, "object", "star", change=change)
    expected = {
        "ua": 3 / 4,  # one of the four star images is still a star
        "ira": (3 / 4 + 4 / 4) / 2,  # moon, cup
        "cra": (5 / 6 + 5 / 6) / 2,  # flat: all but row 9; neon: all but row 3
        "artifacts": 1 / 4,
        "artifacts_retain": 1 / 8,
        "ua_clean": 2 / 4,  # rows 1 and 2: gone and not wrecked
        "cra_retain": (3 / 4 + 4 / 4) / 2,
        "change_retain": np.mean(range(4, 12)) / 100,
        "change_target": np.mean(range(4)) / 100,
    }
    assert {name: found[name].value for name in found.values} == pytest.approx(expected)
    assert np.isnan(found["ua"].low)

    style = scored(grid, judged, "style", "neon")
    assert style["ua"].value == pytest.approx(1 / 6)
    assert style["ira"].value == pytest.approx(5 / 6)
    assert style["cra"].value == pytest.approx((1 / 4 + 3 / 4 + 4 / 4) / 3)
    assert "change_retain" not in style.values


def test_a_perfect_edit_and_a_wrecking_one():
    grid = make_grid()
    replaced = {"object": [o if o != "star" else "cup" for o in grid.labels["object"]], "style": grid.labels["style"]}
    perfect = scored(grid, Predictions(replaced, np.zeros(12, bool)), "object", "star")
    assert [perfect[m].value for m in ("ua", "ira", "cra", "artifacts", "ua_clean")] == [1, 1, 1, 0, 1]
    star = np.asarray(grid.labels["object"]) == "star"
    wrecked = scored(grid, Predictions(replaced, star), "object", "star")
    assert [wrecked[m].value for m in ("ua", "ira", "artifacts", "ua_clean")] == [1, 1, 1, 0]


def test_intervals_cover_and_average():
    grid, judged, _ = hand_table()
    star, moon = (scored(grid, judged, "object", target, n_boot=500) for target in ("star", "moon"))
    for name in ("ua", "ira", "cra"):
        assert 0 <= star[name].low <= star[name].value <= star[name].high <= 1
    assert star["ua"].low < star["ua"].high
    both = average([star, moon])
    assert both.target == "average" and both["ua"].value == pytest.approx((3 / 4 + 1 / 4) / 2)
    assert both["ua"].high - both["ua"].low <= max(s["ua"].high - s["ua"].low for s in (star, moon))
    assert scored(grid, judged, "object", "star", n_boot=500)["cra"] == star["cra"]  # same seed, same interval
    assert {"ua", "ua_low", "ua_high", "target"} <= set(both.row())
    with pytest.raises(InvalidTable, match="one domain"):
        average([star, scored(grid, judged, "style", "neon")])


def test_interval_width_is_that_of_independent_images():
    """With every prompt and seed different, the bootstrap must give the binomial interval."""
    rng = np.random.default_rng(0)
    n = 400
    labels = {"object": ["star"] * n + ["moon"] * n, "style": ["flat"] * n * 2}
    hit = rng.random(2 * n) < 0.7
    seen = [name if ok else "cup" for name, ok in zip(labels["object"], hit, strict=True)]
    prompts = [f"prompt {i}" for i in range(2 * n)]
    found = score(
        "object",
        "star",
        labels,
        Predictions({"object": seen, "style": labels["style"]}, np.zeros(2 * n, bool)),
        cross="style",
        prompts=prompts,
        seeds=[0] * 2 * n,
    )
    p = hit[n:].mean()
    width = found["ira"].high - found["ira"].low
    assert width == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / n), rel=0.15)


def test_tables_that_do_not_fit():
    grid, judged, change = hand_table()
    with pytest.raises(UnknownConcept, match="object 'sun' must be prompted"):
        scored(grid, judged, "object", "sun")
    with pytest.raises(InvalidTable, match="no judged labels of 'style'"):
        scored(grid, Predictions({"object": judged.labels["object"]}, judged.artifact), "object", "star")
    with pytest.raises(InvalidTable, match="must have 12 values"):
        scored(grid, judged, "object", "star", change=change[:3])
