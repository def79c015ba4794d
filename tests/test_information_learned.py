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
from probe.information import (
    Column,
    LabelDenoiser,
    LearnedInformation,
    Nodes,
    Training,
    information,
    measure,
)
from probe.information.learned import LABELS, principal, training_seconds
from probe.information.learned_denoiser import train_denoisers
from probe.information.perceptrons import RANGE, Perceptrons

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


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.y == "rows"])
def test_tasks_have_margins_and_dependence_as_said(name):
    task = TASKS[name]
    x, y = task.draw(1500, np.random.default_rng(1))
    again = task.draw(1500, np.random.default_rng(1))
    assert np.array_equal(x, again[0]) and np.array_equal(y, again[1]) and x.shape[0] == y.shape[0] == 1500
    parts = [np.stack([v[:, 0], np.linalg.norm(v, axis=1)], 1) for v in (x, y)]
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


def test_exact_values_of_labels_by_the_densities_of_their_clusters():
    widths, unequal = TASKS["labels 2, widths"], TASKS["labels 4, unequal"]
    x, y = widths.draw(100_000, np.random.default_rng(0))  # N(0, 1) or N(0, 2.5^2), in four dimensions
    far = (x**2).sum(1) / 2
    ratio = -far - (-far / 2.5**2 - 4 * np.log(2.5))
    value = -np.logaddexp(0.0, np.where(y == 0, -ratio, ratio)).mean() + np.log(2)
    assert value == pytest.approx(widths.exact, abs=0.006)
    shares = np.array([0.7, 0.2, 0.07, 0.03])
    x, y = unequal.draw(100_000, np.random.default_rng(0))
    density = np.log(shares) + 2.0 * x[:, :4]  # |x - 2 e_k|^2 / 2, less what is the same for all
    value = (density[np.arange(len(y)), y] - np.logaddexp.reduce(density, axis=1) - np.log(shares)[y]).mean()
    assert value == pytest.approx(unequal.exact, abs=0.01)


@pytest.mark.parametrize(
    ("name", "seed", "below"),
    [
        ("labels 4, unequal", 0, 0.15),
        ("labels 4, unequal", 1, 0.15),
        ("labels 4, unequal", 2, 0.15),
        ("labels 4, apart", 0, 0.05),
    ],
)
def test_labels_are_told_nearly_as_exactly_known_and_never_more(name, seed, below):
    x, y = TASKS[name].draw(800, np.random.default_rng(seed))
    learned = LearnedInformation(training=replace(LABELS, steps=200, seed=seed), nodes=40, seed=seed).fit(x, y)
    found = learned.information()
    error = 3 * found.interval(n=100).error
    assert found.null is not None and abs(found.null.mean) < 0.03
    assert TASKS[name].exact - below - error < found.mean < TASKS[name].exact + error
    share = np.bincount(y) / len(y)
    assert found.mean < -(share * np.log(share)).sum() + error


def test_the_standard_form_of_a_label_is_its_surprise_whatever_the_classifier_says():
    generator = torch.Generator().manual_seed(0)
    nets = [Perceptrons(1, 2, 3, Training(width=8, depth=1, seed=s)).requires_grad_(False) for s in (0, 1)]
    model = LabelDenoiser(nets, torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log())
    rows, y = 3.0 * torch.randn(2000, 2, generator=generator), torch.arange(2000) % 3
    labels = torch.eye(3, dtype=torch.float64)[y]
    nodes = Nodes.logistic(16, 1.0, 1.0, 8.0, model=model, placement="dealt")
    table = measure(model, labels, [Column("empty"), Column("y", list(rows))], nodes, batch=8192)
    exact = (model.log_probability(rows) - model.log_share)[torch.arange(2000), y]
    assert float(exact.mean()) < 0.1  # wrong as it is
    assert information(table, "y").mean == pytest.approx(float(exact.mean()), abs=0.02)
    assert np.corrcoef(information(table, "y").pointwise, exact.numpy())[0, 1] > 0.6


def test_a_denoiser_of_labels_weighs_the_corners_by_their_densities():
    share = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    model = LabelDenoiser([], share.log())
    z = torch.randn(50, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for a in (-3.0, 0.0, 4.0):
        alpha, sigma = (1 + np.exp(-a)) ** -0.5, (1 + np.exp(a)) ** -0.5
        distance = ((z[:, None] - alpha * torch.eye(3, dtype=torch.float64)) ** 2).sum(2)
        weight = share * torch.exp(-distance / (2 * sigma**2))
        x0 = weight / weight.sum(1, keepdim=True)
        assert torch.allclose(alpha * x0 + sigma * model.eps(z, a), z, atol=1e-12)


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
    assert training_seconds(3, 2, replace(small, steps=100)) > 0 < training_seconds(3, 4, small, labels=True)


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
    assert 0 <= rows[0]["at_least"] <= np.log(2) and rows[0]["probe_low"] <= rows[0]["probe"] <= rows[0]["probe_high"]
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
        (["--tell", "prompt", "--model", "canvas"], "Give that model with --model"),
    ],
)
def test_site_command_refuses(collected, tmp_path, capsys, options, message):
    assert main(["info", "site", str(collected), *options, "--training-steps", "5", "--out", str(tmp_path)]) == FAILED
    assert message in capsys.readouterr().err
    assert not (tmp_path / "site.json").exists()
