"""probe.model: steps and guidance branches of pipelines that order them differently, against the prompts' embeddings.

Every pipeline's text encoders are replaced by an embedding drawn for each prompt, so that a row of the denoiser's batch
says itself which prompt it belongs to.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_tiny_pipeline
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    LuminaNextDiT2DModel,
    LuminaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPAGPipeline,
    UNet2DConditionModel,
)

from probe.capture import CapturePlan, Recorder, Site, collect
from probe.errors import UnsupportedPipeline
from probe.interventions import AddDirection, Intervention, intervene, record_run
from probe.model import StepClock, generate

PROMPTS = ["a red star", "a blue moon"]
SIZE: dict[str, Any] = {"height": 16, "width": 16}


def embedding(text: str) -> torch.Tensor:
    return torch.randn(5, 16, generator=torch.Generator().manual_seed(sum(map(ord, text))))


def embeddings(prompt: Any) -> tuple[torch.Tensor, torch.Tensor]:
    prompts = [prompt] if isinstance(prompt, str) else prompt
    return torch.stack([embedding(p) for p in prompts]), torch.stack([embedding("")] * len(prompts))


class PairPipeline:
    """Pipelines whose ``encode_prompt`` returns the two embeddings."""

    def encode_prompt(self, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        return embeddings(prompt)


class MaskedPipeline:
    """Pipelines whose ``encode_prompt`` returns each embedding with a mask."""

    def encode_prompt(self, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        found, negative = embeddings(prompt)
        ones = torch.ones(found.shape[:2])
        return found, ones, negative, ones


class CogView4(PairPipeline, CogView4Pipeline):
    """A call for each branch, conditional first."""


class Lumina(MaskedPipeline, LuminaPipeline):
    """Both in a batch, conditional first; time runs from 0 to 1."""


class PixArt(MaskedPipeline, PixArtSigmaPipeline):
    """Both in a batch, unconditional first; only a variable of the call says so."""


class AuraFlow(MaskedPipeline, AuraFlowPipeline):
    """As PixArt; time is t / 1000, and the first t / 1000 is the last t."""


def vae() -> AutoencoderKL:
    sizes: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (4, 4),
        "latent_channels": 4,
        "norm_num_groups": 2,
    }
    return AutoencoderKL(**sizes).eval()


def build(kind: type) -> Any:
    torch.manual_seed(0)
    if kind is CogView4:
        transformer: Any = CogView4Transformer2DModel(
            patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=2,
            text_embed_dim=16, time_embed_dim=8, condition_dim=4, sample_size=8, rope_axes_dim=(2, 2),
            pos_embed_max_size=8,
        )  # fmt: skip
    elif kind is Lumina:
        transformer = LuminaNextDiT2DModel(
            sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=2, num_attention_heads=3,
            num_kv_heads=1, multiple_of=16, cross_attention_dim=16,
        )  # fmt: skip
    elif kind is PixArt:
        transformer = PixArtTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, norm_num_groups=4,
            cross_attention_dim=16, caption_channels=16, sample_size=8, patch_size=2, use_additional_conditions=False,
        )  # fmt: skip
    else:
        transformer = AuraFlowTransformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
            attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16,
            out_channels=4, pos_embed_max_size=64,
        )  # fmt: skip
    parts: dict[str, Any] = {"text_encoder": None, "tokenizer": None, "vae": vae(), "transformer": transformer.eval()}
    parts["scheduler"] = DDIMScheduler() if kind is PixArt else FlowMatchEulerDiscreteScheduler()
    pipe: Any = kind(**parts)
    pipe.transformer.requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    pipe.default_sample_size = 8
    return pipe


@pytest.fixture(scope="module")
def made() -> dict[type, Any]:
    return {kind: build(kind) for kind in (CogView4, Lumina, PixArt, AuraFlow)}


def owner(text: torch.Tensor) -> str:
    """Which branch a row of text embeddings (L, C) belongs to."""
    known = {"cond": PROMPTS, "uncond": [""]}
    return next(b for b, texts in known.items() if any(torch.equal(text.float(), embedding(t)) for t in texts))


def watched(pipe: Any, steps: int = 3, **options: Any) -> list[tuple[int, tuple[str, ...], tuple[str, ...], int]]:
    """(step, branches, branches by the rows' own text, sampler steps taken before) of every denoiser call."""
    found: list[Any] = []
    taken = 0
    step = pipe.scheduler.step

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal taken
        taken += 1
        return step(*args, **kwargs)

    def look(module: Any, args: Any, kwargs: Any) -> None:
        text = kwargs["encoder_hidden_states"]
        found.append((clock.step, clock.branches, tuple(owner(row) for row in text[:: len(PROMPTS)]), taken))

    pipe.scheduler.step = counted
    with StepClock(pipe) as clock:
        handle = pipe.transformer.register_forward_pre_hook(look, with_kwargs=True)
        try:
            pipe(PROMPTS, num_inference_steps=steps, output_type="latent", **options)
        finally:
            handle.remove()
            del pipe.scheduler.step
    return found


@pytest.mark.parametrize(
    ("kind", "here", "options"),
    [
        (CogView4, [("cond",), ("uncond",)], {}),
        (Lumina, [("cond", "uncond")], SIZE),
        (PixArt, [("uncond", "cond")], SIZE | {"use_resolution_binning": False}),
        (AuraFlow, [("uncond", "cond")], SIZE),
    ],
)
def test_steps_and_branches_are_those_of_the_call(made, kind, here, options):
    found = watched(made[kind], **options)
    assert [(step, branches) for step, branches, _, _ in found] == [(s, b) for s in range(3) for b in here]
    for step, branches, truth, taken in found:
        assert branches == truth and step == taken
    plain = watched(made[kind], guidance_scale=1.0, **options)
    assert [(step, branches, truth) for step, branches, truth, _ in plain] == [
        (s, ("cond",), ("cond",)) for s in range(3)
    ]


def test_steps_are_found_when_time_is_rounded():
    """bfloat16 holds 1000, 996, 992: at 60 steps with shift several entries of the list round to one time."""
    pipe = build(CogView4)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    steps: list[int] = []

    def rounded(module: Any, args: Any, kwargs: Any) -> Any:
        return args, kwargs | {"timestep": kwargs["timestep"].bfloat16()}

    with StepClock(pipe, lambda: steps.append(clock.step)) as clock:
        pipe.transformer.register_forward_pre_hook(rounded, with_kwargs=True, prepend=True)
        pipe(PROMPTS, num_inference_steps=60, guidance_scale=1.0, output_type="latent")
    assert steps == list(range(60))


@pytest.mark.parametrize("kind", [CogView4, Lumina])
def test_what_is_recorded_is_of_the_branch_it_is_stored_under(made, kind, tmp_path):
    pipe = made[kind]
    name = {CogView4: "transformer.transformer_blocks.0", Lumina: "transformer.layers.0"}[kind]
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    module: Any = Site(name).module(pipe)
    text: list[torch.Tensor] = []
    handles = [
        pipe.transformer.register_forward_pre_hook(
            lambda m, args, kwargs: text.append(kwargs["encoder_hidden_states"]), with_kwargs=True
        ),
        module.register_forward_hook(
            lambda m, args, output: seen.append((text[-1], output[0] if isinstance(output, tuple) else output))
        ),
    ]
    plan = CapturePlan.for_pipeline(
        pipe,
        name,
        PROMPTS * 2,
        steps=2,
        guidance=3.0,
        dtype="float32",
        batch_size=2,
        images=False,
        max_samples_per_shard=2,
    )
    generate(pipe, PROMPTS * 2, range(4), steps=2, guidance=3.0, batch_size=2)
    for handle in handles:
        handle.remove()
    by_hand = {branch: [] for branch in ("uncond", "cond")}
    for given, values in seen:
        for half, rows in zip(given.split(2), values.split(2), strict=True):
            by_hand[owner(half[0])].append(rows.numpy())
    store = collect(pipe, plan, tmp_path / "s")
    assert store.spec.branches == ("uncond", "cond") and store.complete
    found = store.site(f"{name}:out").read()  # (samples, steps, branches, tokens, channels)
    for k, branch in enumerate(store.spec.branches):
        for batch in range(2):
            for step in range(2):
                np.testing.assert_array_equal(
                    found[2 * batch : 2 * batch + 2, step, k], by_hand[branch][2 * batch + step]
                )
    patches = record_run(pipe, name, PROMPTS, [0, 1], steps=2, guidance=3.0)[Site(name)]
    for k, branch in enumerate(patches.branches):
        np.testing.assert_array_equal(patches.value[1, k].numpy(), by_hand[branch][1])


@pytest.mark.parametrize("kind", [CogView4, Lumina])
@pytest.mark.parametrize("branch", ["cond", "uncond"])
def test_an_edit_of_a_branch_leaves_the_other(made, kind, branch):
    pipe = made[kind]
    name = {CogView4: "transformer.transformer_blocks.0", Lumina: "transformer.layers.0"}[kind]
    d = pipe.transformer.config.get("hidden_size") or 8

    def first_step(edits: list[Intervention]) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}

        def keep(site: Site, step: int, branches: tuple[str, ...], rows: torch.Tensor, grid: Any) -> None:
            if step == 0:
                found.update(zip(branches, rows.clone().chunk(len(branches)), strict=True))

        with intervene(pipe, edits), Recorder(pipe, [Site(name)], keep):
            generate(pipe, PROMPTS, [0, 1], steps=1, guidance=3.0)
        return found

    push = torch.linspace(-1.0, 1.0, d)
    plain, edited = first_step([]), first_step([Intervention(name, AddDirection(push), branch=branch)])
    other = {"cond": "uncond", "uncond": "cond"}[branch]
    torch.testing.assert_close(edited[branch] - plain[branch], push.expand_as(plain[branch]), atol=1e-5, rtol=0)
    assert torch.equal(edited[other], plain[other])


