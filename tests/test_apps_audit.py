"""``denoscope audit``."""

from __future__ import annotations

import json

import pytest

from apps.cli import main


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    from probe.interventions import Recipe
    from probe.model import load_pipeline
    from probe.unlearning import negative_prompt

    pipe = load_pipeline("canvas")
    return Recipe.of(pipe, negative_prompt(pipe, "a star")).save(tmp_path_factory.mktemp("recipes") / "object-star")


def test_an_audit_from_the_command_line(recipe, tmp_path, capsys):
    out = tmp_path / "audit.json"
    small = ["--prompts", "5", "--images", "2", "--steps", "2", "--sites", "mid_block"]
    small += ["--attacks", "paraphrase", "--attack-prompts", "2"]
    arguments = ["audit", "--recipe", str(recipe / "recipe.json"), "--object", "star", *small, "--out", str(out)]
    assert main(arguments) == 0
    record = json.loads(out.read_text())
    assert record["name"] == "audit.canvas" and set(record["ratios"]) == {"ua", "ua_attacked"}
    measures = [row["measure"] for row in record["rows"]]
    assert measures.count("probe") == 6 and measures.count("denoising") == 2 and measures.count("attack") == 5
    assert record["ratios"]["ua_attacked"] <= record["ratios"]["ua"]
    assert out.with_suffix(".png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "object star" in printed and "paraphrase, edited" in printed
    assert main(arguments) == 2 and "--force" in capsys.readouterr().err


def test_wrong_options_are_told_before_any_work(recipe, capsys):
    assert main(["audit", "--recipe", str(recipe), "--object", "star", "--attacks", "magic"]) == 2
    assert "no attack magic" in capsys.readouterr().err
    assert main(["audit", "--recipe", str(recipe), "--object", "dog"]) == 2
    assert "canvas has no object 'dog'" in capsys.readouterr().err
