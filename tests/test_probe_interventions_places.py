"""Every kind of place that an edit can have: identity, effect, removal; and the operations met there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from intervention_support import ATTN, GAINS, GUIDANCE, HERE, PROMPTS, SEEDS, STEPS, draw

from probe.capture import Recorder, resolve_sites
from probe.errors import ConflictingInterventions, InvalidIntervention, InvalidRequest, UnknownSite, UnsupportedSite
from probe.interventions import (
    AddDirection,
    EqualNorm,
    Intervention,
    LowRank,
    Op,
    Patch,
    ProjectOut,
    Replace,
    ScaleHeads,
    Schedule,
    Swap,
    Window,
    intervene,
    random_control,
    record_run,
    text_embedding,
)
from probe.interventions.attention import attention_map

HEADS = 8
WIDTHS = {
    "mid_block": 16,
    "mid_block:in": 16,
    "up_blocks.0.attentions.0:delta": 16,
    f"{ATTN}:probs": HEADS,
    f"{ATTN}.to_out.0:in": 16,
    "unet:prompt": 16,
    "text_encoder.encoder.layers.0": 16,
    "text_encoder.encoder.layers.0.mlp:weight": None,
    f"{ATTN}.to_k:weight": 16,
    "unet.conv_in:weight": 36,
    "sampler:x_t": 4,
    "sampler:x0": 4,
}
SITES = [site for site, width in WIDTHS.items() if width]


def outputs(pipe, edits=(), guidance=GUIDANCE, prompts=PROMPTS) -> torch.Tensor:
    """The denoiser's output at every step."""
    seen: list[torch.Tensor] = []
    keep = lambda site, step, branches, rows, grid: seen.append(rows.clone())  # noqa: E731
    with intervene(pipe, edits), Recorder(pipe, resolve_sites(pipe, "conv_out"), keep):
        draw(pipe, prompts=prompts, seeds=SEEDS[: len(prompts)], guidance=guidance)
    return torch.stack(seen)


def state_of(pipe) -> tuple[int, list[int], bool]:
    """Hooks on all modules, identity of all weights, and whether methods are the class's own."""
    modules = [m for part in (pipe.unet, pipe.text_encoder) for m in part.modules()]
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)
    weights = [id(p) for m in modules for p in m._parameters.values()]
    return hooks, weights, "step" in vars(pipe.scheduler) or "encode_prompt" in vars(pipe)


@pytest.fixture(scope="module")
def plain(tiny_pipe) -> np.ndarray:
    return draw(tiny_pipe)


@pytest.fixture(scope="module")
def plain_output(tiny_pipe) -> torch.Tensor:
    return outputs(tiny_pipe)


@pytest.mark.parametrize("site", SITES)
def test_no_op_is_the_identity_bit_for_bit(tiny_pipe, plain_output, site):
    d = WIDTHS[site]
    ops: list[tuple[Op, float]] = [
        (AddDirection(torch.ones(d)), 0.0),
        (AddDirection(torch.zeros(d)), 1.0),
        (ProjectOut(torch.ones(1, d)), 0.0),
        (ScaleHeads(torch.ones(d)), 1.0),
        (EqualNorm(AddDirection(torch.zeros(d))), 1.0),
    ]
    edits = [Intervention(site, op, strength=strength) for op, strength in ops]
    assert torch.equal(outputs(tiny_pipe, edits).view(torch.int32), plain_output.view(torch.int32))


@pytest.mark.parametrize("site", SITES)
def test_an_edit_moves_the_model_and_leaves_nothing_behind(tiny_pipe, plain_output, site):
    before = state_of(tiny_pipe)
    edit = Intervention(site, AddDirection(torch.linspace(0.1, 1, WIDTHS[site])))
    assert (outputs(tiny_pipe, edit) != plain_output).any()
    with pytest.raises(ZeroDivisionError), intervene(tiny_pipe, edit):
        broken = tiny_pipe.unet.conv_out.register_forward_hook(lambda *_: 1 / 0)
        try:
            draw(tiny_pipe)
        finally:
            broken.remove()
    wrong = Intervention(site, AddDirection(torch.ones(5)))
    with pytest.raises(InvalidIntervention, match="channels, but 5 were expected"):
        draw(tiny_pipe, [edit, wrong])
    assert state_of(tiny_pipe) == before
    assert torch.equal(outputs(tiny_pipe), plain_output)


