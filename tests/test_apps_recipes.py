"""``generate --recipe`` on the folder that a recipe's weights came from, though the recipe draws otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor
from unlearncanvas_world import write_model

from apps.cli import FAILED, main
from apps.images import labelled_grid, read_image, save_png
from apps.recipes import open_recipe
from apps.unlearncanvas.world import load_model
from probe.errors import WrongModel
from probe.interventions import AddDirection, Intervention, Recipe
from probe.model import fingerprint, generate, load_pipeline

EDIT = Intervention("mid_block", AddDirection(torch.linspace(-3, 3, 16)))
PROMPT = "A Dogs image in Van Gogh style."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned Stable Diffusion as it is published: PNDM, with a safety checker."""
    folder = write_model(tmp_path_factory.mktemp("models") / "style50")
    pipe = load_pipeline(folder)
    tiny: dict[str, Any] = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    }  # fmt: skip
    vision = tiny | {"image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=tiny, vision_config=vision, projection_dim=8))
    size = {"height": 16, "width": 16}
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)
    pipe.register_modules(safety_checker=checker, feature_extractor=images)
    pipe.register_to_config(requires_safety_checker=True)
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def test_the_benchmarks_recipes_are_drawn_again_from_the_models_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert type(load_pipeline(folder).scheduler).__name__ == "PNDMScheduler"
    assert load_pipeline(folder).safety_checker is not None
    pipe = load_model(folder)
    recipe = Recipe.of(pipe, [EDIT]).save(tmp_path / "recipe")
    with pytest.raises(WrongModel, match="weights_hash.*scheduler"):
        Recipe.load(recipe, load_pipeline(folder))
    out = tmp_path / "cli.png"
    sampling = ["--steps", "3", "--guidance", "2", "--side", "16", "--seeds", "0"]
    arguments = ["generate", "--model", str(folder), "--prompt", PROMPT, "--recipe", str(recipe), *sampling]
    assert main([*arguments, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "without the safety checker, sampler DDIMScheduler instead of PNDMScheduler" in told
    images = [generate(pipe, [PROMPT], [0], steps=3, guidance=2.0, interventions=edits) for edits in ((), (EDIT,))]
    assert (images[0] != images[1]).any()
    rows = [PROMPT, f"edited: {PROMPT}"]
    save_png(
        tmp_path / "here.png",
        labelled_grid([list(row) for row in images], row_labels=rows, column_labels=["seed 0"], side=16),
    )
    np.testing.assert_array_equal(read_image(out), read_image(tmp_path / "here.png"))


def test_a_recipe_of_rounded_weights_is_opened_with_rounded_weights(folder: Path, tmp_path: Path) -> None:
    """As made on an accelerator; the folder holds float32."""
    half = load_pipeline(folder, dtype=torch.float16)
    recipe = Recipe.of(half, [EDIT]).save(tmp_path / "recipe")
    pipe = load_pipeline(folder)
    edits, said = open_recipe(recipe, pipe)
    assert said == ["weights as float16"] and len(edits) == 1
    assert fingerprint(pipe)["weights_hash"] == fingerprint(half)["weights_hash"]


def test_nothing_is_changed_for_a_recipe_that_fits(folder: Path, tmp_path: Path) -> None:
    pipe = load_pipeline(folder)
    recipe = Recipe.of(pipe, [EDIT]).save(tmp_path / "recipe")
    again = load_pipeline(folder)
    assert open_recipe(recipe, again)[1] == [] and again.safety_checker is not None


def test_other_weights_and_other_samplers_are_still_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = load_model(folder)
    pipe.unet.conv_in.weight.mul_(1.01)
    other = Recipe.of(pipe, [EDIT]).save(tmp_path / "other")
    arguments = ["generate", "--model", str(folder), "--prompt", PROMPT, "--out", str(tmp_path / "x.png")]
    assert main([*arguments, "--recipe", str(other)]) == FAILED
    assert "weights_hash" in capsys.readouterr().err
    pipe = load_model(folder)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, beta_end=0.02)
    betas = Recipe.of(pipe, [EDIT]).save(tmp_path / "betas")
    assert main([*arguments, "--recipe", str(betas)]) == FAILED
    assert "scheduler_config_hash" in capsys.readouterr().err and not (tmp_path / "x.png").exists()
