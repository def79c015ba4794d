"""probe.unlearning: SAeUron's selection against its equations, and evaluation from edits to scores."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from unlearning_support import (
    STEPS,
    TIMES,
    D,
    Scores,
    dictionary,
    make_grid,
    planted_scores,
)

from probe.capture import Recorder, resolve_sites
from probe.errors import InvalidRequest, UnknownConcept
from probe.interventions import (
    AddDirection,
    Intervention,
    Recipe,
    ScaleFeatures,
    intervene,
)
from probe.model import generate
from probe.unlearning import (
    OBJECTS,
    STYLES,
    PromptGrid,
    Setting,
    evaluate,
    saeuron,
    search,
)


def features_of(op: Any) -> Any:
    """The features of an operation on features."""
    return op.features


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