@pytest.mark.parametrize("site", SITES)
def test_a_batch_gives_what_its_members_give_one_by_one(tiny_pipe, site):
    """Kernels are chosen by shape, so the last bit of float32 may differ: one level of 255 at most."""
    edit = Intervention(site, AddDirection(torch.linspace(-1, 1, WIDTHS[site])), strength=0.5)
    together = draw(tiny_pipe, [edit])
    alone = np.concatenate([draw(tiny_pipe, [edit], [p], [s]) for p, s in zip(PROMPTS, SEEDS, strict=True)])
    assert np.abs(together.astype(int) - alone).max() <= 1


# Attention


def test_attention_map_is_that_of_the_module(tiny_pipe):
    attn = tiny_pipe.unet.get_submodule(ATTN)
    g = torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 64, 16, generator=g), torch.randn(2, 32, 16, generator=g)
    probs, value = attention_map(attn, x, text)
    torch.testing.assert_close(probs.sum(-1), torch.ones(2, HEADS, 64))
    mixed = (probs @ value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attn.to_out[0](mixed), attn(x, text), rtol=1e-5, atol=1e-6)


def test_editing_the_map_equals_running_with_it(tiny_pipe, plain_output):
    """Against diffusers' own explicit attention, given the edited map."""
    edit = Intervention(f"{ATTN}:probs", ScaleHeads(GAINS), mask=torch.arange(32) >= 2)
    found = outputs(tiny_pipe, edit)

    class Edited(AttnProcessor):
        def __call__(self, attn, *args, **kwargs):
            own = attn.get_attention_scores

            def scores(*a):
                probs = own(*a).unflatten(0, (-1, HEADS)).clone()
                probs[:, :, :, 2:] *= GAINS[:, None, None]
                return probs.flatten(0, 1)

            attn.get_attention_scores = scores
            try:
                return super().__call__(attn, *args, **kwargs)
            finally:
                del attn.get_attention_scores

    attn = tiny_pipe.unet.get_submodule(ATTN)
    usual = attn.processor
    attn.set_processor(Edited())
    expected = outputs(tiny_pipe)
    attn.set_processor(usual)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found != plain_output).any()


def test_heads_at_the_map_and_before_the_projection_agree(tiny_pipe):
    at_map, at_projection = (
        outputs(tiny_pipe, Intervention(site, ScaleHeads(GAINS), branch="cond"))
        for site in (f"{ATTN}:probs", f"{ATTN}.to_out.0:in")
    )
    torch.testing.assert_close(at_map, at_projection, rtol=1e-4, atol=1e-5)


def test_swapping_maps_gives_a_sample_anothers(tiny_pipe):
    """Same seed and the same prompt but for one word: with the first one's maps and values both are the first."""
    prompts, seeds = ["a red star", "a blue moon"], [3, 3]
    edits = [Intervention(f"{ATTN}:probs", Swap((0, 0)))]
    assert (draw(tiny_pipe, edits, prompts, seeds) != draw(tiny_pipe, (), prompts, seeds)).any()
    first = draw(tiny_pipe, [Intervention("unet:prompt", Swap((0, 0)))], prompts, seeds)
    np.testing.assert_array_equal(first[0], first[1])
    crossed = draw(tiny_pipe, [Intervention("unet:prompt", Swap((1, 0)))], prompts, seeds)
    np.testing.assert_array_equal(crossed, draw(tiny_pipe, (), prompts[::-1], seeds))


def test_a_module_without_a_map_is_refused(tiny_pipe):
    with (
        pytest.raises(UnsupportedSite, match="is not a plain attention"),
        intervene(tiny_pipe, Intervention("mid_block:probs", ScaleHeads(torch.tensor([1.0, 0.0])))),
    ):
        pass
    with pytest.raises(InvalidRequest, match="can be edited, but not recorded"):
        resolve_sites(tiny_pipe, f"{ATTN}:probs")