def test_a_third_branch_is_refused():
    parts = build_tiny_pipeline().components
    pipe = StableDiffusionPAGPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    edit = Intervention("mid_block", AddDirection(torch.ones(16)), branch="cond")
    with intervene(pipe, edit):
        pipe("a red star", num_inference_steps=1, output_type="latent", pag_scale=0.0)
    with intervene(pipe, edit), pytest.raises(UnsupportedPipeline, match="a batch of 3 for 1 samples.*pag_scale=0"):
        pipe("a red star", num_inference_steps=1, output_type="latent")


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers' own, of numpy
@pytest.mark.parametrize("kind", [PNDMScheduler, HeunDiscreteScheduler])
def test_every_call_of_a_sampler_is_recorded(kind, tmp_path):
    pipe = build_tiny_pipeline()
    pipe.scheduler = kind(beta_schedule="scaled_linear", **({"skip_prk_steps": True} if kind is PNDMScheduler else {}))
    seen: list[np.ndarray] = []
    handle = pipe.unet.mid_block.register_forward_hook(
        lambda m, args, output: seen.append(output.unflatten(0, (2, 2)).flatten(3).transpose(2, 3).numpy())
    )
    generate(pipe, PROMPTS, [0, 1], steps=4, guidance=2.0)
    handle.remove()
    plan = CapturePlan.for_pipeline(pipe, "mid_block", PROMPTS, steps=4, guidance=2.0, dtype="float32", images=False)
    store = collect(pipe, plan, tmp_path / "s")
    assert store.spec.n_steps == len(seen) == {PNDMScheduler: 5, HeunDiscreteScheduler: 7}[kind]
    np.testing.assert_array_equal(store.site("unet.mid_block:out").read(), np.stack(seen).transpose(2, 0, 1, 3, 4))


