"""``denoscope audit``."""

from __future__ import annotations

import json

import numpy as np
import pytest

from apps.cli import main


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    from probe.interventions import Recipe
    from probe.model import load_pipeline
    from probe.unlearning import negative_prompt

    pipe = load_pipeline("canvas")
    return Recipe.of(pipe, negative_prompt(pipe, "a star")).save(tmp_path_factory.mktemp("recipes") / "object-star")


@pytest.mark.slow
def test_an_audit_from_the_command_line(recipe, tmp_path, capsys):
    out = tmp_path / "audit.json"
    small = ["--prompts", "5", "--images", "2", "--steps", "2", "--sites", "mid_block"]
    small += ["--attacks", "paraphrase", "--attack-prompts", "2"]
    arguments = ["audit", "--recipe", str(recipe / "recipe.json"), "--object", "star", *small, "--out", str(out)]
    assert main(arguments) == 0
    record = json.loads(out.read_text())
    assert record["name"] == "audit.canvas" and set(record["ratios"]) == {"ua", "ua_attacked"}
    assert {row["recipe"] for row in record["rows"]} == {"object-star"}
    measures = [row["measure"] for row in record["rows"]]
    assert measures.count("probe") == 6 and measures.count("denoising") == 2 and measures.count("attack") == 5
    assert record["ratios"]["ua_attacked"] <= record["ratios"]["ua"]
    assert out.with_suffix(".png").stat().st_size > 1000
    means, rows = record["rows"][0], record["rows"][1:]
    inside = [row["value"] for row in rows if row["measure"] == "probe" and row["trained"] == "edited"]
    assert means["measure"] == "mean" and means["probe_inside"] == pytest.approx(np.mean(inside))
    printed = capsys.readouterr().out
    assert "object star" in printed and "paraphrase, edited" in printed
    assert main(arguments) == 2 and "--force" in capsys.readouterr().err


@pytest.mark.slow
def test_recipes_say_what_they_unlearn_and_share_a_file(tmp_path, capsys):
    from probe.interventions import Recipe
    from probe.model import load_pipeline
    from probe.unlearning import negative_prompt

    pipe = load_pipeline("canvas")
    folders = []
    for factor, label in (("object", "star"), ("style", "clay")):
        about = {"method": "negative_prompt", "target": [factor, label]}
        recipe = Recipe.of(pipe, negative_prompt(pipe, f"a {label}"), about)
        folders.append(str(recipe.save(tmp_path / "recipes" / label)))
    out = tmp_path / "both.json"
    small = ["--prompts", "5", "--images", "2", "--steps", "2", "--sites", "mid_block", "--out", str(out)]
    assert main(["audit", "--recipe", *folders, *small]) == 0
    assert str(tmp_path) not in out.read_text()  # recipes by name: results are for others too
    record = json.loads(out.read_text())
    means = [row for row in record["rows"] if row["measure"] == "mean"]
    assert [(row["recipe"], row["factor"], row["label"]) for row in means] == [
        ("star", "object", "star"), ("clay", "style", "clay"),
    ]  # fmt: skip
    assert {row["method"] for row in record["rows"]} == {"negative_prompt"}
    assert all((tmp_path / f"both-{name}.png").is_file() for name in ("star", "clay"))
    assert main(["audit", "--recipe", *folders]) == 2 and "--out" in capsys.readouterr().err


def test_wrong_options_are_told_before_any_work(recipe, capsys):
    assert main(["audit", "--recipe", str(recipe), "--object", "star", "--attacks", "magic"]) == 2
    assert "no attack magic" in capsys.readouterr().err
    assert main(["audit", "--recipe", str(recipe)]) == 2
    assert "--object NAME or --style NAME" in capsys.readouterr().err
    assert main(["audit", "--recipe", str(recipe), "--object", "dog"]) == 2
    assert "canvas has no object 'dog'" in capsys.readouterr().err