# Text


def test_negative_prompt_is_a_replacement_on_the_unconditional_branch(tiny_pipe):
    embedding = text_embedding(tiny_pipe, "a blue cup")
    found = draw(tiny_pipe, [Intervention("unet:prompt", Replace(embedding), branch="uncond")], guidance=3.0)
    from probe.model.generate import call_kwargs, no_progress_bar

    arguments = call_kwargs(tiny_pipe, PROMPTS, SEEDS, steps=STEPS, guidance=3.0)
    with no_progress_bar(tiny_pipe):
        images = tiny_pipe(**arguments, negative_prompt=["a blue cup"] * 2).images
    np.testing.assert_array_equal(found, (images * 255).round().astype(np.uint8))


@pytest.mark.parametrize(("branch", "cond", "uncond"), [("cond", 1, 0), ("uncond", 0, 1), ("opposite", 1, -1)])
def test_text_encoder_branches(tiny_pipe, branch, cond, uncond):
    """The last layer's output goes through a layer norm; compare with editing each pass by hand."""
    seen: list[torch.Tensor] = []
    layer = tiny_pipe.text_encoder.encoder.layers[0]
    v = torch.linspace(-1, 1, 16)
    keep = lambda module, args, out: seen.append(out[0] if isinstance(out, tuple) else out)  # noqa: E731
    with intervene(tiny_pipe, Intervention("text_encoder.encoder.layers.0", AddDirection(v), branch=branch)):
        handle = layer.register_forward_hook(keep)
        draw(tiny_pipe)
        draw(tiny_pipe, guidance=1.0) if cond else None
        handle.remove()
    base: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda m, a, out: base.append(out[0] if isinstance(out, tuple) else out))
    draw(tiny_pipe)
    handle.remove()
    for found, before, sign in zip(seen, [*base, base[0]], (cond, uncond, cond), strict=False):
        torch.testing.assert_close(found, before + sign * v)
    assert len(seen) == (3 if cond else 2)


def test_text_sites_have_no_steps(tiny_pipe):
    op = AddDirection(torch.ones(16))
    wrong: list[dict[str, Any]] = [{"steps": [0]}, {"strength": Schedule("step", (0,), (1.0,))}, {"inject": "x0"}]
    for bad in wrong:
        edit = Intervention("text_encoder.encoder.layers.0", op, **bad)
        with pytest.raises(InvalidIntervention, match="encoded once"), intervene(tiny_pipe, edit):
            pass
    table = Intervention("text_encoder.encoder.layers.0", AddDirection(torch.ones(3, 16)))
    with pytest.raises(InvalidIntervention, match="there are no steps here"):
        draw(tiny_pipe, [table])
    with pytest.raises(InvalidIntervention, match="computes cond only"):
        draw(tiny_pipe, [Intervention("text_encoder.encoder.layers.0", op, branch="uncond")], guidance=1.0)
    with pytest.raises(UnknownSite, match=r"encoder\.layers\.0"), intervene(
        tiny_pipe, Intervention("text_encoder.encoder.layer.0", op)
    ):  # fmt: skip
        pass


# Weights


def test_weight_edits_are_those_of_the_weight(tiny_pipe):
    linear = tiny_pipe.unet.get_submodule(f"{ATTN}.to_k")
    original = linear.weight
    up, down = torch.randn(16, 2, generator=torch.Generator().manual_seed(0)), torch.randn(2, 16)
    found = outputs(tiny_pipe, Intervention(f"{ATTN}.to_k:weight", LowRank(up, down), strength=0.5))
    linear.weight = torch.nn.Parameter(original + 0.5 * up @ down, requires_grad=False)
    expected = outputs(tiny_pipe)
    linear.weight = original
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    late = Intervention(f"{ATTN}.to_k:weight", Replace(torch.zeros(16, 16)), steps=[1])
    changed = outputs(tiny_pipe, late) != outputs(tiny_pipe)
    assert not changed[0].any() and changed[1].any()
    assert linear.weight is original
    for bad, message in (
        (Intervention(f"{ATTN}.to_k:weight", LowRank(up, down), branch="cond"), "both branches share it"),
        (Intervention(f"{ATTN}.to_k:weight", LowRank(up, down), mask=torch.ones(16)), "has no cells"),
        (Intervention("mid_block:weight", LowRank(up, down)), "has no weight matrix"),
    ):
        with pytest.raises(InvalidIntervention, match=message), intervene(tiny_pipe, bad):
            pass


