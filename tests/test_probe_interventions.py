"""probe.interventions: identity, branches, steps, ops against formulas, hook removal, recipes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import build_tiny_pipeline
from diffusers import DDIMScheduler

from probe.capture import Recorder, Site, resolve_sites
from probe.errors import (
    ConflictingInterventions,
    InvalidIntervention,
    RecipeError,
    RecipeExists,
    RecipeNotFound,
    UnknownSite,
    WrongModel,
)
from probe.interventions import (
    AddDirection,
    ClampFeatures,
    DeactivateFeatures,
    EqualNorm,
    Intervention,
    NormScaleFeatures,
    Op,
    Recipe,
    Replace,
    ReplaceFlagged,
    ScaleFeatures,
    SetFeatures,
    TopKDictionary,
    add_feature,
    as_dictionary,
    intervene,
)
from probe.interventions.ops import StepContext, op_of, op_record
from probe.model import generate, load_pipeline

D, D_SAE, K, STEPS = 16, 24, 4, 3
PROMPTS, SEEDS = ["a red star", "a blue moon"], [3, 4]
PORTS = ["mid_block:in", "mid_block:out", "mid_block:delta", "up_blocks.0.attentions.0:delta", "down_blocks.1:out"]
POLICIES = ["cond", "uncond", "both", "opposite"]
HERE = StepContext("here", 0, 999.0)


def random_dictionary(seed: int = 0) -> TopKDictionary:
    g = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(D_SAE, D, generator=g), dim=-1)
    b_enc, b_dec = 0.1 * torch.randn(D_SAE, generator=g), 0.1 * torch.randn(D, generator=g)
    return TopKDictionary(W_dec.T.clone(), b_enc, W_dec, b_dec, k=K)


def draw(pipe, interventions=(), guidance=2.0) -> np.ndarray:
    return generate(pipe, PROMPTS, SEEDS, steps=STEPS, guidance=guidance, interventions=interventions)


def record(pipe, site, interventions=(), guidance=2.0) -> torch.Tensor:
    """(steps, branches, samples, tokens, channels) at a site, after the interventions."""
    seen: list[torch.Tensor] = []
    sites = resolve_sites(pipe, site)

    def keep(site, step, branches, rows, grid) -> None:
        assert step == len(seen)
        seen.append(rows.clone().unflatten(0, (len(branches), -1)))

    with intervene(pipe, interventions), Recorder(pipe, sites, keep):
        generate(pipe, PROMPTS, SEEDS, steps=STEPS, guidance=guidance)
    return torch.stack(seen)


def n_hooks(pipe) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules())


@pytest.fixture(scope="module")
def plain(tiny_pipe) -> np.ndarray:
    return draw(tiny_pipe)


# An edit that changes nothing


def no_ops() -> dict[str, tuple[Op, float]]:
    features = torch.arange(D_SAE)
    return {
        "zero strength": (AddDirection(torch.ones(D)), 0.0),
        "zero direction": (AddDirection(torch.zeros(D)), 1.0),
        "multiplier 1": (ScaleFeatures(random_dictionary(), features, 1.0), 1.0),
        "threshold out of reach": (ScaleFeatures(random_dictionary(), features, -5.0, thresholds=1e9), 1.0),
        "no features": (ScaleFeatures(random_dictionary(), torch.tensor([-1, -1])), 1.0),
    }


@pytest.mark.parametrize("branch", POLICIES)
@pytest.mark.parametrize("port", PORTS)
def test_no_op_is_the_identity_bit_for_bit(tiny_pipe, plain, port, branch):
    edits = [Intervention(port, op, branch=branch, strength=strength) for op, strength in no_ops().values()]
    np.testing.assert_array_equal(draw(tiny_pipe, edits), plain)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_v32_edits_that_are_off_give_the_very_image(tiny_pipe, seed):
    edits = [Intervention("mid_block", op, strength=strength) for op, strength in no_ops().values()]
    images = [generate(tiny_pipe, PROMPTS[:1], [seed], steps=STEPS, interventions=e) for e in ([], edits)]
    np.testing.assert_array_equal(images[0], images[1])


@pytest.mark.parametrize("name", list(no_ops()))
def test_no_op_keeps_every_bit_of_the_models_output(tiny_pipe, name):
    op, strength = no_ops()[name]
    edited = record(tiny_pipe, "conv_out", [Intervention("mid_block", op, strength=strength)])
    assert torch.equal(edited.view(torch.int32), record(tiny_pipe, "conv_out").view(torch.int32))


def test_where_no_code_changes_rows_keep_their_bits():
    x = torch.randn(2, 10, D, generator=torch.Generator().manual_seed(1))
    x[0, 0] = -0.0
    dictionary = random_dictionary()
    feature = int(dictionary.encode(x).sum((0, 1)).argmax())
    new = ScaleFeatures(dictionary, [feature], 0.0).apply(x, 1.0, HERE)
    off = dictionary.encode(x)[..., feature] == 0
    assert off.any() and not off.all()
    assert torch.equal(new[off].view(torch.int32), x[off].view(torch.int32))
    assert (new[~off] != x[~off]).any(-1).all()


# Operations against their formulas


def test_scale_features_writes_back_the_change_of_the_code():
    x = torch.randn(3, 20, D, generator=torch.Generator().manual_seed(2))
    dictionary = random_dictionary()
    features, gains, thresholds = (
        torch.tensor([0, 5, 11]),
        torch.tensor([-2.0, 0.0, 3.0]),
        torch.tensor([0.3, 0.0, 0.8]),
    )
    z = dictionary.encode(x)
    edited = z.clone()
    for f, gain, threshold in zip(features, gains, thresholds, strict=True):
        edited[..., f] = torch.where(z[..., f] > threshold, gain * z[..., f], z[..., f])
    expected = x + (edited - z) @ dictionary.W_dec
    op = ScaleFeatures(dictionary, features, gains, thresholds)
    torch.testing.assert_close(op.apply(x, 1.0, HERE), expected, rtol=1e-5, atol=1e-6)
    half = x + 0.5 * (edited - z) @ dictionary.W_dec
    torch.testing.assert_close(op.apply(x, 0.5, HERE), half, rtol=1e-5, atol=1e-6)


def test_set_features_and_add_feature():
    x = torch.randn(2, 7, D, generator=torch.Generator().manual_seed(3))
    dictionary = random_dictionary()
    z = dictionary.encode(x)
    new = SetFeatures(dictionary, [2, 9], [1.5, 0.0]).apply(x, 1.0, HERE)
    change = (1.5 - z[..., 2:3]) * dictionary.W_dec[2] - z[..., 9:10] * dictionary.W_dec[9]
    torch.testing.assert_close(new, x + change, rtol=1e-5, atol=1e-6)
    steer = add_feature(dictionary, 2, unit="p99", scale=[4.0, 8.0])
    torch.testing.assert_close(steer.apply(x, -0.5, StepContext("s", 1, 0.0)), x - 4.0 * dictionary.W_dec[2])


@pytest.mark.parametrize(("d_sae", "k"), [(D_SAE, K), (203, 10), (203, 203)])
def test_few_features_have_the_codes_of_the_full_encoder(d_sae, k):
    g = torch.Generator().manual_seed(4)
    W = torch.randn(d_sae, D, generator=g)
    dictionary = TopKDictionary(W.T.clone(), torch.randn(d_sae, generator=g), W, torch.randn(D, generator=g), k=k)
    x = 2 * torch.randn(500, D, generator=g)
    z = dictionary.encode(x)
    assert k == d_sae or (z > 0).sum(-1).max() == k
    features = torch.tensor([0, 3, 7, 23])
    found = dictionary.encode_features(x, features, torch.zeros(4))
    torch.testing.assert_close(found, z[:, features], rtol=1e-5, atol=1e-5)
    assert torch.equal(found > 0, z[:, features] > 0)
    limit = float(z[:, features][z[:, features] > 0].median())
    found = dictionary.encode_features(x, features, torch.full((4,), limit))
    expected = torch.where(z[:, features] > limit, z[:, features], 0.0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_per_step_tables_follow_the_step_or_the_nearest_timestep(tiny_pipe):
    directions = torch.zeros(3, D)
    directions[1] = 1.0
    by_step = record(tiny_pipe, "mid_block", [Intervention("mid_block", AddDirection(directions))])
    base = record(tiny_pipe, "mid_block")
    assert torch.equal(by_step[0], base[0])
    torch.testing.assert_close(by_step[1], base[1] + 1.0)  # later steps start from other latents
    ten = torch.zeros(10, D)
    ten[3] = 1.0  # nearest to the timestep of step 1 of 3
    times = tuple(range(999, 0, -100))
    by_time = record(tiny_pipe, "mid_block", [Intervention("mid_block", AddDirection(ten, timesteps=times))])
    assert torch.equal(by_time, by_step)
    with pytest.raises(InvalidIntervention, match="its table has 2 steps, but the pipeline is at step 2"):
        draw(tiny_pipe, [Intervention("mid_block", AddDirection(directions[:2]))])


# Where an edit applies


@pytest.mark.parametrize(
    ("branch", "uncond", "cond"), [("cond", 0, 1), ("uncond", 1, 0), ("both", 1, 1), ("opposite", -1, 1)]
)
def test_branch_policies_measured_on_activations(tiny_pipe, branch, uncond, cond):
    v = torch.linspace(-1, 1, D)
    base = record(tiny_pipe, "mid_block")[0]  # at later steps the latents differ as well
    edited = record(tiny_pipe, "mid_block", [Intervention("mid_block", AddDirection(v), branch=branch, strength=0.5)])[
        0
    ]
    for found, before, sign in zip(edited, base, (uncond, cond), strict=True):
        if sign == 0:
            assert torch.equal(found, before)
        torch.testing.assert_close(found, before + 0.5 * sign * v)


def test_policies_without_guidance(tiny_pipe):
    v = torch.ones(D)
    base = record(tiny_pipe, "mid_block", guidance=1.0)
    assert base.shape[1] == 1
    edited = record(
        tiny_pipe, "mid_block", [Intervention("mid_block", AddDirection(v), branch="opposite")], guidance=1.0
    )
    torch.testing.assert_close(edited[0], base[0] + v)
    with pytest.raises(InvalidIntervention, match="this generation computes cond only"):
        draw(tiny_pipe, [Intervention("mid_block", AddDirection(v), branch="uncond")], guidance=1.0)


def test_step_windows_also_after_an_aborted_generation(tiny_pipe):
    edit = Intervention("mid_block", AddDirection(torch.ones(D)), steps=range(1, 2))
    base = record(tiny_pipe, "mid_block")
    with intervene(tiny_pipe, edit):
        broken = tiny_pipe.unet.conv_out.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            generate(tiny_pipe, PROMPTS, SEEDS, steps=STEPS)
        broken.remove()
        for _ in range(2):
            edited = record(tiny_pipe, "mid_block")
            assert torch.equal(edited[0], base[0])
            torch.testing.assert_close(edited[1], base[1] + 1.0)


@pytest.mark.parametrize("port", ["in", "out", "delta"])
def test_ports(tiny_pipe, port):
    site = f"up_blocks.0.attentions.0:{port}"
    base, edited = (record(tiny_pipe, site, e)[0] for e in ([], [Intervention(site, AddDirection(torch.ones(D)))]))
    torch.testing.assert_close(edited, base + 1.0, rtol=1e-5, atol=1e-6)


def test_masks(tiny_pipe):
    base = record(tiny_pipe, "mid_block")[0]
    mask = np.zeros((4, 4), dtype=np.float32)
    mask[1, 2] = 1.0
    edit = Intervention("mid_block", AddDirection(torch.ones(D)), mask=torch.from_numpy(mask))
    changed = (record(tiny_pipe, "mid_block", [edit])[0] != base).any(-1)
    assert changed[..., 6].all() and changed.sum() == 4  # cell (1, 2) in 2 branches x 2 samples
    fine = np.kron(mask, np.ones((16, 16), dtype=np.float32))  # a picture-sized mask is averaged to the grid
    again = Intervention("mid_block", AddDirection(torch.ones(D)), mask=torch.from_numpy(fine))
    assert torch.equal(record(tiny_pipe, "mid_block", [again])[0], record(tiny_pipe, "mid_block", [edit])[0])
    with pytest.raises(InvalidIntervention, match="the mask has 7 cells, the site 16 tokens"):
        draw(tiny_pipe, [Intervention("mid_block", AddDirection(torch.ones(D)), mask=torch.ones(7))])


def test_edits_compose_in_declared_order(tiny_pipe):
    value = torch.linspace(0, 1, 16 * D).reshape(16, D)
    replace, add = Intervention("mid_block", Replace(value)), Intervention("mid_block", AddDirection(torch.ones(D)))
    assert torch.equal(record(tiny_pipe, "mid_block", [add, replace])[0, 0, 0], value)
    torch.testing.assert_close(record(tiny_pipe, "mid_block", [replace, add])[0, 0, 0], value + 1.0)


def test_adding_then_subtracting_returns_the_start(tiny_pipe, plain):
    v = torch.full((D,), 0.5)  # exactly representable
    there = Intervention("mid_block", AddDirection(v))
    back = Intervention("mid_block", AddDirection(v), strength=-1.0)
    assert (draw(tiny_pipe, [there]) != plain).any()
    assert np.abs(draw(tiny_pipe, [there, back]).astype(int) - plain).max() <= 1


def test_two_replacements_are_refused(tiny_pipe):
    replace = Intervention("mid_block", Replace(torch.zeros(16, D)))
    with (
        pytest.raises(ConflictingInterventions, match="both replace the whole tensor"),
        intervene(tiny_pipe, [replace] * 2),
    ):
        pass
    dictionary = random_dictionary()
    a, b = (Intervention("mid_block", SetFeatures(dictionary, f, 1.0)) for f in ([1, 2], [2, 3]))
    with pytest.raises(ConflictingInterventions, match="both set feature 2"), intervene(tiny_pipe, [a, b]):
        pass
    assert n_hooks(tiny_pipe) == 0


def test_hooks_are_removed(tiny_pipe, plain):
    edit = Intervention("mid_block", AddDirection(torch.ones(D)))
    with intervene(tiny_pipe, edit):
        assert n_hooks(tiny_pipe) == 2  # the edit and the step clock
    assert n_hooks(tiny_pipe) == 0
    with pytest.raises(ZeroDivisionError), intervene(tiny_pipe, edit):
        raise ZeroDivisionError
    with pytest.raises(InvalidIntervention, match="the site has 16 channels, but 5 were expected"):
        draw(tiny_pipe, [edit, Intervention("mid_block", AddDirection(torch.ones(5)))])
    with (
        pytest.raises(UnknownSite, match="Near matches"),
        intervene(tiny_pipe, [edit, Intervention("midblock", edit.op)]),
    ):
        pass
    assert n_hooks(tiny_pipe) == 0
    np.testing.assert_array_equal(draw(tiny_pipe), plain)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Intervention("mid_block", AddDirection(torch.ones(D)), branch="left"), "branch 'left'"),
        (lambda: Intervention("mid_block", AddDirection(torch.ones(D)), strength=float("inf")), "not finite"),
        (lambda: Intervention("mid_block", AddDirection(torch.ones(D)), steps=(-1,)), "whole number from 0"),
        (lambda: Intervention("mid_block", "add"), "op is str"),  # type: ignore[arg-type]
        (lambda: Intervention("mid_block", Replace(torch.ones(4, D)), branch="opposite"), "no opposite"),
        (lambda: AddDirection(torch.tensor([1.0, float("nan")])), "NaN or infinity"),
        (lambda: AddDirection(torch.ones(D), "std"), "needs a scale"),
        (lambda: AddDirection(torch.ones(D), "loud"), "unit 'loud'"),
        (lambda: AddDirection(torch.ones(3, D), timesteps=(1, 2)), "3 rows in the table but 2 timesteps"),
        (lambda: ScaleFeatures(random_dictionary(), [D_SAE]), "the dictionary has 0 to 23"),
        (lambda: ScaleFeatures(random_dictionary(), [3, 3]), "named twice"),
        (lambda: ScaleFeatures(random_dictionary(), [3], thresholds=-1.0), "thresholds go below 0"),
        (lambda: SetFeatures(random_dictionary(), [3], -1.0), "values go below 0"),
        (lambda: SetFeatures(random_dictionary(), [3, 4], [1.0]), "expected that of the features"),
        (lambda: add_feature(random_dictionary(), 99), "the dictionary has 0 to 23"),
    ],
)
def test_bad_interventions(make, message):
    with pytest.raises(InvalidIntervention) as caught:
        make()
    assert message in str(caught.value)


# Dictionaries of others


class Scaled:
    """A TopK autoencoder that scales its input, as training code may."""

    def __init__(self, scale: float) -> None:
        inner = random_dictionary()
        self.scale, self.k, self.inner = scale, inner.k, inner
        self.W_enc, self.b_enc, self.W_dec, self.b_dec = inner.W_enc, inner.b_enc, inner.W_dec, inner.b_dec

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner.encode(self.scale * x)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return self.inner.decode(z) / self.scale


def test_as_dictionary_checks_that_codes_agree():
    x = torch.randn(9, D)
    assert torch.equal(as_dictionary(Scaled(1.0)).encode(x), random_dictionary().encode(x))
    with pytest.raises(InvalidIntervention, match="does not compute the code"):
        as_dictionary(Scaled(3.0))
    with pytest.raises(InvalidIntervention, match="object has no W_enc"):
        as_dictionary(object())


def test_the_trained_autoencoder_is_a_dictionary(tiny_pipe, tmp_path):
    sae = pytest.importorskip("sae")
    trained = sae.TopKSAE(sae.SAEConfig(d_in=D, d_sae=D_SAE, k=K, site="unet.mid_block:out"), seed=1)
    trained.initialise(torch.randn(256, D) + 1.0)
    x = torch.randn(50, D) + 1.0
    torch.testing.assert_close(as_dictionary(trained).encode(x), trained.encode(x).detach(), rtol=1e-4, atol=1e-5)
    live = draw(tiny_pipe, [Intervention("mid_block", ScaleFeatures(trained, range_tensor(), -1.0))])
    held = draw(tiny_pipe, [Intervention("mid_block", ScaleFeatures(as_dictionary(trained), range_tensor(), -1.0))])
    assert np.abs(live.astype(int) - held).max() <= 1


def range_tensor() -> torch.Tensor:
    return torch.arange(8)


# Recipes


def test_every_operation_on_features_comes_back_from_its_record():
    d, features, times = random_dictionary(), torch.tensor([[1, 2, -1], [3, 4, 5]]), (999, 500)
    ops: list[Op] = [
        ScaleFeatures(d, features, -2.0, 0.1, times),
        SetFeatures(d, features, 1.0, times),
        ClampFeatures(d, features, 0.1, 0.2, times),
        NormScaleFeatures(d, features, -1.0, 0.1, times),
        ReplaceFlagged(d, features, 0.5, 3, times),
        DeactivateFeatures(d, [1, 2], -3.0, 0.5, keep_error=False),
        EqualNorm(ScaleFeatures(d, features, 0.0), 2),
    ]
    x = 3 * torch.randn(2, 9, D, generator=torch.Generator().manual_seed(1))
    for op in ops:
        tensors: list[torch.Tensor] = []

        def pack(tensor: torch.Tensor, tensors: list[torch.Tensor] = tensors) -> str:
            tensors.append(tensor.clone())
            return str(len(tensors) - 1)

        record = json.loads(json.dumps(op_record(op, pack)))
        again = op_of(record, lambda name, tensors=tensors: tensors[int(name)])
        assert type(again) is type(op) and getattr(again, "timesteps", None) == getattr(op, "timesteps", None)
        edited = op.apply(x, 1.0, HERE)
        torch.testing.assert_close(again.apply(x, 1.0, HERE), edited, rtol=0, atol=0)
        assert not torch.equal(edited, x), op.kind


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


def test_sites_compare_by_name():
    assert Intervention("unet.mid_block", AddDirection(torch.ones(D))).where == Site("unet.mid_block", "out")
