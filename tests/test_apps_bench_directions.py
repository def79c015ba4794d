"""``denoscope bench directions``: scores with known answers, choices that do not reward chance, and a small run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apps.bench.directions import CONCEPTS, FINDERS, DirectionsConfig, bench_directions, directions_table
from apps.bench.directions_cost import foretold, images_of
from apps.bench.directions_entrants import entrants
from apps.bench.directions_scores import Outcome, Readings, best_reader, effect_row, reading_row
from apps.errors import InvalidOption

SEEDS = [0, 1, 2]
CONCEPT = ("object", "star")


def readings(seed: int, shift: float, n: int = 400, d: int = 12) -> tuple[Readings, np.ndarray]:
    """Two steps of Gaussian rows in which a fifth of the samples lies ``shift`` farther along a unit vector."""
    rng = np.random.default_rng(seed)
    labels = np.where(np.arange(n) % 5 == 0, "star", "cup")
    direction = rng.standard_normal(d)
    direction /= np.linalg.norm(direction)
    rows = rng.standard_normal((2, n, d)) + shift * (labels == "star")[None, :, None] * direction
    return Readings(rows, {"object": labels}), direction


@pytest.mark.parametrize("seed", SEEDS)
def test_the_reader_is_picked_in_one_half_and_scored_in_the_other(seed):
    train, direction = readings(seed, 2.0)
    other, _ = readings(seed + 100, 0.0)
    test = Readings(other.rows + 2.0 * (other.labels["object"] == "star")[None, :, None] * direction, other.labels)
    vectors = np.random.default_rng(seed).standard_normal((2, 30, 12))
    vectors[:, 17] = -3.0 * direction
    assert best_reader(train, vectors, *CONCEPT) == (17, -1.0)
    row = reading_row(test, -vectors[:, 17], *CONCEPT)
    assert row["auc_low"] < 0.9214 < row["auc_high"] or row["auc"] > 0.9214  # Phi(2 / sqrt 2), two steps know more
    assert row["p"] < 1e-6
    one_step = Readings(test.rows[:1], test.labels)
    assert reading_row(one_step, direction[None], *CONCEPT)["auc"] == pytest.approx(0.9214, abs=0.04)


def test_many_candidates_do_not_win_by_chance():
    """With shuffled labels the best of 200 vectors is found in one case of twenty, and reads no better than a coin."""
    found, aucs, best = [], [], []
    for seed in range(60):
        train, _ = readings(seed, 2.0, n=100)
        test, _ = readings(seed + 1000, 2.0, n=100)
        train, test = train.shuffled(seed), test.shuffled(seed + 1)
        vectors = np.random.default_rng(seed).standard_normal((2, 200, 12))
        component, sign = best_reader(train, vectors, *CONCEPT)
        row = reading_row(test, sign * vectors[:, component], *CONCEPT)
        found.append(row["p"] < 0.05)
        aucs.append(row["auc"])
        best.append(max(train.auc(vectors, *CONCEPT)))
    assert np.mean(found) < 0.17 and abs(np.mean(aucs) - 0.5) < 0.03
    assert np.mean(best) > 0.6  # on the rows that chose, chance looks like a finding


def outcome(prob: list[float], style: str = "flat", artifact: float = 0.0) -> Outcome:
    n = len(prob)
    labels = {"object": np.array(["cup"] * n), "style": np.array([style] * n), "colour": np.array(["red"] * n)}
    return Outcome({CONCEPT: np.array(prob)}, labels, np.full(n, artifact))


def test_an_edit_is_chosen_on_one_half_by_gain_less_side_effect():
    plain = outcome([0.0, 0.0, 0.1, 0.1])
    edited = {
        (0, 1.0): outcome([0.6, 0.2, 0.7, 0.4]),  # best where it is chosen
        (1, 1.0): outcome([0.5, 1.0, 0.5, 1.0]),  # best where it is scored: must not be chosen
        (0, 2.0): outcome([1.0, 1.0, 1.0, 1.0], style="neon"),  # larger, but it changes the style
        (1, 2.0): outcome([1.0, 1.0, 1.0, 1.0], artifact=1.0),  # larger, but a wreck
    }
    row = effect_row(plain, edited, CONCEPT, np.array([True, False, True, False]))
    assert (row["component"], row["strength"]) == (0, 1.0)
    assert row["gain"] == pytest.approx(0.25) and row["gain_per_unit"] == pytest.approx(0.25) and row["off"] == 0.0
    wreck = effect_row(plain, {(1, 2.0): edited[1, 2.0]}, CONCEPT, np.array([True, False, True, False]))
    assert wreck["off"] == 1.0 and wreck["gain_per_unit"] == pytest.approx(0.475)
    half = effect_row(plain, {(0, 2.0): edited[0, 2.0]}, CONCEPT, np.array([True, False, True, False]))
    assert half["off"] == pytest.approx(0.5)


def test_the_controls_and_every_kind_take_part():
    known = entrants()
    assert tuple(known) == FINDERS and {e.kind for e in known.values()} == {"named", "read", "tried"}
    assert {"random, 24", "random in the prompt"} <= set(known)
    with pytest.raises(InvalidOption, match="magic; known: mean difference"):
        DirectionsConfig(finders=("magic",))


def test_the_images_of_a_finder_are_known_before():
    config = DirectionsConfig(prompts=4, k=3, strengths=(1.0, 2.0))
    assert images_of("mean difference", config) == images_of("PCA", config) == 4 * 2 * 4  # concepts, strengths, prompts
    assert images_of("NoiseCLR", config) == 3 * 2 * 1 * 4  # vectors, signs, its own strength, prompts


@pytest.mark.slow
def test_the_bench_from_renders_to_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from apps.judging import shipped_judge
    from probe.model import load_pipeline

    config = DirectionsConfig(
        train=240, test=80, prompts=2, k=2, strengths=(1.0,), steps=3, iterations=1, shuffles=1,
        finders=("mean difference", "prompt difference", "random, 24"),
    )  # fmt: skip
    pipe, judge, said = load_pipeline("canvas"), shipped_judge(), []
    told = foretold(pipe, config, tmp_path)
    assert "320 renders, 3 finders; 3 finders have no result" in told and "at most 24 images" in told
    measured = bench_directions(pipe, judge, config, tmp_path, said.append)
    rows = {row["finder"]: row for row in measured.rows}
    assert rows["mean difference"]["auc_background"] > 0.9 and rows["mean difference"]["cosine_background"] > 0.9
    assert rows["mean difference"]["site"] == "up_blocks.1" and rows["mean difference"]["evaluations"] == 0
    assert rows["prompt difference"]["auc_object"] is None and rows["prompt difference"]["found"] is None
    assert rows["random, 24"]["vectors"] == 24 and rows["random, 24"]["found_shuffled"] is not None
    for row in rows.values():
        for factor, _ in CONCEPTS:
            assert -1 <= row[f"gain_{factor}"] <= 1 and 0 <= row[f"off_{factor}"] <= 1
            assert row[f"gain_low_{factor}"] <= row[f"gain_{factor}"] <= row[f"gain_high_{factor}"]
    assert "prompt difference" in directions_table(measured.rows)
    monkeypatch.setattr("apps.bench.directions._measure", None)  # would fail if anything were measured again
    said.clear()
    again = bench_directions(pipe, judge, config, tmp_path, said.append)
    assert "0 finders have no result" in foretold(pipe, config, tmp_path)
    assert again.ratios == measured.ratios and sum("done before" in line for line in said) == 5
