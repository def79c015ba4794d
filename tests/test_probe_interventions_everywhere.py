"""Every operation at every kind of place: what the running pipeline computes is what the operation says of the rows
there, and an operation that changes nothing leaves every bit.

A spy stands before and behind each operation, at the same place, so that the whole chain is looked at in one run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from conftest import build_tiny_pipeline
from diffusers import DDIMScheduler

from probe.errors import InvalidIntervention
from probe.interventions import (
    AddDirection,
    ClampFeatures,
    DeactivateFeatures,
    EqualNorm,
    Guide,
    Intervention,
    LowRank,
    NormScaleFeatures,
    Op,
    Patch,
    ProjectOut,
    Recipe,
    Replace,
    ReplaceFlagged,
    ScaleFeatures,
    ScaleHeads,
    SetFeatures,
    StepContext,
    Swap,
    TopKDictionary,
    intervene,
)
from probe.interventions.ops import _KINDS, Pack, Unpack, Weight

STEPS, GUIDANCE, ETA = 2, 3.0, 0.5
PROMPTS = ["a red star", "a blue moon"]
ATTN = "unet.up_blocks.0.attentions.0.transformer_blocks.0.attn2"
TEXT = "text_encoder.encoder.layers.0"
PLACES = (
    "unet.mid_block:in",
    "unet.mid_block:out",
    "unet.up_blocks.0.attentions.0:delta",
    f"{ATTN}:probs",
    f"{ATTN}.to_out.0:in",
    "unet:prompt",
    f"{TEXT}.mlp.fc1:in",
    f"{TEXT}:out",
    f"{TEXT}.mlp.fc1:weight",
    f"{ATTN}.to_k:weight",
    "unet.conv_in:weight",
    "sampler:x_t",
    "sampler:eps",
    "sampler:x0",
    "sampler:noise",
)
SHARED = tuple(place for place in PLACES if place.startswith("sampler") or place.endswith("weight"))
"""Places without guidance branches."""


@dataclass(frozen=True, eq=False)
class Spy(Op):
    """Keeps what it sees, and changes nothing."""

    seen: list[tuple[torch.Tensor, StepContext]] = field(default_factory=list)

    def apply(self, x: torch.Tensor, weight: Weight, context: StepContext) -> torch.Tensor:
        self.seen.append((x.detach().clone(), context))
        return x

    def to_record(self, pack: Pack) -> dict[str, Any]:
        return {}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], unpack: Unpack) -> Spy:
        return cls()


@pytest.fixture(scope="module")
def pipe():
    """Betas without zero terminal SNR, so that the noise can be edited at every step."""
    pipe = build_tiny_pipeline()
    pipe.scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, edits=()) -> torch.Tensor:
    """Latents; with fresh noise at every step, so that there is noise to edit."""
    with intervene(pipe, edits):
        return pipe(
            PROMPTS,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            eta=ETA,
            generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)],
            output_type="latent",
        ).images


@pytest.fixture(scope="module")
def plain(pipe) -> torch.Tensor:
    return run(pipe)


@pytest.fixture(scope="module")
def shapes(pipe) -> dict[str, torch.Size]:
    """Rows of each place as its operations meet them: (batch, tokens, channels)."""
    spies = {place: Spy() for place in PLACES}
    run(pipe, [Intervention(place, spy) for place, spy in spies.items()])
    return {place: spy.seen[0][0].shape for place, spy in spies.items()}


def operations(place: str, shape: torch.Size, *, neutral: bool = False) -> dict[str, Op]:
    """One of every kind, by kind; or each with the parameters that change nothing, as far as a kind has such."""
    batch, tokens, d = shape
    g = torch.Generator().manual_seed(0)
    size = 0.0 if neutral else 0.3
    W = torch.nn.functional.normalize(torch.randn(3 * d, d, generator=g), dim=-1)
    dictionary = TopKDictionary(W.T.clone(), torch.zeros(3 * d), W, torch.zeros(d), k=min(4, d))
    features = torch.arange(3 * d)
    push = AddDirection(size * torch.randn(d, generator=g))
    # A weight is one sample, a text encoder sees a branch at a time, all else sees both.
    samples = batch if place in SHARED or place.startswith("text") else batch // 2
    found: dict[str, Op] = {
        "add_direction": push,
        "low_rank": LowRank(size * torch.randn(tokens, 1, generator=g), torch.randn(1, d, generator=g)),
        "scale_heads": ScaleHeads(torch.ones(d) if neutral else torch.linspace(0.5, 1.5, d)),
        "scale_features": ScaleFeatures(dictionary, features, 1.0 if neutral else -1.0),
        "set_features": SetFeatures(dictionary, [-1, -1] if neutral else [0, 1], 0.5),
        "clamp_features": ClampFeatures(dictionary, features, 0.0, 1e9 if neutral else 0.01),
        "norm_scale_features": NormScaleFeatures(dictionary, features, -0.5, 1e9 if neutral else 0.0),
        "replace_flagged": ReplaceFlagged(dictionary, features[: 3 * d // 8 + 1], 1e9 if neutral else 0.1),
        "deactivate_features": DeactivateFeatures(dictionary, features, 1.0 if neutral else -2.0),
        "equal_norm": EqualNorm(push, seed=1),
        "swap": Swap(tuple(range(samples)) if neutral else (1, 0)[:samples] if samples > 1 else (0,)),
    }
    if not neutral:
        found["project_out"] = ProjectOut(torch.randn(1, d, generator=g))
        found["replace"] = Replace(torch.rand(tokens, d, generator=g))
        value = torch.rand(1, 2, samples, tokens, d, generator=g)
        found["patch"] = Patch(value, ("uncond", "cond"))
    if place == "sampler:eps":
        towards = torch.randn(32, 16, generator=g)
        found["guide"] = Guide(towards, towards if neutral else torch.zeros(32, 16))
    return found


def test_there_is_one_operation_of_every_kind(shapes) -> None:
    known = {kind for kind, op in _KINDS.items() if op.__module__.startswith("probe.interventions")}
    assert set(operations("sampler:eps", shapes["sampler:eps"])) == known


@pytest.mark.parametrize("place", PLACES)
def test_the_pipeline_computes_what_the_operations_say(pipe, plain, shapes, place: str) -> None:
    ops = operations(place, shapes[place])
    # Guide asks the running model; its answer on paper is in test_probe_interventions_oracles.py.
    chain = {kind: op for kind, op in ops.items() if not op.replaces and kind != "guide"}
    whole = [{kind: op} for kind, op in ops.items() if op.replaces and not (kind == "patch" and place in SHARED)]
    for together in (chain, *whole):
        spies = [Spy() for _ in range(len(together) + 1)]
        edits = [Intervention(place, spies[0])]
        for op, spy in zip(together.values(), spies[1:], strict=True):
            edits += [Intervention(place, op), Intervention(place, spy)]
        found = run(pipe, edits)
        assert torch.isfinite(found).all()
        for (kind, op), before, after in zip(together.items(), spies, spies[1:], strict=False):
            assert len(before.seen) == len(after.seen) > 0, kind
            moved = False
            for (x, context), (new, _) in zip(before.seen, after.seen, strict=True):
                torch.testing.assert_close(
                    new, said(op, x, context), rtol=1e-4, atol=1e-4, msg=lambda m, k=kind: f"{k}: {m}"
                )
                moved |= bool((new != x).any())
            assert moved or (kind == "swap" and shapes[place][0] == 1), kind


def said(op: Op, x: torch.Tensor, context: StepContext) -> torch.Tensor:
    """The operation on the rows of a place, branch by branch where it asks for that."""
    if not op.by_branch or context.branch:
        return op.apply(x, 1.0, context)
    parts = zip(x.chunk(2), ("uncond", "cond"), strict=True)
    return torch.cat([op.apply(part, 1.0, context._replace(branch=branch)) for part, branch in parts])


@pytest.mark.parametrize("place", PLACES)
def test_what_changes_nothing_leaves_every_bit(pipe, plain, shapes, place: str) -> None:
    ops = operations(place, shapes[place], neutral=True)
    off = operations(place, shapes[place])
    edits = [Intervention(place, op) for op in ops.values()]
    edits += [Intervention(place, op, strength=0.0) for kind, op in off.items() if not op.replaces]
    assert torch.equal(run(pipe, edits).view(torch.int32), plain.view(torch.int32))


@pytest.mark.parametrize("place", SHARED)
def test_a_recorded_branch_has_no_place_that_both_share(pipe, shapes, place: str) -> None:
    patch = operations(place, shapes[place])["patch"]
    with pytest.raises(InvalidIntervention, match=r"uncond\+cond was recorded"):
        run(pipe, [Intervention(place, patch)])


@pytest.mark.parametrize("place", [place for place in PLACES if place != "sampler:eps"])
def test_guidance_has_one_place(pipe, place: str) -> None:
    with pytest.raises(InvalidIntervention, match="use 'sampler:eps'"):
        run(pipe, [Intervention(place, Guide(torch.ones(32, 16), torch.zeros(32, 16)))])


def pushes(shapes, strength: float) -> list[Intervention]:
    return [
        Intervention(place, AddDirection(torch.linspace(0.1, 0.4, shape[2])), strength=strength)
        for place, shape in shapes.items()
    ]


def test_edits_of_different_places_commute(pipe, plain, shapes) -> None:
    """Each is met in its own turn, so the order in which edits are declared cannot matter; bit for bit.

    x0 and eps are two views of one prediction, so only one of them is here.
    """
    edits = [edit for edit in pushes(shapes, 1.0) if str(edit.where) != "sampler:x0"]
    found = run(pipe, edits)
    assert (found != plain).any() and torch.equal(found, run(pipe, edits[::-1]))


def test_adding_then_subtracting_at_every_place_returns_the_start(pipe, plain, shapes) -> None:
    there, back = pushes(shapes, 1.0), pushes(shapes, -1.0)
    both = run(pipe, [edit for pair in zip(there, back, strict=True) for edit in pair])
    torch.testing.assert_close(both, plain, rtol=1e-3, atol=1e-3)
    for place, shape in shapes.items():  # and none of them is lost among the others
        one = run(pipe, [edit for edit in there if str(edit.where) == place])
        assert float((one - plain).abs().max()) > 1e-3, (place, shape)


@dataclass(frozen=True, eq=False)
class Fails(Spy):
    """Raises when it is met."""

    def apply(self, x: torch.Tensor, weight: Weight, context: StepContext) -> torch.Tensor:
        raise ZeroDivisionError


@pytest.mark.parametrize("place", PLACES)
def test_an_edit_that_fails_leaves_nothing_behind(pipe, plain, shapes, place: str) -> None:
    """With edits at all other places too, each of which has to be taken out."""
    modules = [module for part in (pipe.unet, pipe.text_encoder) for module in part.modules()]

    def state() -> tuple[Any, ...]:
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)
        weights = [id(p) for m in modules for p in m._parameters.values()]
        return hooks, weights, sorted(vars(pipe.scheduler)), "encode_prompt" in vars(pipe)

    run(pipe)
    before = state()
    with pytest.raises(ZeroDivisionError):
        run(pipe, [*pushes(shapes, 1.0), Intervention(place, Fails())])
    assert state() == before and torch.equal(run(pipe), plain)


def test_every_operation_and_every_place_survive_a_recipe(pipe, plain, shapes, tmp_path) -> None:
    mid = "unet.mid_block:out"
    edits = [
        Intervention(place, op, strength=0.1)
        for place, shape in shapes.items()
        for kind, op in operations(place, shape).items()
        if not op.replaces and (place == mid or kind in ("low_rank", "guide"))
    ]
    loaded = Recipe.load(Recipe.of(pipe, edits).save(tmp_path / "all"), pipe).interventions
    expected = run(pipe, edits)
    assert (expected != plain).any() and torch.equal(run(pipe, loaded), expected)
    for kind in ("replace", "patch", "swap"):
        op = operations(mid, shapes[mid])[kind]
        kept = Recipe.of(pipe, [Intervention(mid, op)]).save(tmp_path / kind)
        again = Recipe.load(kept, pipe).interventions
        assert torch.equal(run(pipe, again), run(pipe, [Intervention(mid, op)])), kind


@pytest.mark.parametrize("branch", ["cond", "uncond", "both", "opposite"])
def test_text_is_edited_where_it_is_made_or_where_it_is_given(pipe, branch: str) -> None:
    """Behind the last layer norm nothing happens to a text embedding, so both places are one; with its branches."""
    v = torch.linspace(-0.5, 0.5, 16)
    made, given = (
        run(pipe, [Intervention(place, AddDirection(v), branch=branch)])
        for place in ("text_encoder.final_layer_norm:out", "unet:prompt")
    )
    torch.testing.assert_close(made, given, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("branch", "gain"), [("both", 1.0), ("cond", GUIDANCE), ("uncond", 1 - GUIDANCE), ("opposite", 2 * GUIDANCE - 1)]
)
def test_v33_branch_gains_of_a_prompt(branch: str, gain: float) -> None:
    """The closed-form noise is linear in the mean of the prompt's embedding, so its edits have the gains of eps."""
    from intervention_world import gaussian_pipe, latents

    exact = gaussian_pipe()
    start = torch.randn(1, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    push = AddDirection(0.1 * torch.ones(16, dtype=torch.float64))
    without = latents(exact, 5, GUIDANCE, start)

    def moved(policy: str) -> torch.Tensor:
        with intervene(exact, Intervention("unet:prompt", push, branch=policy)):
            return latents(exact, 5, GUIDANCE, start) - without

    both = moved("both")
    assert float(both.abs().min()) > 1e-2
    torch.testing.assert_close(moved(branch), gain * both, rtol=1e-9, atol=1e-10)
