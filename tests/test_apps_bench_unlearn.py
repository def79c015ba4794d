"""``denoscope bench unlearn``: splits that do not meet, dealt seeds, stages that go on, the protocol's numbers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from multiprocessing import active_children
from xml.etree import ElementTree

import numpy as np
import pytest

from apps.bench.unlearn.bench import Bench, bench_unlearn, best_sae
from apps.bench.unlearn.choose import REFUSED
from apps.bench.unlearn.config import UnlearnBench
from apps.bench.unlearn.estimate import estimate
from apps.bench.unlearn.figure import frontier_svg
from apps.bench.unlearn.pool import run_jobs
from apps.bench.unlearn.prepare import prepare
from apps.bench.unlearn.tables import markdown_table, ratios_of, scores_table, target_rows
from apps.bench.unlearn.target import spread_rows
from apps.bench.unlearn.world import CanvasWorld, chosen_targets, compared_rows, dealt_rows, rows_for
from apps.cli import build_parser, main
from apps.errors import InvalidOption, ProcessesFailed, UnknownName
from apps.images import read_image
from apps.unlearning import config as unlearn_config
from apps.unlearning import prompt_grids
from apps.unlearning.candidates import Features, Rewrite
from apps.unlearning.config import CANDIDATES
from apps.unlearning.edits import Sampling
from apps.unlearning.methods import METHODS, method
from apps.unlearning.place import Place
from apps.unlearning.prompt_grids import scored_grid, validation_grid
from apps.unlearning.run import needs_dictionary, unlearn_targets
from probe.errors import UnknownConcept
from probe.unlearning import Predictions, Setting, evaluate, score
from sae import TrainConfig

SAMPLING = Sampling(10, 2.0)
STEPS = 5  # of the images that are drawn here; what is asked of them needs no more
SMALL = {
    "objects": ("star", "moon"),
    "styles": ("flat", "neon", "clay"),
    "n_seeds": 2,
    "retain_seeds": 1,
    "validation": (2, 2),
    "n_recorded": 16,
    "n_boot": 50,
    "place": Place(steps=STEPS),
}


def nothing(done: int, total: int) -> None:
    """Progress that nobody watches."""


# Splits


def test_test_validation_and_recorded_images_share_nothing():
    world = CanvasWorld(SAMPLING, unlearn_config.N_PROMPTS)
    test, recorded = world.test, world.recorded
    assert len(test) == 12 * 10 * 5
    assert not set(recorded.prompts) & set(test.prompts)
    used = set(test.seeds) | set(range(len(recorded.prompts)))
    for factor, label in (("object", "star"), ("object", "boat"), ("style", "clay")):
        tried = world.validation(factor, label, 16, 24)
        assert Counter(value == label for value in tried.labels[factor]) == {True: 16, False: 24}
        assert not set(tried.prompts) & (set(test.prompts) | set(recorded.prompts))
        assert not set(tried.seeds) & used


def test_dealt_seeds_are_used_equally():
    test = CanvasWorld(SAMPLING, 16).test
    rows = dealt_rows(test, 1)
    dealt = test.select(rows)
    assert len(rows) == 120 and set(Counter(zip(*dealt.labels.values(), strict=True)).values()) == {1}
    assert set(Counter(dealt.seeds).values()) == {24}
    by_object = Counter(zip(dealt.labels["object"], dealt.seeds, strict=True))
    assert set(by_object.values()) == {2}  # ten styles, five seeds
    by_style = Counter(zip(dealt.labels["style"], dealt.seeds, strict=True))
    assert set(by_style.values()) <= {2, 3}  # twelve objects
    assert len(dealt_rows(test, 3)) == 360 and list(dealt_rows(test, 5)) == list(range(600))
    own = test.select(rows_for(test, "style", "neon", 1))
    assert Counter(own.labels["style"])["neon"] == 60 and len(own) == 60 + 108
    shown = [test.select([i]) for i in spread_rows(test, "object", "star", 10)]
    assert {g.labels["object"][0] for g in shown} == {"star"} and len({g.seeds[0] for g in shown}) == 5
    assert len({g.labels["style"][0] for g in shown}) >= 7


def test_compared_sets_have_every_seed_equally_often():
    test = CanvasWorld(SAMPLING, 16).test
    for each, expected in ((1, 120), (5, 240)):
        own, other, number = compared_rows(test, each)
        first, second = test.select(own), test.select(other)
        assert len(own) == expected and not set(own) & set(other) and set(own) <= set(dealt_rows(test, each))
        assert first.labels["object"] == second.labels["object"] and first.labels["style"] == second.labels["style"]
        assert len(set(Counter(first.seeds).values())) == 1 and Counter(first.seeds) == Counter(second.seeds)
        assert len(set(zip(number, first.seeds, second.seeds, strict=True))) == 5


# Registry


def test_methods_and_their_settings():
    assert set(CANDIDATES) == set(METHODS)
    for name, by_factor in CANDIDATES.items():
        for settings in by_factor.values():
            names = [setting.name for setting in settings]
            assert len(set(names)) == len(names) and all(isinstance(s, METHODS[name].takes) for s in settings)
            assert all(used in unlearn_config.DICTIONARIES for s in settings for used in s.uses if name != "deactivate")
    assert Features(("a", "b"), Setting(2, -3.0, relative=False)).name == "a + b, 2 features, multiplier -3, both"
    guides = {s.guide for s in METHODS["uce"].settings("style", "flat") if isinstance(s, Rewrite)}
    assert guides and "flat" not in guides
    with pytest.raises(UnknownName, match="'magic'.*saeuron"):
        method("magic")


def test_bad_requests_are_refused(tmp_path):
    with pytest.raises(InvalidOption, match="random_direction is the control"):
        UnlearnBench(tmp_path, ("random_direction", "uce"), (("object", "star"),))
    with pytest.raises(InvalidOption, match="retain_seeds must be 1 to 5"):
        UnlearnBench(tmp_path, ("uce",), (("object", "star"),), retain_seeds=6)
    world = CanvasWorld(SAMPLING, 16)
    assert chosen_targets(world, ["star", "style:neon"]) == [("object", "star"), ("style", "neon")]
    assert len(chosen_targets(world, [])) == 22
    with pytest.raises(UnknownConcept, match="'dragon' names 0"):
        chosen_targets(world, ["dragon"])


def test_the_command_says_how_much_it_is_and_refuses_what_it_does_not_know(tmp_path, capsys):
    out = tmp_path / "u.json"
    assert main(["bench", "unlearn", "--quick", "--methods", "uce", "--dry-run", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    # Each target: 8 images ask for it, 12 are dealt, 16 are drawn plain; 2 settings of 20; 5 attacked, and 5 not.
    assert "2 stages" in told and "80 to choose settings, 72 to score, 20 or as much work for attacks" in told
    assert not list(tmp_path.iterdir())
    for wrong in (["--targets", "dragon"], ["--methods", "magic"], ["--attacks", "siege"], ["--retain-seeds", "9"]):
        assert main(["bench", "unlearn", "--out", str(out), "--dry-run", *wrong]) != 0
        assert wrong[1] in capsys.readouterr().err


# The benchmark


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> UnlearnBench:
    work = tmp_path_factory.mktemp("bench")
    return UnlearnBench(work, ("no_edit", "uce"), (("object", "star"),), max_settings=2, **SMALL)


def test_a_killed_process_is_told_and_the_rest_goes_on(config: UnlearnBench):
    bench = Bench(config)
    prepare(bench)
    first = run_jobs(bench, [("score", "no_edit", "object", "star")], 1, nothing)
    stage = bench.run.stage("score-no_edit-object-star-1")
    before = stage.stat().st_mtime_ns

    def kill() -> None:
        while not (children := active_children()):
            time.sleep(0.01)
        os.kill(children[0].pid or 0, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    jobs = [("score", name, "object", "star") for name in config.methods]
    with pytest.raises(ProcessesFailed, match="start the same command again"):
        run_jobs(bench, jobs, 2, nothing)
    killer.join(60)
    again = run_jobs(bench, jobs, 1, nothing)
    assert again[0] == first[0] and stage.stat().st_mtime_ns == before
    assert again[1]["method"] == "uce" and len(again[1]["tried"]) == 2
    # More test images choose nothing again, and leave the scores of fewer.
    choice, fewer = (bench.run.stage(name) for name in ("choose-uce-object-star", "score-uce-object-star-1"))
    before = choice.stat().st_mtime_ns
    (more,) = run_jobs(Bench(replace(config, retain_seeds=2)), jobs[1:], 1, nothing)
    assert choice.stat().st_mtime_ns == before and fewer.is_file()
    assert more["tried"] == again[1]["tried"] and len(more["artifact"]) > len(again[1]["artifact"])


def test_numbers_are_the_protocols(config: UnlearnBench):
    bench = Bench(config)
    measured = bench_unlearn(config, lambda line: None)
    row = next(r for r in measured.rows if r["part"] == "target" and r["method"] == "uce")
    rows = rows_for(bench.world.test, "object", "star", 1)
    edits = {("object", "star"): bench.recipe("uce", "object", "star").interventions}
    sampling = {"steps": STEPS, "guidance": 2.0, "batch_size": 16}
    images = bench.baseline_images[np.searchsorted(bench.drawn, rows)]
    direct = evaluate(
        bench.pipe,
        bench.world.judge,
        bench.world.test.select(rows),
        edits,
        baseline_images=images,
        n_boot=50,
        **sampling,
    ).results["object", "star"]
    for name in ("ua", "ira", "cra", "cra_retain", "artifacts", "ua_clean", "change_retain"):
        assert row[name] == pytest.approx(direct.scores[name].value), name
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    assert row["n_images"] == len(rows) == 6 + 3 and row["retain_seeds"] == 1
    assert row["evaluations"] == row["plain_evaluations"] == 2 * STEPS and row["seconds_ratio"] > 0
    control = next(r for r in measured.rows if r["part"] == "target" and r["method"] == "no_edit")
    assert control["change_retain"] == control["change_target"] == 0 and control["ua"] == 0
    assert control["mmd"] == control["mmd_unedited"] == row["mmd_unedited"]
    assert measured.ratios["uce_object_ua"] == row["ua"] and "object_ua" not in measured.ratios
    assert estimate(bench).stages == 2 and estimate(bench).validation_images == 8
    assert "object: uce" in scores_table(measured.rows) and "| uce |" in markdown_table(measured.rows)
    assert len(ElementTree.fromstring(frontier_svg(measured.rows)).findall(".//{*}polyline")) == 1
    assert bench.run.recipes() and read_image(config.work / "object.png").shape[2] == 3


def test_a_method_without_an_edit_for_a_target_is_scored_as_one_that_changes_nothing(config: UnlearnBench, monkeypatch):
    monkeypatch.setitem(CANDIDATES, "uce", {"object": (Rewrite("heart", erase_scale=-1.0),), "style": ()})
    measured = bench_unlearn(config, lambda line: None)
    found = {r["method"]: r for r in measured.rows if r["part"] == "target"}
    assert found["uce"]["setting"] == REFUSED and found["uce"]["change_retain"] == 0
    assert all(found["uce"][name] == found["no_edit"][name] for name in ("ua", "ira", "cra", "artifacts", "mmd"))
    assert not Bench(config).recipe("uce", "object", "star").interventions


@pytest.mark.slow
def test_features_their_control_and_an_attack(config: UnlearnBench, monkeypatch):
    site = "unet.mid_block:out"
    small = TrainConfig(site=site, expansion=1, k=8, rows=4096, batch_size=512)
    monkeypatch.setattr(unlearn_config, "SITES", (site,))
    monkeypatch.setattr(unlearn_config, "DICTIONARIES", {"mid": small})
    settings = tuple(Features(("mid",), Setting(n, -5.0, relative=False)) for n in (1, 3))
    monkeypatch.setitem(CANDIDATES, "saeuron", {"object": settings, "style": settings})
    config = replace(
        config, methods=("saeuron", "random_direction"), attacks=("paraphrase",), attack_images=2, n_boot=0
    )
    measured = bench_unlearn(config, lambda line: None)
    found = {r["method"]: r for r in measured.rows if r["part"] == "target"}
    assert measured.config["best_sae"] == {"object": "saeuron"}
    assert measured.ratios["object_ua"] == found["saeuron"]["ua"]
    assert found["random_direction"]["site"] == site and found["random_direction"]["change_retain"] > 0
    assert 0 <= found["saeuron"]["ua_after_paraphrase"] <= 1 and found["saeuron"]["ua_worst"] <= 1
    assert sum(r["part"] == "setting" for r in measured.rows) == 2
    # Another edit of the best method is another control.
    bench = Bench(config, {"object": "saeuron"})
    said = bench.run.stage("score-random_direction-object-star-1").read_text()
    monkeypatch.setitem(CANDIDATES, "saeuron", {"object": settings[:1], "style": ()})
    run_jobs(bench, [("score", "saeuron", "object", "star")], 1, nothing)
    run_jobs(bench, [("score", "random_direction", "object", "star")], 1, nothing)
    assert bench.run.stage("score-random_direction-object-star-1").read_text() != said

    check_unlearn(config, "random_direction", monkeypatch)


def check_unlearn(config: UnlearnBench, name: str, monkeypatch) -> None:
    """``denoscope unlearn --method`` on the benchmark's work folder, on two objects and two styles."""
    bench = Bench(config)
    part = {"objects": ("star", "moon"), "styles": ("flat", "neon")}
    within = {"object": part["objects"], "style": part["styles"]}
    monkeypatch.setattr(prompt_grids, "scored_grid", lambda n: scored_grid(n, **part))
    monkeypatch.setattr(
        prompt_grids,
        "validation_grid",
        lambda *target, n_target, n_retain, exclude: validation_grid(
            *target, n_target=2, n_retain=2, exclude=exclude, within=within
        ),
    )
    options = build_parser().parse_args(["unlearn", "--run", str(config.work), "--seeds", "1", "--method", name])
    rows, ratios = unlearn_targets(options, bench.run, [("object", "star")], bench.pipe, bench.world.judge)
    assert rows[0]["edit"] and rows[0]["target"] == "star" and ratios["object_ua"] == rows[0]["ua"]
    assert (bench.run.recipe(f"{name}-object-star") / "recipe.json").is_file()
    assert needs_dictionary(name) and not needs_dictionary("uce")


