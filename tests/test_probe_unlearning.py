"""probe.unlearning: SAeUron's selection against its equations, the protocol on tables worked by hand, evaluation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from probe.capture import Recorder, resolve_sites
from probe.errors import EmptyPrompts, InvalidRequest, InvalidTable, UnknownConcept
from probe.interventions import (
    AddDirection,
    Intervention,
    Recipe,
    ScaleFeatures,
    TopKDictionary,
    intervene,
)
from probe.model import generate
from probe.unlearning import (
    OBJECTS,
    STYLES,
    Predictions,
    PromptGrid,
    Setting,
    UnlearnScores,
    average,
    evaluate,
    saeuron,
    score,
    search,
)

D, D_SAE, STEPS = 16, 12, 3
TIMES = (999, 666, 333)


def features_of(op: Any) -> Any:
    """The features of an operation on features."""
    return op.features


def dictionary() -> TopKDictionary:
    g = torch.Generator().manual_seed(0)
    W = torch.nn.functional.normalize(torch.randn(D_SAE, D, generator=g), dim=-1)
    return TopKDictionary(W.T.clone(), torch.zeros(D_SAE), W, torch.zeros(D), k=6)


@dataclass
class Scores:
    """(S0) and (S1), written independently of the code under test."""

    concepts: tuple[str, ...]
    mu: np.ndarray

    @property
    def mean_activation(self) -> np.ndarray:
        return self.mu.mean(1)

    def score(self, concept: str) -> np.ndarray:
        own = self.mu[:, self.concepts.index(concept)]
        rest = np.delete(self.mu, self.concepts.index(concept), axis=1).mean(1)
        return own / own.sum(-1, keepdims=True) - rest / rest.sum(-1, keepdims=True)


def planted_scores() -> Scores:
    """Concept c fires feature c at step 0, c + 3 at step 1, c + 6 at step 2; feature 11 fires for all."""
    mu = np.full((STEPS, 3, D_SAE), 0.01, dtype=np.float32)
    for step in range(STEPS):
        for concept in range(3):
            mu[step, concept, concept + 3 * step] = 0.5 + step
    mu[:, :, 11] = 5.0
    return Scores(("star", "moon", "cup"), mu)


# SAeUron


def test_features_are_selected_again_at_each_step():
    scores = planted_scores()
    (edit,) = saeuron(scores, "moon", dictionary=dictionary(), site="mid_block", setting=STYLES, timesteps=TIMES)
    op = edit.op
    assert isinstance(op, ScaleFeatures) and edit.branch == "both" and op.timesteps == TIMES
    assert torch.as_tensor(op.features).tolist() == [[1], [4], [7]]
    np.testing.assert_allclose(torch.as_tensor(op.multipliers)[:, 0], [-0.5, -1.5, -2.5])  # gamma mu
    thresholds = [scores.mean_activation[step, f] for step, f in enumerate((1, 4, 7))]
    np.testing.assert_allclose(torch.as_tensor(op.thresholds)[:, 0], thresholds)


def test_settings():
    scores = planted_scores()
    setting = Setting(n_features=2, multiplier=-20.0, relative=False, branch="cond", steps=(0, 1))
    (edit,) = saeuron(scores, ["star", "cup"], dictionary=dictionary(), site="mid_block", setting=setting)
    op = edit.op
    assert isinstance(op, ScaleFeatures) and edit.branch == "cond" and edit.steps == (0, 1)
    # Two features were asked for each concept, but only one scores above zero: no other is pushed.
    assert [sorted(set(row) - {-1}) for row in torch.as_tensor(op.features).tolist()] == [[0, 2], [3, 5], [6, 8]]
    multipliers = torch.as_tensor(op.multipliers)[torch.as_tensor(op.features) >= 0]
    assert (multipliers == -20.0).all()
    assert OBJECTS.n_features > STYLES.n_features


def test_with_a_margin_features_are_the_concepts_own():
    """A feature that another concept has nearly as much is left alone, and the next one takes its place."""
    scores = planted_scores()
    scores.mu[:, 1, 9] = 20.0  # moon's most active feature, and star's too
    scores.mu[:, 0, 9] = 12.0
    made = {}
    for margin in (0.0, 2.0):
        setting = Setting(n_features=1, multiplier=-1.0, relative=False, margin=margin)
        (edit,) = saeuron(scores, "moon", dictionary=dictionary(), site="mid_block", setting=setting)
        made[margin] = torch.as_tensor(features_of(edit.op)).tolist()
    assert made[0.0] == [[9], [9], [9]]
    assert made[2.0] == [[1], [4], [7]]
    both = saeuron(scores, ["star", "moon"], dictionary=dictionary(), site="mid_block", setting=setting)[0].op
    assert 9 in torch.as_tensor(features_of(both))[0].tolist()  # no other concept has it
    with pytest.raises(InvalidRequest, match="margin"):
        Setting(margin=-1.0)


def test_the_edit_computes_s2_inside_the_model(tiny_pipe):
    d = dictionary()
    base: list[torch.Tensor] = []
    sites = resolve_sites(tiny_pipe, "mid_block")

    def run(edits, into) -> None:
        keep = lambda site, step, branches, rows, grid: into.append(rows.clone())  # noqa: E731
        with intervene(tiny_pipe, edits), Recorder(tiny_pipe, sites, keep):
            generate(tiny_pipe, ["a red star"], [0], steps=STEPS, guidance=2.0)

    run([], base)
    x, z = base[0], d.encode(base[0])
    scores = planted_scores()
    scores.mu[0, 1, 1] = float(z[..., 1].max()) * 1.2  # so that some tokens lie above the mean and some below
    (edit,) = saeuron(scores, "moon", dictionary=d, site="mid_block", setting=Setting(1, -3.0))
    edited: list[torch.Tensor] = []
    run([edit], edited)
    above = z[..., 1] > scores.mean_activation[0, 1]
    assert above.any() and not above.all()
    change = torch.where(above, (-3.0 * scores.mu[0, 1, 1] - 1.0) * z[..., 1], 0.0)
    torch.testing.assert_close(edited[0], x + change[..., None] * d.W_dec[1], rtol=1e-4, atol=1e-4)
    assert torch.equal(edited[0][~above], x[~above])


def test_saeuron_recipe_replays(tiny_pipe, tmp_path):
    (edit,) = saeuron(planted_scores(), "moon", dictionary=dictionary(), site="mid_block", setting=Setting(1, -30.0))
    given = {"prompts": ["a red moon"], "seeds": [1], "steps": STEPS, "guidance": 2.0}
    expected = generate(tiny_pipe, **given, interventions=[edit])
    Recipe.of(tiny_pipe, [edit]).save(tmp_path / "r")
    found = generate(tiny_pipe, **given, interventions=Recipe.load(tmp_path / "r", tiny_pipe).interventions)
    np.testing.assert_array_equal(found, expected)


def test_bad_scores():
    scores = planted_scores()
    with pytest.raises(UnknownConcept, match="'sun' was not scored; expected one of star, moon, cup"):
        saeuron(scores, "sun", dictionary=dictionary(), site="mid_block")
    with pytest.raises(InvalidRequest, match="no concept"):
        saeuron(scores, [], dictionary=dictionary(), site="mid_block")
    with pytest.raises(InvalidRequest, match="of this dictionary"):
        saeuron(Scores(scores.concepts, scores.mu[..., :5]), "star", dictionary=dictionary(), site="mid_block")
    with pytest.raises(InvalidRequest, match="99 features"):
        saeuron(scores, "star", dictionary=dictionary(), site="mid_block", setting=Setting(n_features=99))
    with pytest.raises(InvalidRequest, match="n_features"):
        Setting(n_features=0)
    subset: Any = SimpleNamespace(
        concepts=scores.concepts,
        mu=scores.mu,
        mean_activation=scores.mean_activation,
        score=scores.score,
        steps=(0, 4, 8),
    )
    with pytest.raises(InvalidRequest, match="give the timesteps of these steps"):
        saeuron(subset, "star", dictionary=dictionary(), site="mid_block")
    assert saeuron(subset, "star", dictionary=dictionary(), site="mid_block", timesteps=TIMES)[0].steps is None


# The protocol

OBJECT_NAMES, STYLE_NAMES = ("star", "moon", "cup"), ("flat", "neon")


def make_grid(seeds=(0, 1)) -> PromptGrid:
    return PromptGrid.product(
        lambda labels: f"a {labels['object']} in {labels['style']} style",
        {"object": OBJECT_NAMES, "style": STYLE_NAMES},
        seeds,
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


# Evaluation


def judge_of(grid: PromptGrid, calls: list[np.ndarray]):
    """Names what was prompted, until an image is bright: then the object is called a cup."""

    def judge(images: np.ndarray) -> Any:
        calls.append(images)
        bright = images.reshape(len(images), -1).mean(1) > 250
        objects = [o if not b else "cup" for o, b in zip(grid.labels["object"], bright, strict=True)]
        labels = {"object": objects, "style": list(grid.labels["style"])}
        return SimpleNamespace(labels=labels.__getitem__, is_artifact=np.zeros(len(images), bool))

    return judge


def test_evaluate_generates_judges_and_scores(tiny_pipe):
    grid = make_grid(seeds=(5,))
    calls: list[np.ndarray] = []
    progress: list[tuple[int, int]] = []
    nothing = Intervention("mid_block", AddDirection(torch.ones(D)), strength=0.0)
    white = Intervention("conv_out", AddDirection(torch.ones(4)), strength=40.0)
    found = evaluate(
        tiny_pipe,
        judge_of(grid, calls),
        grid,
        {("object", "star"): [nothing], ("object", "moon"): [white], ("style", "neon"): [nothing]},
        steps=2,
        guidance=2.0,
        n_boot=50,
        progress=lambda done, total: progress.append((done, total)),
    )
    assert len(calls) == 4 and progress[-1] == (24, 24)
    kept = found.results["object", "star"]
    assert kept.images is not None
    np.testing.assert_array_equal(kept.images, found.baseline_images)
    assert kept.scores["ua"].value == 0.0 and kept.scores["change_retain"].value == 0.0
    assert kept.baseline["ira"].value == 1.0
    changed = found.results["object", "moon"].scores
    assert changed["change_target"].value > 0.0
    assert found.averages["object"]["ua"].value == pytest.approx((0.0 + changed["ua"].value) / 2)
    assert set(found.ratios()) == {f"{f}_{m}" for f in ("object", "style") for m in ("ua", "ira", "cra", "artifacts")}
    assert len(found.rows()) == 8

    reused = evaluate(
        tiny_pipe,
        judge_of(grid, calls),
        grid,
        {("object", "star"): [nothing]},
        steps=2,
        guidance=2.0,
        n_boot=0,
        baseline_images=found.baseline_images,
        keep_images=False,
    )
    assert reused.results["object", "star"].images is None


def test_search_orders_settings(tiny_pipe):
    grid = make_grid(seeds=(7,))
    edits = {
        "zero": [Intervention("mid_block", AddDirection(torch.ones(D)), strength=0.0)],
        "two": [Intervention("mid_block", AddDirection(torch.ones(D)), strength=2.0)],
    }
    found = search(
        tiny_pipe, judge_of(grid, []), grid, ("object", "star"), edits, objective=lambda s: s["ira"].value, steps=2
    )
    assert {c.name for c in found} == {"zero", "two"}
    assert found[0].objective >= found[1].objective


def test_targets_are_checked_before_work(tiny_pipe):
    grid = make_grid(seeds=(5,))

    def no_judge(images: np.ndarray) -> Any:
        raise AssertionError("work has started")

    for edits, error, message in [
        ({("object", "sun"): []}, UnknownConcept, "object 'sun' must be in the grid"),
        ({("colour", "red"): []}, InvalidRequest, "target factor 'colour'"),
        ({}, InvalidRequest, "no edits"),
    ]:
        with pytest.raises(error, match=message):
            evaluate(tiny_pipe, no_judge, grid, edits)
    with pytest.raises(InvalidRequest, match="3 baseline images for a grid of 6"):
        evaluate(
            tiny_pipe, no_judge, grid, {("object", "star"): []}, baseline_images=np.zeros((3, 16, 16, 3), np.uint8)
        )
