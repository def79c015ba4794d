"""probe.information.learned: information with small trained denoisers, on tasks whose information is known.

At full size the published tasks are ``benchmarks/information_learned.py``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from sklearn.feature_selection import mutual_info_regression

from apps.cli import FAILED, main
from apps.measurement import read_measurement
from benchmarks.information_learned import TASKS, learned_row, summary_row
from probe.errors import InvalidRequest
from probe.information import LearnedInformation, Training, information
from probe.information.learned import one_hot, principal
from probe.information.learned_denoiser import RANGE, train_denoisers, training_seconds

RNG = np.random.default_rng(7)
SOME, OTHER = RNG.standard_normal((2, 80, 2))
SHORT = Training(width=32, depth=2, steps=400)


def test_a_short_training_tells_dependence_from_none():
    x, y = TASKS["normal 0.75"].draw(2000, np.random.default_rng(0))
    steps: list[tuple[int, int]] = []
    learned = LearnedInformation(training=SHORT, nodes=16).fit(x, y, progress=lambda *at: steps.append(at))
    assert steps[-1] == (400, 400) and steps == sorted(steps)
    found, other = learned.information(), learned.information("orthogonal")
    assert found.null is not None and other.null is not None
    assert abs(found.mean - 0.41334) < 0.1 and abs(other.mean - found.mean) < 0.15
    assert -0.05 < found.null.mean < 0.05 and 0 <= other.null.mean < 0.05
    assert found.pixels.shape == (600, 1) and found.form == "standard"


@pytest.mark.parametrize("name", TASKS)
def test_tasks_have_margins_and_dependence_as_said(name):
    task = TASKS[name]
    x, y = task.draw(4000, np.random.default_rng(1))
    again = task.draw(4000, np.random.default_rng(1))
    assert np.array_equal(x, again[0]) and np.array_equal(y, again[1]) and x.shape[0] == y.shape[0] == 4000
    parts = [np.stack([v[:1500, 0], np.linalg.norm(v[:1500], axis=1)], 1) for v in (x, y)]
    nats = max(mutual_info_regression(parts[0], side, random_state=0).max() for side in parts[1].T)
    assert nats < 0.06 if task.exact == 0 else 0.06 < nats < task.exact + 0.1  # of a part: no more than of the whole


@pytest.mark.parametrize("name", ["uniform 0.1", "discrete uniform 5", "two pairs 3"])
def test_exact_values_of_tasks_by_their_densities(name):
    x, y = TASKS[name].draw(200_000, np.random.default_rng(0))
    if name == "two pairs 3":
        rho = np.corrcoef(x[:, :2].T, y[:, :2].T)[[0, 1], [2, 3]]
        value = -0.5 * np.log(1 - rho**2).sum()
    elif name == "uniform 0.1":  # log p(y | x) - log p(y), p(y) = overlap of [0, 1] with y +- 0.1, over 0.2
        overlap = np.minimum(y + 0.1, 1) - np.maximum(y - 0.1, 0)
        value = -np.log(overlap).mean()
    else:  # y in [x, x + 2): p(y) = 1/10 times the number of x that reach y
        reach = np.minimum(np.floor(y), 4) - np.maximum(np.floor(y) - 1, 0) + 1
        value = (np.log(0.5) - np.log(reach / 10)).mean()
    assert value == pytest.approx(TASKS[name].exact, abs=0.01)


def test_rows_of_the_benchmark_and_their_summary():
    rows = [learned_row("uniform 0.75", seed, 400, 60) for seed in (0, 1)]
    assert {"orthogonal", "standard", "null_orthogonal", "missing", "cpu_s"} <= set(rows[0])
    found = summary_row("uniform 0.75", rows)
    assert found["orthogonal_low"] <= found["orthogonal"] <= found["orthogonal_high"]
    assert found["worst_share"] == pytest.approx(3 * found["worst"]) and 0 <= found["within"] <= 1


def test_components_are_normal_scores_that_keep_ties():
    rng = np.random.default_rng(0)
    wide = rng.standard_cauchy((500, 1)) @ np.ones((1, 5)) + 0.1 * rng.standard_normal((500, 5))
    found, kept = principal(wide, 1, "x")
    assert found.shape == (500, 1) and kept > 0.9
    assert abs(float(found.mean())) < 1e-6 and float(found.std()) == pytest.approx(1.0, abs=0.02)
    assert abs(np.corrcoef(rankdata(found[:, 0]), rankdata(wide.mean(1)))[0, 1]) > 0.99
    coarse = rng.integers(4, size=(500, 1)).astype(float)
    assert len(np.unique(principal(coarse, None, "x")[0])) == 4
    assert principal(np.repeat(coarse, 3, 1), None, "x")[0].shape == (500, 1)  # rank one


def test_one_hot_labels_have_mean_zero_and_variance_one():
    codes = one_hot(np.array(["b", "a", "b", "b"]))
    assert codes.shape == (4, 2)
    assert torch.allclose(codes.mean(0), torch.zeros(2), atol=1e-6)
    assert torch.allclose(codes.std(0, correction=0), torch.ones(2))


def test_a_denoiser_has_the_interface():
    x, ys = torch.randn(40, 3), torch.randn(2, 40, 2)
    small = Training(width=8, depth=1, steps=1)
    model, other = train_denoisers(x, ys, (x, ys), small)
    z, told = torch.randn(4, 3), [torch.ones(2)] * 4
    assert model.eps(z, 0.0).shape == (4, 3) and model.eps(z.double(), 0.0).dtype == torch.float64
    assert not torch.equal(model.eps(z, 0.0, told), model.eps(z, 0.0))
    assert torch.allclose(model.eps(z[:2], 1.0, told[:2]), model.eps(z, 1.0, told)[:2], atol=1e-6)
    assert torch.allclose(model.eps(z, RANGE[0]), z, atol=0.05)  # noise alone: alpha is nearly zero
    assert not torch.equal(model.eps(z, 0.0, told), other.eps(z, 0.0, told))
    torch.manual_seed(3)  # whatever the state of the global generator
    assert torch.equal(model.eps(z, 0.0), train_denoisers(x, ys, (x, ys), small)[0].eps(z, 0.0))
    assert training_seconds(3, 2, replace(small, steps=100)) > 0


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (SOME, OTHER[:79], "expected as many"),
        (SOME[:10], OTHER[:10], "64 or more"),
        (SOME[:, 0], OTHER, "x of shape"),
        (np.full((80, 2), np.nan), OTHER, "finite numbers"),
        (np.ones((80, 2)), OTHER, "x are all the same"),
        (SOME, np.array(["cat"] * 80), "expected two or more"),
    ],
)
def test_refuses_rows_that_do_not_fit(x, y, message):
    with pytest.raises(InvalidRequest, match=message):
        LearnedInformation(training=SHORT).fit(x, y)


def test_refuses_settings_that_make_no_sense():
    with pytest.raises(InvalidRequest, match="sizes of at least 1"):
        Training(steps=0)
    with pytest.raises(InvalidRequest, match="a share in"):
        LearnedInformation(test_share=1.0).fit(SOME, OTHER)
    learned = LearnedInformation(training=Training(width=4, depth=1, steps=2), nodes=1)
    learned.fit(SOME, OTHER)
    with pytest.raises(InvalidRequest, match="no column"):
        information(learned.table_, "caption")


@pytest.fixture(scope="module")
def collected(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the tiny model: 72 samples with a label that the prompt says."""
    folder = tmp_path_factory.mktemp("site")
    prompts = folder / "prompts.csv"
    words = ["red", "blue"]
    lines = [f"a {words[i % 2]} star,{words[i % 2]},one" for i in range(72)]
    prompts.write_text("prompt,colour,same\n" + "\n".join(lines) + "\n")
    given = ["--model", str(tiny_folder), "--sites", "mid_block", "--prompts", str(prompts), "--steps", "2"]
    assert main(["collect", *given, "--pool", "mean", "--no-images", "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_site_command_from_estimate_to_second_run(collected, tiny_folder, tmp_path, capsys):
    given = ["info", "site", str(collected), "--tell", "colour", "prompt", "--model", str(tiny_folder)]
    given += ["--training-steps", "40", "--components", "2", "--out", str(tmp_path)]
    capsys.readouterr()
    assert main([*given, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "72 samples of unet.mid_block:out, 2 steps, told colour, prompt: 4 trainings, nulls beside them" in printed
    assert not list(tmp_path.iterdir())
    assert main(given) == 0
    rows = read_measurement(tmp_path / "site.json")["rows"]
    assert [(r["told"], r["step"]) for r in rows] == [("colour", 0), ("colour", 1), ("prompt", 0), ("prompt", 1)]
    assert rows[0]["at_most"] == pytest.approx(np.log(2)) and rows[2]["at_most"] is None
    assert all(r["null_orthogonal"] >= 0 and r["standard_low"] <= r["standard"] for r in rows)
    assert "95 % intervals over rows" in capsys.readouterr().out
    assert main(given) == 0
    assert capsys.readouterr().out.count("done before") == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tell", "animal"], "No labels of factor 'animal'"),
        (["--tell", "same"], "expected two or more"),
        (["--tell", "colour", "--site", "up_blocks.7"], "has no site 'up_blocks.7'"),
        (["--tell", "colour", "--steps", "9"], "step"),
        (["--tell", "colour", "--branch", "half"], "half"),
        (["--tell", "prompt", "--model", "canvas"], "give that model with --model"),
    ],
)
def test_site_command_refuses(collected, tmp_path, capsys, options, message):
    assert main(["info", "site", str(collected), *options, "--training-steps", "5", "--out", str(tmp_path)]) == FAILED
    assert message in capsys.readouterr().err
    assert not (tmp_path / "site.json").exists()