# Tables


def test_the_best_feature_method_is_chosen_on_validation():
    def record(objective: float, test_hit: bool) -> dict:
        return {"tried": [{"objective": objective}], "judged": {"object": ["star" if test_hit else "moon"]}}

    records = {
        ("saeuron", "object", "star"): record(0.9, True),
        ("saeuron", "object", "moon"): record(0.5, True),
        ("norm_scaled", "object", "star"): record(0.8, False),
        ("norm_scaled", "object", "moon"): record(0.7, False),
        ("uce", "object", "star"): record(1.0, False),
    }
    assert best_sae(records) == {"object": "norm_scaled"}


def test_attacks_are_averaged_over_targets_and_refused_ones_left_out():
    objects, styles = ("star", "star", "moon", "moon"), ("flat", "neon", "flat", "neon")
    prompted = {"object": objects, "style": styles}
    judged = Predictions({"object": ("moon", "moon", "moon", "moon"), "style": styles}, np.zeros(4, bool))
    keys = [("uce", "object", label) for label in ("star", "moon")]
    given = {"cross": "style", "prompts": "abcd", "seeds": range(4), "n_boot": 20}
    scores = {key: score("object", key[2], prompted, judged, **given) for key in keys}
    record = {
        "setting": "default",
        "site": "",
        "tried": [{"setting": "default"}],
        "cost": {"fit_seconds": 1.0},
        "distance": {"mmd": 0.2, "mmd_p": 0.5, "mmd_unedited": 0.0, "mmd_null_95": 0.1},
    }
    back = {"star": [False, False, True, True], "moon": [True, True, True, True]}
    attacked = {
        key: {
            "attacks": {
                "none": {"back": [False] * 4},
                "paraphrase": {"back": back[key[2]]},
                "embedding": {"refused": "no"},
            }
        }
        for key in keys
    }
    rows = target_rows(dict.fromkeys(keys, record), attacked, {}, scores, 1)
    star, moon, mean = rows
    assert (star["ua"], moon["ua"], mean["ua"]) == (1.0, 0.0, 0.5)
    assert (star["ua_after_paraphrase"], moon["ua_after_paraphrase"], mean["ua_after_paraphrase"]) == (0.5, 0.0, 0.25)
    assert mean["ua_before_attack"] == 1 and mean["ua_worst"] == 0.25 and mean["strongest_attack"] == "paraphrase"
    assert mean["ua_after_embedding"] is None and mean["ua_after_token_search"] is None
    assert mean["mmd_above_null"] == 1 and mean["seconds_ratio"] is None and mean["n_targets"] == 2
    assert "| 50.0 | 50.0 | 100.0 |" in markdown_table(rows) and "UA after embedding" not in markdown_table(rows)


def test_ratios_are_averages_of_the_named_methods():
    scores = {"ua": 0.9, "ira": 0.8, "cra": 0.7, "artifacts": 0.1, "mean": 0.8}
    rows = [
        {"part": "average", "method": name, "factor": "style", **{k: v - shift for k, v in scores.items()}}
        for name, shift in (("saeuron", 0.0), ("esd", 0.1), ("lda", 0.2))
    ]
    found = ratios_of([*rows, {"part": "target", "method": "saeuron", "factor": "style"}], {"style": "saeuron"})
    assert found["style_ua"] == 0.9 and found["esd_style_ira"] == pytest.approx(0.7)
    assert {key.split("_")[0] for key in found} == {"style", "esd"}