# The sampler


def test_sampler_places(tiny_pipe):
    op = AddDirection(torch.ones(4))
    with pytest.raises(InvalidIntervention, match="zero terminal SNR"):
        draw(tiny_pipe, [Intervention("sampler:eps", op)])
    draw(tiny_pipe, [Intervention("sampler:eps", op, steps=Window("step", 1))])
    for bad, error, message in (
        (Intervention("sampler:eps", op, branch="cond"), InvalidIntervention, "both branches share it"),
        (Intervention("sampler:x_t", op, inject="x0"), InvalidIntervention, "is in both terms"),
        (Intervention("sampler:out", op), UnknownSite, "sampler:x_t, sampler:eps, sampler:x0, sampler:noise"),
        (Intervention("mid_block:eps", op), UnknownSite, "sampler:x_t, sampler:eps, sampler:x0, sampler:noise"),
    ):
        with pytest.raises(error, match=message), intervene(tiny_pipe, bad):
            pass


def test_x0_of_a_velocity_model(tiny_pipe):
    """At the last step x_prev is x0 itself, up to the last noise: replacing x0 there decides the image."""
    g = torch.Generator().manual_seed(0)
    value = torch.randn(64, 4, generator=g)
    images = draw(tiny_pipe, [Intervention("sampler:x0", Replace(value), steps=[STEPS - 1])])
    np.testing.assert_array_equal(images[0], images[1])
    latent = value.T.reshape(1, 4, 8, 8) / tiny_pipe.vae.config.scaling_factor
    decoded = tiny_pipe.image_processor.postprocess(tiny_pipe.vae.decode(latent).sample, output_type="np")
    assert np.abs((decoded * 255).round() - images[0].astype(float)).max() <= 1


def test_injection_of_a_module_edit_into_both_terms_is_the_plain_edit(tiny_pipe):
    op = AddDirection(torch.linspace(-1, 1, 16))
    whole = draw(tiny_pipe, [Intervention("mid_block", op)])
    split = draw(tiny_pipe, [Intervention("mid_block", op, inject=term) for term in ("x0", "direction")])
    assert np.abs(whole.astype(int) - split).max() <= 1
    one = draw(tiny_pipe, [Intervention("mid_block", op, inject="x0")])
    assert (one != whole).any()


# Causal tracing


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_v34_restoring_every_block_gives_the_clean_image_and_none_the_corrupted(tiny_pipe, seed):
    seeds = [seed, seed + 10]
    noise = torch.randn(32, 16, generator=torch.Generator().manual_seed(seed))
    corrupt = Intervention("unet:prompt", AddDirection(noise[None]), branch="cond", strength=5.0)
    plain, corrupted = draw(tiny_pipe, seeds=seeds), draw(tiny_pipe, [corrupt], seeds=seeds)
    assert (corrupted != plain).any()
    clean = record_run(
        tiny_pipe, ["conv_in", "down_blocks.*", "mid_block", "up_blocks.*", "conv_out"], PROMPTS, seeds,
        steps=STEPS, guidance=GUIDANCE,
    )  # fmt: skip
    restored = [Intervention(site, patch) for site, patch in clean.items()]
    np.testing.assert_array_equal(draw(tiny_pipe, [corrupt, *restored], seeds=seeds), plain)
    none = [Intervention(site, patch, strength=0.0) for site, patch in clean.items()]
    np.testing.assert_array_equal(draw(tiny_pipe, [corrupt, *none], seeds=seeds), corrupted)
    with pytest.raises(InvalidIntervention, match="2 samples were recorded, but the batch has 1"):
        draw(tiny_pipe, restored, PROMPTS[:1], seeds[:1])
    with pytest.raises(InvalidIntervention, match=r"uncond\+cond was recorded"):
        Patch(torch.zeros(1, 2, 1, 4, 16), ("uncond", "cond")).apply(torch.zeros(2, 4, 16), 1.0, HERE)