def test_a_plan_records_the_branches_that_are_computed(made):
    pipe = made[CogView4]
    assert CapturePlan.for_pipeline(pipe, "norm_out", PROMPTS, guidance=3.0).branches == ("uncond", "cond")
    assert CapturePlan.for_pipeline(pipe, "norm_out", PROMPTS, guidance=1.0).branches == ("cond",)


def test_guidance_that_is_a_number_has_no_branch():
    parts = build_tiny_pipeline().components
    config = {key: value for key, value in parts["unet"].config.items() if not key.startswith("_")}
    unet = UNet2DConditionModel.from_config(config | {"time_cond_proj_dim": 8})
    parts |= {"unet": unet, "scheduler": LCMScheduler()}
    pipe = LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)
    assert CapturePlan.for_pipeline(pipe, "mid_block", PROMPTS, guidance=8.0).branches == ("cond",)


def test_pipelines_that_need_a_picture_are_refused_before_work(tmp_path):
    pipe = StableDiffusionImg2ImgPipeline(**build_tiny_pipeline().components, requires_safety_checker=False)
    with pytest.raises(UnsupportedPipeline, match=r"does not draw from a prompt alone \(it takes image\).*Text2Image"):
        CapturePlan.for_pipeline(pipe, "mid_block", PROMPTS)
