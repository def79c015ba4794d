"""denoscope directions: from a store or a model to a direction and a recipe that replays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from activations_store import ActivationStore
from apps.cli import FAILED, build_parser, main
from apps.directions.cost import counted
from apps.directions.on_model import fit, fit_of, mask_of
from probe.capture import CapturePlan, collect
from probe.directions import load_direction
from probe.interventions import Recipe
from probe.model import PipelineEps, generate, load_pipeline
from sae import TrainConfig, train

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


@pytest.fixture(scope="module")
def state_folder(tiny_folder, tmp_path_factory) -> Path:
    pipe = load_pipeline(tiny_folder)
    plan = CapturePlan.for_pipeline(pipe, "unet:in", ["a red star", "a blue star"], seeds=[0, 0], images=False)
    folder = tmp_path_factory.mktemp("runs") / "state"
    collect(pipe, plan, folder / "store")
    return folder


STAR = ["--prompt", "a red star"]
PAIR = [*STAR, "--without", "a blue star"]
JACOBIAN = ["--components", "2", "--iterations", "2"]
TRAINED = ["--iterations", "2", "--samples", "4", "--steps", "2", "--components", "2"]


@pytest.mark.parametrize(
    ("method", "options", "site", "said"),
    [
        ("h-jacobian", [*STAR, *JACOBIAN, "--mask", "0,0,1,0.5"], SITE, "residual"),
        ("pullback", [*STAR, *JACOBIAN, "--component", "1", "--at-step", "1"], "sampler:x_t", "gap"),
        ("local-edit", [*STAR, *JACOBIAN, "--mask", "0,0,1,0.5", "--null-rank", "1"], "sampler:x_t", "residual"),
        ("concept-vector", [*PAIR, *TRAINED[:-2], "--site", "mid_block"], SITE, "loss"),
        ("asyrp", [*PAIR, "--iterations", "1", "--view", "map"], SITE, "loss"),
        ("noise-clr", [*STAR, "--prompt", "a cup", *TRAINED], "unet:prompt", "loss"),
        ("token-sliders", [*STAR, *TRAINED], "unet:prompt", "loss"),
        ("adapter-sliders", [*STAR, *TRAINED], "attn2.to_k:weight", "loss"),
        ("text-difference", PAIR, "unet:prompt", "agreement"),
        (
            "text-pca",
            [*STAR, "--prompt", "a cup", "--prompt", "a moon", "--components", "2"],
            "unet:prompt",
            "variance",
        ),
    ],
)
def test_a_direction_of_a_model_and_its_recipe(tmp_path, tiny_folder, tiny_pipe, capsys, method, options, site, said):
    asked = ["directions", str(tmp_path), "--method", method, "--model", str(tiny_folder), *options]
    assert main(asked) == 0
    printed = capsys.readouterr().out
    assert said in printed and "denoscope generate --prompt" in printed
    pipe = load_pipeline(tiny_folder)
    edits = Recipe.load(tmp_path / "recipes" / method, pipe).interventions
    assert str(edits[0].where).endswith(site)
    if method != "adapter-sliders":
        assert load_direction(tmp_path / "directions" / method).provenance["model"]["weights_hash"]
    image = [generate(pipe, ["a blue star"], [0], steps=3, interventions=e) for e in ((), edits)]
    assert (image[0] != image[1]).any()


@pytest.mark.parametrize("method", ["pullback", "noise-clr", "text-pca"])
def test_a_dry_run_foretells_and_leaves_nothing(tmp_path, tiny_folder, capsys, method):
    few = ["--components", "2", *(["--samples", "4", "--steps", "2"] if method == "noise-clr" else [])]
    given = [*STAR, *([] if method == "pullback" else ["--prompt", "a cup", "--prompt", "a moon"]), *few]
    asked = ["directions", str(tmp_path), "--method", method, "--model", str(tiny_folder), *given, "--dry-run"]
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "rows through the denoiser" in said and not list(tmp_path.iterdir())
    assert said.startswith(f"{method}: at most" if method == "pullback" else f"{method}: about")


@pytest.mark.parametrize("iterations", [7])
def test_the_foretold_cost_is_the_cost(tiny_pipe, iterations):
    options = build_parser().parse_args(
        ["directions", "x", "--method", "concept-vector", *PAIR, *TRAINED[2:6], "--iterations", str(iterations)]
    )
    model = PipelineEps(tiny_pipe)
    plan = fit_of(options, model)
    with counted(tiny_pipe) as cost:
        fit(plan, model, lambda done, total: None)
    foretold = plan.cost(model, options)
    assert (foretold.evaluations, foretold.gradients) == (cost.evaluations, cost.gradients)
    assert cost.gradients == 8 * iterations  # a batch each


def test_a_state_takes_singular_triplets_from_another(state_folder, tiny_folder, capsys):
    asked = ["directions", str(state_folder), "--method", "latent-svd", "--source", "0", "--target", "1"]
    assert main([*asked, "--rank", "8", "--at-step", "2"]) == 0  # all of them: the whole state
    found = load_direction(state_folder / "directions" / "latent-svd")
    state = ActivationStore.open(state_folder / "store").site("unet:in")
    both = [state.read(sample=i, step=2, branch="cond")[0, 0, 0] for i in (0, 1)]
    np.testing.assert_allclose(found.basis[0, 0].numpy(), both[1] - both[0], atol=1e-2)
    assert found.steps == (2,) and found.provenance["model"]["weights_hash"]
    assert main([*asked[:-1], "2", "--name", "broken"]) == FAILED
    assert "the store holds 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "h-jacobian"], "needs --prompt"),
        (["--method", "local-edit", *STAR], "needs --mask"),
        (["--method", "local-edit", *STAR, "--mask", "0,0,2,1"], "expected 0 <= left < right"),
        (["--method", "local-edit", *STAR, "--mask", "nothing"], "expected an image file"),
        (["--method", "pullback", *STAR, "--at-step", "0"], "starts from pure noise"),
        (["--method", "pullback", *STAR, "--at-step", "9"], "from 0 to 3"),
        (["--method", "pullback", *STAR, "--factor", "object"], "pullback has no use for --factor"),
        (["--method", "asyrp", *STAR], "needs --without"),
        (["--method", "token-sliders", *STAR, "--prompt", "a cup"], "one --prompt"),
        (["--method", "text-difference", *PAIR, "--prompt", "a cup"], "in pairs"),
        (["--method", "noise-clr", *STAR, "--component", "5"], "expected 0 to 4"),
    ],
)
def test_mistakes_on_a_model_are_one_line_and_leave_nothing(tmp_path, tiny_folder, capsys, options, message):
    assert main(["directions", str(tmp_path / "new"), "--model", str(tiny_folder), *options]) == FAILED
    assert message in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_a_box_and_a_picture_are_the_same_mask(tmp_path):
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[8:24, :32] = 255
    Image.fromarray(picture).save(tmp_path / "mask.png")
    box = mask_of("0,0.25,0.5,0.75", (4, 8, 16))
    assert box.shape == (8, 16) and float(box.sum()) == 4 * 8
    assert bool((box == mask_of(str(tmp_path / "mask.png"), (4, 8, 16))).all())


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
    quality = found.provenance["quality"]
    assert recipe.about["provenance"]["quality"] == quality
    if method == "pca":
        assert np.shape(quality["explained_variance_ratio"]) == (4, 2)
    else:
        shown = [line.split()[3] for line in printed.splitlines() if line[:1].isdigit()]
        assert [f"{value:.3f}" for value in quality["auc"]] == shown and len(quality["auc_se"]) == 4
        assert "AUC on 2 samples with the label and 2 without, all held out" in printed
        assert ("p_value" in quality) == (method == "cav")
    assert main(["directions", str(run_folder), "--method", method, *options]) == FAILED
    assert "exists already" in capsys.readouterr().err


def test_features_of_a_dictionary_are_directions(run_folder, tiny_folder, capsys):
    asked = ["directions", str(run_folder), "--method", "dictionary"]
    assert main([*asked, "--feature", "1"]) == FAILED
    assert "has no dictionary; train one with" in capsys.readouterr().err
    store = ActivationStore.open(run_folder / "store")
    sae = train(store, TrainConfig(site=SITE, expansion=2, k=2, rows=512, batch_size=128), run_folder / "sae").sae
    assert main([*asked, "--feature", "5", "3", "--component", "1"]) == 0
    found = load_direction(run_folder / "directions" / "dictionary")
    torch.testing.assert_close(found.basis[0], sae.W_dec[[5, 3]].detach())
    (edit,) = Recipe.load(run_folder / "recipes" / "dictionary", load_pipeline(tiny_folder)).interventions
    assert str(edit.where) == SITE and edit.strength == 2.0
    for options, message in (
        ([], "needs --feature"),
        (["--feature", "5", "--component", "1"], "expected 0 to 0"),
        (["--feature", "9999"], "expected features from 0 to"),
        (["--feature", "5", "--sae", "other"], "no dictionary 'other'"),
        (["--feature", "5", "--site", "mid_block"], "no use for --site"),
    ):
        assert main([*asked, "--name", "broken", *options]) == FAILED
        assert message in capsys.readouterr().err and not (run_folder / "directions" / "broken").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "lda"], "needs --factor and --positive"),
        (["--method", "pca", "--factor", "object"], "no use for --factor"),
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