# Operations


def test_project_out():
    g = torch.Generator().manual_seed(0)
    x, basis, centre = torch.randn(3, 5, 8, generator=g), torch.randn(2, 8, generator=g), torch.randn(8, generator=g)
    new = ProjectOut(basis, centre=centre).apply(x, 1.0, HERE)
    torch.testing.assert_close((new - centre) @ basis.T, torch.zeros(3, 5, 2), rtol=0, atol=1e-5)
    q = torch.linalg.qr(basis.T).Q
    torch.testing.assert_close(new, x - (x - centre) @ q @ q.T, rtol=1e-5, atol=1e-5)
    covectors = torch.randn(2, 8, generator=g)
    oblique = ProjectOut(basis, covectors).apply(x, 1.0, HERE)
    torch.testing.assert_close(oblique @ covectors.T, torch.zeros(3, 5, 2), rtol=0, atol=1e-4)
    coefficients = torch.linalg.lstsq(basis.T, (oblique - x).reshape(-1, 8).T).solution  # moved within the basis only
    torch.testing.assert_close((basis.T @ coefficients).T.reshape(x.shape), oblique - x, rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidIntervention, match="not of full rank"):
        ProjectOut(torch.ones(2, 8))


def test_equal_norm_control():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 8, generator=g)
    op = ProjectOut(torch.randn(1, 8, generator=g))
    control = random_control(Intervention("mid_block", op, strength=2.0, branch="cond"), seed=3)
    assert (control.strength, control.branch, str(control.where)) == (2.0, "cond", "mid_block:out")
    moved, pushed = op.apply(x, 1.0, HERE) - x, control.op.apply(x, 1.0, HERE) - x
    torch.testing.assert_close(pushed.norm(dim=-1), moved.norm(dim=-1))
    assert torch.linalg.matrix_rank(pushed.reshape(-1, 8)) == 1  # one direction for all
    other = random_control(Intervention("mid_block", op), seed=4).op.apply(x, 1.0, HERE) - x
    assert not torch.allclose(pushed, other)


def test_replacements_that_cannot_meet_are_allowed(tiny_pipe):
    def at(**where):
        return Intervention("mid_block", Replace(torch.zeros(16, 16)), **where)

    left, right = torch.zeros(4, 4), torch.zeros(4, 4)
    left[:, :2], right[:, 2:] = 1, 1
    for a, b in (
        (at(steps=[0]), at(steps=[1])),
        (at(branch="cond"), at(branch="uncond")),
        (at(mask=left), at(mask=right)),
    ):
        with intervene(tiny_pipe, [a, b]):
            pass
    for a, b in ((at(steps=[0, 1]), at(steps=[1])), (at(branch="cond"), at()), (at(mask=left), at(mask=left))):
        with pytest.raises(ConflictingInterventions, match="different steps, branches or masks"), intervene(
            tiny_pipe, [a, b]
        ):  # fmt: skip
            pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Window("time"), "axis 'time'"),
        (lambda: Window("t", 5, 3), "there is nothing"),
        (lambda: Schedule("t", (3, 2), (0, 1)), "do not rise"),
        (lambda: Schedule("t", (1,), ()), "1 places, 0 values"),
        (lambda: Intervention("mid_block", Replace(torch.zeros(4, 4)), inject="eps"), "inject 'eps'"),
        (lambda: Swap((0, 2)), "a number from 0 to 1 a sample"),
        (lambda: LowRank(torch.zeros(4, 2), torch.zeros(3, 4)), r"expected \(tokens, r\), \(r, d\)"),
        (lambda: Patch(torch.zeros(1, 2, 1, 4, 4), ("cond",)), "2 branches in the value, but 1 names"),
        (lambda: ProjectOut(torch.ones(1, 4), torch.ones(1, 5)), "do not fit"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InvalidIntervention, match=message):
        make()
