"""Recipes: saved, loaded, replayed bit for bit, refused where they do not belong or are damaged."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import build_tiny_pipeline
from diffusers import DDIMScheduler
from intervention_support import ATTN, GAINS, GUIDANCE, PROMPTS, SEEDS, STEPS, D, draw, random_dictionary

from probe.errors import (
    RecipeError,
    RecipeExists,
    RecipeNotFound,
    WrongModel,
)
from probe.interventions import (
    AddDirection,
    ClampFeatures,
    Guide,
    Intervention,
    LowRank,
    ProjectOut,
    Recipe,
    Replace,
    ScaleFeatures,
    ScaleHeads,
    Schedule,
    SetFeatures,
    Swap,
    Window,
    add_feature,
    random_control,
    record_run,
    text_embedding,
)
from probe.model import load_pipeline


def recipe_edits() -> list[Intervention]:
    dictionary = random_dictionary()
    scale = ScaleFeatures(
        dictionary, [[0, 1], [2, -1], [3, 4]], [[-1.0, 0.0], [2.0, 1.0], [-3.0, -3.0]], 0.1, timesteps=(999, 666, 333)
    )
    return [
        Intervention("mid_block", scale, branch="cond"),
        Intervention("mid_block", SetFeatures(dictionary, [7], 0.5), steps=(0, 2), mask=torch.ones(4, 4)),
        Intervention("down_blocks.1:out", AddDirection(torch.ones(D)), strength=0.3),
        Intervention(
            "up_blocks.0.attentions.0:delta", add_feature(dictionary, 5, unit="std", scale=2.0), branch="opposite"
        ),
    ]


def test_recipe_round_trip_replays_bit_for_bit(tiny_pipe, tiny_folder, tmp_path):
    edits = recipe_edits()
    expected = draw(tiny_pipe, edits)
    Recipe.of(tiny_pipe, edits, {"concept": "star"}).save(tmp_path / "r")
    other = load_pipeline(tiny_folder)  # the same model from its folder
    loaded = Recipe.load(tmp_path / "r", other)
    assert loaded.about == {"concept": "star"}
    np.testing.assert_array_equal(draw(other, loaded.interventions), expected)
    assert (expected != draw(tiny_pipe)).any()
    text = (tmp_path / "r" / "recipe.json").read_text()
    n_encoders = sum(1 for item in json.loads(text)["interventions"] if "dictionary" in item["op"])
    names = {
        item["op"]["dictionary"]["W_enc"] for item in json.loads(text)["interventions"] if "dictionary" in item["op"]
    }
    assert n_encoders == 2 and len(names) == 1  # equal tensors are stored once


def test_recipe_of_another_model_is_refused(tiny_pipe, tmp_path):
    Recipe.of(tiny_pipe, recipe_edits()).save(tmp_path / "r")
    other = build_tiny_pipeline()
    other.unet.conv_in.weight.mul_(1.01)
    with pytest.raises(WrongModel) as caught:
        Recipe.load(tmp_path / "r", other)
    from probe.model import fingerprint

    for pipe in (tiny_pipe, other):
        assert fingerprint(pipe)["weights_hash"] in str(caught.value)
    same = build_tiny_pipeline()
    same.scheduler = DDIMScheduler.from_config(same.scheduler.config, timestep_spacing="leading")
    with pytest.raises(WrongModel, match="any_scheduler=True"):
        Recipe.load(tmp_path / "r", same)
    assert len(Recipe.load(tmp_path / "r", same, any_scheduler=True).interventions) == 4
    assert len(Recipe.load(tmp_path / "r", None).interventions) == 4


def test_damaged_recipes(tiny_pipe, tmp_path):
    folder = Recipe.of(tiny_pipe, recipe_edits()).save(tmp_path / "r")
    with pytest.raises(RecipeExists, match="choose another folder"):
        Recipe.of(tiny_pipe, []).save(folder)
    with pytest.raises(RecipeNotFound, match="give the folder that"):
        Recipe.load(tmp_path / "none", tiny_pipe)
    record = json.loads((folder / "recipe.json").read_text())
    for change, message in [
        ({"version": 99}, "update it"),
        ({"format": "x"}, "expected 'denoscope.recipe'"),
        ({"interventions": [{"site": "mid_block"}]}, "is damaged: KeyError"),
        ({"interventions": [record["interventions"][0] | {"op": {"kind": "exec"}}]}, "operation 'exec'"),
    ]:
        (folder / "recipe.json").write_text(json.dumps(record | change))
        with pytest.raises(RecipeError, match=message):
            Recipe.load(folder, tiny_pipe)
    (folder / "recipe.json").write_text(json.dumps(record)[:-5])
    with pytest.raises(RecipeError, match="is damaged"):
        Recipe.load(folder, tiny_pipe)
    (folder / "recipe.json").write_text(json.dumps(record))
    data = bytearray((folder / "recipe.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "recipe.safetensors").write_bytes(data)
    with pytest.raises(RecipeError, match=r"does not belong to its recipe\.json"):
        Recipe.load(folder, tiny_pipe)


def every_operation(pipe) -> list[Intervention]:
    star, empty = text_embedding(pipe, "a star"), text_embedding(pipe, "")
    patch = next(iter(record_run(pipe, "mid_block", PROMPTS, SEEDS, steps=STEPS, guidance=GUIDANCE).values()))
    dictionary = random_dictionary()
    ramp = Schedule("log_snr", (-8.0, 8.0), (0.0, 1.0))
    return [
        Intervention("mid_block", patch, steps=Window("t", 500)),
        Intervention("mid_block", ProjectOut(torch.randn(2, 16)), strength=ramp, inject="x0"),
        random_control(Intervention("mid_block", ScaleFeatures(dictionary, [1, 2], -3.0)), seed=1),
        Intervention("mid_block", ClampFeatures(dictionary, [3], 0.1, 0.2)),
        Intervention(f"{ATTN}:probs", Swap((1, 0)), branch="cond", mask=torch.ones(32)),
        Intervention(f"{ATTN}.to_out.0:in", ScaleHeads(GAINS)),
        Intervention(f"{ATTN}.to_k:weight", LowRank(torch.randn(16, 1), torch.randn(1, 16)), steps=[1]),
        Intervention("unet:prompt", Replace(star), branch="uncond"),
        Intervention("text_encoder.encoder.layers.0", AddDirection(torch.randn(16)), branch="opposite", strength=0.1),
        Intervention("sampler:eps", Guide(star, empty), strength=0.5, steps=Window("step", 1)),
        Intervention("sampler:x_t", AddDirection(torch.randn(4)), strength=0.1, steps=[2]),
    ]


def test_recipe_of_every_operation_replays_bit_for_bit(tiny_pipe, tmp_path):
    edits = every_operation(tiny_pipe)
    expected = draw(tiny_pipe, edits)
    assert (expected != draw(tiny_pipe)).any()
    folder = Recipe.of(tiny_pipe, edits).save(tmp_path / "recipe")
    loaded = Recipe.load(folder, tiny_pipe).interventions
    np.testing.assert_array_equal(draw(tiny_pipe, loaded), expected)
    again = Recipe.of(tiny_pipe, loaded).save(tmp_path / "again")
    for name in ("recipe.json", "recipe.safetensors"):
        assert (folder / name).read_bytes() == (again / name).read_bytes()
