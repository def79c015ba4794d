"""``denoscope generate --recipe``: what was saved is drawn again bit for bit, on its own model only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_tiny_pipeline

from apps.cli import FAILED, main
from apps.images import labelled_grid, read_image, save_png
from probe.interventions import AddDirection, Intervention, Recipe, Replace, ScaleHeads, Window, text_embedding
from probe.model import fingerprint, generate, load_pipeline

ATTN = "up_blocks.0.attentions.0.transformer_blocks.0.attn2"


def edits(pipe) -> list[Intervention]:
    return [
        Intervention("mid_block", AddDirection(torch.linspace(-1, 1, 16)), steps=Window("t", 400), inject="x0"),
        Intervention(f"{ATTN}:probs", ScaleHeads(torch.linspace(0, 2, 8)), branch="cond"),
        Intervention("unet:prompt", Replace(text_embedding(pipe, "a blue cup")), branch="uncond"),
        Intervention(f"{ATTN}.to_v:weight", AddDirection(torch.full((16,), 0.1))),
        Intervention("sampler:x_t", AddDirection(torch.ones(4)), steps=[1], strength=0.1),
    ]


def test_a_recipe_is_drawn_again_bit_for_bit(tiny_folder: Path, tmp_path: Path) -> None:
    """In this process through Python, and in one of its own through the command line."""
    pipe = load_pipeline(tiny_folder)
    recipe = Recipe.of(pipe, edits(pipe)).save(tmp_path / "recipe")
    arguments = ["generate", "--model", tiny_folder, "--prompt", "a red star", "--seeds", "0", "1", "--side", "16"]
    command = [*arguments, "--recipe", recipe, "--out", tmp_path / "cli.png"]
    code = f"import sys, apps.cli; sys.exit(apps.cli.main({[str(a) for a in command]!r}))"
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, capture_output=True, timeout=300)
    rows = [
        list(generate(pipe, ["a red star"] * 2, [0, 1], steps=4, guidance=2.0, interventions=given))
        for given in ((), edits(pipe))
    ]
    assert (rows[0][0] != rows[1][0]).any()
    sheet = labelled_grid(
        rows, row_labels=["a red star", "edited: a red star"], column_labels=["seed 0", "seed 1"], side=16
    )
    save_png(tmp_path / "here.png", sheet)
    np.testing.assert_array_equal(read_image(tmp_path / "cli.png"), read_image(tmp_path / "here.png"))


def test_a_recipe_of_another_model_is_refused(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = build_tiny_pipeline()
    other.unet.conv_in.weight.mul_(1.01)
    recipe = Recipe.of(other, edits(other)).save(tmp_path / "recipe")
    arguments = ["generate", "--model", tiny_folder, "--prompt", "a red star", "--recipe", recipe]
    assert main([str(a) for a in [*arguments, "--out", tmp_path / "x.png"]]) == FAILED
    said = capsys.readouterr().err
    for pipe in (other, load_pipeline(tiny_folder)):
        assert fingerprint(pipe)["weights_hash"] in said
    assert not (tmp_path / "x.png").exists()
