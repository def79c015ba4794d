"""``denoscope steer``: its statistics against known answers, the sweep on disk, and what the judge sees of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apps.cli import FAILED, main
from apps.images import read_image
from apps.steering.numbers import ASKING, WITHOUT, groups_of, shown_rows
from apps.steering.push import direction_push, feature_push
from apps.steering.response import Resampled, Unedited, artifact_limit, columns, saturation, trend
from probe.canvas import FACTORS, Verdict
from probe.directions import Direction, save_direction
from probe.interventions import StepContext, TopKDictionary

STRENGTHS = [-2.0, -1.0, 0.0, 1.0, 2.0]


class TestTrend:
    def test_every_image_rising_is_one_with_the_smallest_p(self) -> None:
        found = trend(np.arange(20.0).reshape(4, 5), STRENGTHS, n_shuffles=99)
        assert found.rho == pytest.approx(1.0) and found.p == pytest.approx(1 / 100)

    def test_falling_is_minus_one_and_flat_is_zero(self) -> None:
        assert trend(-np.arange(20.0).reshape(4, 5), STRENGTHS, n_shuffles=99) == pytest.approx((-1.0, 1.0))
        assert trend(np.full((4, 5), 0.3), STRENGTHS, n_shuffles=99) == pytest.approx((0.0, 1.0))

    def test_agrees_with_spearman_where_there_are_ties(self) -> None:
        from scipy.stats import spearmanr

        values = np.array([[0.0, 0.0, 0.2, 0.2, 0.9], [0.1, 0.4, 0.3, 0.5, 0.5]])
        expected = np.mean([float(spearmanr(row, STRENGTHS)[0]) for row in values])  # pyright: ignore[reportArgumentType]
        assert trend(values, STRENGTHS, n_shuffles=1).rho == pytest.approx(expected)

    def test_null_is_calibrated(self) -> None:
        """Under no effect a p-value below 0.2 comes in a fifth of the draws: 400 draws, four standard errors."""
        rng = np.random.default_rng(0)
        low = [trend(rng.random((6, 5)), STRENGTHS, n_shuffles=99, seed=i).p <= 0.2 for i in range(400)]
        assert abs(np.mean(low) - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 400)


class TestResampled:
    def test_interval_of_independent_images_is_the_textbook_one(self) -> None:
        values = np.random.default_rng(1).normal(size=200)
        found = Resampled([f"p{i}" for i in range(200)], [7] * 200).mean(values)
        half = 1.96 * values.std() / np.sqrt(200)
        assert found.value == pytest.approx(values.mean())
        assert found.high - found.low == pytest.approx(2 * half, rel=0.1)

    def test_shared_seeds_widen_the_interval(self) -> None:
        """All that differs is the seed: 2 seeds are 2 observations, however many prompts share them."""
        prompts, seeds = [f"p{i}" for i in range(20) for _ in range(2)], [0, 1] * 20
        values = np.asarray(seeds, float)
        crossed = Resampled(prompts, seeds).mean(values)
        apart = Resampled([f"q{i}" for i in range(40)], list(range(40))).mean(values)
        assert (crossed.low, crossed.high) == (0.0, 1.0)
        assert apart.high - apart.low < 0.5


def rows_of(targets: list[float], artifacts: list[float], half: float = 0.05) -> list[dict[str, float]]:
    return [
        {"strength": s, "target": t, "target_low": t - half, "target_high": t + half, "artifacts": a}
        | {"artifacts_high": a + 0.1}
        for s, t, a in zip(STRENGTHS, targets, artifacts, strict=True)
    ]


class TestRules:
    def test_saturation_is_the_first_strength_within_the_interval_of_the_best(self) -> None:
        rows = rows_of([0.1, 0.5, 0.9, 0.96, 0.97], [0.0, 0.0, 0.0, 0.0, 0.0])
        assert saturation(rows, 1) is None  # within the unedited interval: 0.97 - 0.05 < 0.9 + 0.05
        assert saturation(rows, -1) == -2.0
        rows = rows_of([0.0, 0.0, 0.1, 0.90, 0.94], [0.0] * 5)
        assert saturation(rows, 1) == 1.0
        assert saturation(rows_of([0.0, 0.0, 0.1, 0.5, 0.94], [0.0] * 5), 1) == 2.0

    def test_a_curve_that_falls_again_saturates_at_its_top(self) -> None:
        assert saturation(rows_of([0.0, 0.0, 0.1, 0.9, 0.3], [0.0] * 5), 1) == 1.0

    def test_artifact_limit_is_the_first_strength_above_the_unedited_bound(self) -> None:
        rows = rows_of([0.0] * 5, [0.5, 0.05, 0.0, 0.1, 0.11])
        assert artifact_limit(rows, 1) == 2.0
        assert artifact_limit(rows, -1) == -2.0
        assert artifact_limit(rows_of([0.0] * 5, [0.0] * 5), 1) is None


def verdict(objects: list[str], colours: list[dict[str, float]], wrecks: list[float]) -> Verdict:
    """A verdict that is sure of the objects and as given of the colours."""
    probs = {f: np.full((len(objects), len(v)), 1 / len(v), np.float32) for f, v in FACTORS.items()}
    probs["object"] = np.stack([np.eye(12, dtype=np.float32)[FACTORS["object"].index(o)] for o in objects])
    probs["colour"] = np.array([[c.get(name, 0.0) for name in FACTORS["colour"]] for c in colours], np.float32)
    return Verdict(probs, np.asarray(wrecks, np.float32), 0.5)


def test_measures_of_known_verdicts() -> None:
    images = np.zeros((2, 4, 4, 3), np.uint8)
    before = Unedited(images, verdict(["star", "cup"], [{"blue": 1.0}, {"green": 1.0}], [0.1, 0.1]))
    after = verdict(
        ["star", "key"], [{"red": 0.75, "pink": 0.25}, {"green": 0.5, "red": 0.25, "cyan": 0.25}], [0.1, 0.9]
    )
    found = columns(images + 51, after, before, ("colour", "red"))
    np.testing.assert_allclose(found["target"], [0.75, 0.25])
    np.testing.assert_allclose(found["same_factor"], [0.25, 0.25])  # pink; cyan: not red, not what was there
    np.testing.assert_array_equal(found["kept_object"], [1, 0])
    np.testing.assert_array_equal(found["artifacts"], [0, 1])
    np.testing.assert_allclose(found["change"], 0.2)
    assert "kept_colour" not in found


def test_prompts_are_told_apart_by_the_concept_in_their_words() -> None:
    prompts = ["a red star", "a blue star", "red cup, flat style", "a redder cup"]
    groups = groups_of([p for p in prompts for _ in range(2)], ("colour", "red"))
    assert groups[ASKING].tolist() == [0, 1, 4, 5] and groups[WITHOUT].tolist() == [2, 3, 6, 7]
    assert shown_rows([p for p in prompts for _ in range(2)], groups, 1) == [2, 0]


def test_features_are_pushed_together_and_the_control_moves_rows_as_far() -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(6, 8, generator=generator)
    sae = TopKDictionary(w.T.contiguous(), torch.zeros(6), w, torch.zeros(8), 2)
    sae_like: Any = type("D", (), {"W_dec": w, "d_sae": 6, "config": type("C", (), {"site": "unet.mid_block:out"})()})()
    assert sae.W_dec.shape == w.shape
    push = feature_push(sae_like, [1, 4], [2.0, 0.5])
    x = torch.randn(1, 3, 8, generator=generator)
    context = StepContext("unet.mid_block:out", 0, 999.0)
    moved = push.edit(3.0).op.apply(x, 3.0, context) - x
    torch.testing.assert_close(moved, (3.0 * (2.0 * w[1] + 0.5 * w[4])).expand(x.shape))
    controls = [push.edit(3.0, control=seed).op.apply(x, 3.0, context) - x for seed in (0, 1)]
    for control in controls:
        torch.testing.assert_close(control.norm(dim=-1), moved.norm(dim=-1))
    assert abs(float(torch.cosine_similarity(controls[0], controls[1], dim=-1).max())) < 0.95


@pytest.fixture
def direction(tmp_path: Path) -> Path:
    basis = torch.linspace(-1, 1, 16)
    return save_direction(Direction("unet.mid_block:out", basis, scale=torch.tensor([[5.0]])), tmp_path / "direction")


def test_a_direction_is_pushed_in_its_standard_deviations(direction: Path) -> None:
    from probe.directions import load_direction

    found = load_direction(direction)
    x = torch.zeros(1, 2, 16)
    moved = direction_push(found, 0, "std").edit(2.0).op.apply(x, 2.0, StepContext("s", 0, 999.0))
    torch.testing.assert_close(moved.norm(dim=-1), torch.full((1, 2), 10.0))


class TestCommand:
    """On a model that no judge knows."""

    def arguments(self, direction: Path, model: Path, out: Path) -> list[str]:
        given = [
            "steer",
            "--direction",
            direction,
            "--model",
            model,
            "--prompt",
            "a red star",
            "--prompt",
            "a blue cup",
        ]
        given += ["--seeds", "0", "1", "--strengths", "-1", "0", "4", "--side", "32", "--out", out]
        return [str(item) for item in given]

    def test_writes_images_curves_and_numbers_and_says_that_nobody_judges(
        self, direction: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "sweep"
        assert main(self.arguments(direction, tiny_folder, out)) == 0
        said = capsys.readouterr().out
        assert "4 prompts and seeds x 5 conditions = 20 images" in said and "No judge knows" in said
        record = json.loads((out / "steer.json").read_text())
        changes = {(row["push"], row["strength"]): row["change"] for row in record["rows"]}
        assert changes["push", 0.0] == changes["random", 0.0] == 0.0
        assert 0 < changes["push", -1.0] < changes["push", 4.0]
        assert "target" not in record["rows"][0] and record["ratios"] == {}
        html = (out / "page.html").read_text()
        assert html.count("<svg") == 1 and "No judge knows" in html and "random direction" in html
        assert read_image(out / "grid.png").shape[0] > 4 * 32  # two prompts, each above its control

    def test_goes_on_where_it_was(
        self, direction: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "sweep"
        assert main([*self.arguments(direction, tiny_folder, out), "--dry-run"]) == 0
        assert "16 images are left to draw, about" in capsys.readouterr().out
        assert sorted(path.name for path in (out / "images").iterdir()) == ["unedited"]
        assert main(self.arguments(direction, tiny_folder, out)) == 0
        first = json.loads((out / "steer.json").read_text())["rows"]
        kept = {path: path.stat().st_mtime_ns for path in (out / "images").rglob("*.png")}
        lost = [path for path in kept if path.parent.name == "push_+4"]
        lost[0].unlink()
        assert main(self.arguments(direction, tiny_folder, out)) == 0
        again = {path: path.stat().st_mtime_ns for path in (out / "images").rglob("*.png")}
        assert {path for path in kept if again[path] != kept[path]} == set(lost)
        assert json.loads((out / "steer.json").read_text())["rows"] == first

    def test_refuses_a_direction_of_another_model_and_names_both(
        self, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from probe.directions import random_direction
        from probe.model import fingerprint, load_pipeline

        here = fingerprint(load_pipeline(tiny_folder))
        elsewhere = here | {"name": "another", "weights_hash": "ab" * 32}
        for name, model in (("other", elsewhere), ("own", here)):
            found = Direction("unet.mid_block:out", torch.ones(16), provenance={"model": model})
            save_direction(found, tmp_path / name)
            save_direction(random_direction(found, 0), tmp_path / f"{name}-random")  # a control is of that model too
        for name in ("other", "other-random"):
            assert main(self.arguments(tmp_path / name, tiny_folder, tmp_path / "x")) == FAILED
            said = capsys.readouterr().err
            assert all(part in said for part in (name, "'another'", "ab" * 32, "'tiny'", here["weights_hash"]))
            assert not (tmp_path / "x").exists()
        assert main([*self.arguments(tmp_path / "own", tiny_folder, tmp_path / "y"), "--dry-run"]) == 0

    def test_refuses_a_concept_that_nobody_can_judge(
        self, direction: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([*self.arguments(direction, tiny_folder, tmp_path / "x"), "--concept", "colour=red"]) == FAILED
        assert "needs a judge" in capsys.readouterr().err
        assert not (tmp_path / "x").exists()

    def test_lists_the_dictionaries_of_a_run_that_has_several(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in ("mid_block", "up_blocks.1"):
            (tmp_path / "run" / "sae" / name).mkdir(parents=True)
            (tmp_path / "run" / "sae" / name / "cfg.json").write_text("{}")
        for folder in (tmp_path / "run", tmp_path / "run" / "sae"):
            asked = ["steer", "--sae", str(folder), "--concept", "colour=red", "--out", str(tmp_path / "x")]
            assert main(asked) == FAILED
            told = capsys.readouterr().err
            assert "2 dictionaries" in told and "mid_block, up_blocks.1 (in " + str(tmp_path / "run" / "sae") in told

    def test_refuses_a_folder_that_holds_something_else(
        self, direction: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "thesis.txt").write_text("mine")
        assert main([*self.arguments(direction, tiny_folder, tmp_path / "full"), "--force"]) == FAILED
        assert "holds no sweep" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("concept", "old", "prompts"),
    [
        (
            ("colour", "red"),
            "blue",
            ["a blue cup on white background in flat style", "a blue cat on sand background in clay style"],
        ),
        (
            ("style", "neon"),
            "flat",
            ["a green star on dark background in flat style", "a pink fish on white background in flat style"],
        ),
    ],
)
def test_canvas_changes_colour_or_style_and_keeps_the_object(
    concept: tuple[str, str], old: str, prompts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A direction among prompts that the steered ones are not part of; the control as long changes nothing."""
    from probe.directions import TextDifference
    from probe.model import PipelineEps, load_pipeline

    factor, new = concept
    others = ["a blue boat on gray background in flat style", "a blue key on dark background in flat style"]
    found = TextDifference().fit(
        PipelineEps(load_pipeline("canvas")), [(text.replace(old, new), text) for text in others]
    )
    folder = save_direction(found.direction_, tmp_path / "direction")
    given = ["steer", "--direction", folder, "--concept", f"{factor}={new}", "--strengths", "1", "--seeds", "3000000"]
    given += [part for prompt in prompts for part in ("--prompt", prompt)]
    assert main([str(item) for item in [*given, "--branch", "cond", "--out", tmp_path / "sweep"]]) == 0
    rows = {(r["push"], r["strength"]): r for r in json.loads((tmp_path / "sweep" / "steer.json").read_text())["rows"]}
    steered, unedited, random = rows["push", 1.0], rows["push", 0.0], rows["random", 1.0]
    assert unedited["target"] < 0.05 and random["target"] < 0.05
    assert steered["target"] > 0.8 and steered["gain"] > 0.8
    assert steered["kept_object"] == 1.0 and steered["artifacts"] == 0.0
    assert (tmp_path / "sweep" / "recipe_up" / "recipe.json").is_file()
    assert "up: saturation at +1 std" in capsys.readouterr().out
