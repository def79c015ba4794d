"""denoscope directions: from a store to a direction and a recipe that replays."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.cli import FAILED, main
from probe.capture import CapturePlan, collect
from probe.directions import load_direction
from probe.interventions import Recipe
from probe.model import load_pipeline

SITE = "unet.mid_block:out"


@pytest.fixture(scope="module")
def run_folder(tiny_folder, tmp_path_factory) -> Path:
    pipe = load_pipeline(tiny_folder)
    prompts = ["a red star", "a blue star", "a red cup", "a blue cup"] * 4
    plan = CapturePlan.for_pipeline(
        pipe, ["mid_block"], prompts, labels={"object": [p.split()[-1] for p in prompts]}, images=False
    )
    folder = tmp_path_factory.mktemp("runs") / "x"
    collect(pipe, plan, folder / "store")
    return folder


@pytest.mark.parametrize(
    ("method", "options", "heading"),
    [
        ("mean-difference", ["--factor", "object", "--positive", "star"], "AUC"),
        ("cav", ["--factor", "object", "--positive", "star", "--negative", "cup"], "p, shuffled labels"),
        ("pca", ["--view", "map", "--components", "2", "--component", "1"], "variance explained"),
    ],
)
def test_a_direction_and_its_recipe(run_folder, tiny_folder, capsys, method, options, heading):
    assert main(["directions", str(run_folder), "--method", method, "--strength", "3", *options]) == 0
    printed = capsys.readouterr().out
    assert heading in printed and len([line for line in printed.splitlines() if line[:1].isdigit()]) == 4
    name = "-".join([method, *(["object", "star"] if "--factor" in options else [])])
    found = load_direction(run_folder / "directions" / name)
    recipe = Recipe.load(run_folder / "recipes" / name, load_pipeline(tiny_folder))
    (edit,) = recipe.interventions
    assert (str(edit.where), edit.strength, edit.branch) == (SITE, 3.0, "cond")
    assert recipe.about["direction"] == found.hash and found.site == SITE
    assert main(["directions", str(run_folder), "--method", method, *options]) == FAILED
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "lda"], "needs --factor and --positive"),
        (["--method", "pca", "--factor", "object"], "uses no labels"),
        (["--method", "pca", "--component", "5"], "expected 0 to 4"),
        (["--factor", "object", "--positive", "moon"], "there are cup, star"),
        (["--factor", "style", "--positive", "star"], "No labels of factor"),
        (["--site", "up_blocks.7", "--factor", "object", "--positive", "star"], "up_blocks.7"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(run_folder, capsys, options, message):
    assert main(["directions", str(run_folder), "--name", "broken", *options]) == FAILED
    assert message in capsys.readouterr().err
    assert not (run_folder / "directions" / "broken").exists() and not (run_folder / "recipes" / "broken").exists()
