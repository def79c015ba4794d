"""Maps of words where text and picture share one softmax: tiny random SD3 and FLUX with text encoders of their kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusion3Pipeline,
)
from tiny_transformers import tiny_flux_transformer, tiny_sd3_transformer, tiny_vae
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from probe.errors import InvalidRequest, UnsupportedSite
from probe.lenses import attention_maps, cross_attention_sites, gradient_attention, word_positions
from probe.lenses.words import text_parts
from probe.model import denoiser, generate

PROMPTS = ["a red star", "a blue moon"]
CLIP, STEPS = 24, 2
WORDS = ("a", "red", "blue", "star", "moon")


def clip_tokenizer() -> Any:
    letters = sorted(set("".join(WORDS)))
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[], model_max_length=CLIP)


def t5_tokenizer() -> Any:
    """Words of a piece, but for "moon", which has two."""
    pieces = ["▁", "▁a", "▁red", "▁blue", "▁star", "▁mo", "on"]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -1.0) for piece in pieces)]
    return T5Tokenizer(vocab=vocab, extra_ids=0)


def clip_encoder(kind: Any, tokenizer: Any, width: int) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=CLIP, projection_dim=width, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return kind(config).eval().requires_grad_(False)


def t5_encoder(tokenizer: Any) -> Any:
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def sd3() -> StableDiffusion3Pipeline:
    transformer = tiny_sd3_transformer(
        sample_size=8, patch_size=2, num_layers=2, qk_norm="rms_norm", dual_attention_layers=(0,)
    )
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    encoders = [clip_encoder(CLIPTextModelWithProjection, clip, 8) for _ in range(2)]
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=tiny_vae(2, 0.1), text_encoder=encoders[0], tokenizer=clip, text_encoder_2=encoders[1], tokenizer_2=clip,
        text_encoder_3=t5_encoder(t5), tokenizer_3=t5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def flux() -> FluxPipeline:
    transformer = tiny_flux_transformer(8)
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), transformer=transformer,
        vae=tiny_vae(2, 0.1), text_encoder=clip_encoder(CLIPTextModel, clip, 8), tokenizer=clip,
        text_encoder_2=t5_encoder(t5), tokenizer_2=t5,
    )  # fmt: skip
    pipe.default_sample_size = 8
    return pipe


@pytest.fixture(params=["sd3", "flux"])
def pipe(request) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)


@contextmanager
def kernel_calls(pipe: Any) -> Iterator[list[torch.Tensor]]:
    """The maps (B, heads, sequence, sequence) of all attentions of the denoiser, from what its kernel is handed."""
    found: list[torch.Tensor] = []
    inside, kernel, module = [False], torch.nn.functional.scaled_dot_product_attention, denoiser(pipe)[1]

    def watched(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if inside[0]:
            found.append((query.double() @ key.double().mT / query.shape[-1] ** 0.5).softmax(-1))
        return kernel(query, key, *args, **kwargs)

    handles = [
        module.register_forward_pre_hook(lambda *_: inside.__setitem__(0, True)),
        module.register_forward_hook(lambda *_: inside.__setitem__(0, False)),
    ]
    torch.nn.functional.scaled_dot_product_attention = watched
    try:
        yield found
    finally:
        torch.nn.functional.scaled_dot_product_attention = kernel
        for handle in handles:
            handle.remove()


def test_maps_are_the_block_of_the_kernels_softmax(pipe):
    """SD3 puts the picture first and has an attention of the picture alone beside; FLUX puts the text first."""
    plain = generate(pipe, PROMPTS, [0, 1], steps=STEPS, guidance=2.0)
    with kernel_calls(pipe) as calls:
        found = attention_maps(pipe, PROMPTS, None, seeds=[0, 1], steps=STEPS, guidance=2.0)
    assert np.array_equal(found.images, plain)
    cells, sd3 = 16, isinstance(pipe, StableDiffusion3Pipeline)
    n_text = found.maps[next(iter(found.maps))].shape[2]
    assert n_text == (CLIP + 256 if sd3 else 512)
    joint = [m for m in calls if m.shape[-1] == cells + n_text]
    assert len(calls) - len(joint) == (STEPS if sd3 else 0) and len(joint) == STEPS * len(found.maps) == 2 * STEPS
    for number, maps in enumerate(found.maps.values()):
        for step in range(STEPS):
            whole = joint[step * len(found.maps) + number][
                -2:
            ]  # the prompt's branch is the second half, if there are two
            block = whole[:, :, :cells, cells:] if sd3 else whole[:, :, n_text:, :n_text]
            expected = block.permute(0, 3, 1, 2).unflatten(-1, (4, 4))
            np.testing.assert_allclose(maps[step], expected.numpy(), atol=1e-6)
        share = maps.sum(2)
        assert (share > 0.5).all() and (share < 1 - 1e-3).all()  # the rest is the cells'


def test_a_words_tokens_are_those_that_change_with_the_word(pipe):
    """With text encoders that do not mix tokens, a row of the denoiser's text changes only if its token does."""
    before = []
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        for key, weight in getattr(pipe, name, torch.nn.Module()).named_parameters():
            if key.endswith(("out_proj.weight", "out_proj.bias", "SelfAttention.o.weight")):
                before.append((weight, weight.clone()))
                weight.zero_()
    texts = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: texts.append(kwargs["encoder_hidden_states"][-1]), with_kwargs=True
    )
    try:
        for prompt in ("a red star", "a red moon", "a blue star"):
            pipe(prompt, num_inference_steps=1, guidance_scale=2.0, output_type="latent")
    finally:
        handle.remove()
        for weight, value in before:
            weight.copy_(value)
    star = set(word_positions(pipe, "a red star", "star"))
    moon = set(word_positions(pipe, "a red moon", "moon"))
    changed = set((texts[0] != texts[1]).any(-1).nonzero().flatten().tolist())
    first = {CLIP + 2} if isinstance(pipe, StableDiffusion3Pipeline) else {2}  # T5's star, the first piece of its moon
    assert first <= star & moon
    # The end mark moves by one where the word has another number of pieces.
    assert changed == star | moon | {max(moon) + 1}
    red = set(word_positions(pipe, "a red star", "red"))
    changed = (texts[0] != texts[2]).any(-1).nonzero().flatten().tolist()
    t5 = [i for i in changed if i >= min(first)]
    assert t5 == [i for i in red if i >= min(first)]  # in T5 each colour is one piece


def test_the_parts_of_the_text(sd3, flux):
    assert [part[1:] for part in text_parts(sd3)] == [(0, CLIP), (0, CLIP), (CLIP, 256)]
    assert [part[1:] for part in text_parts(flux)] == [(0, 512)]
    assert word_positions(sd3, "a red star", "star") == (5, 6, 7, 8, CLIP + 2)
    assert word_positions(flux, "a blue moon", "blue moon") == (1, 2, 3)
    long = "a " * 30 + "star"  # behind what CLIP reads, not behind what T5 reads
    assert word_positions(sd3, long, "star") == (CLIP + 30,)
    with pytest.raises(InvalidRequest, match="'moon' does not occur"):
        word_positions(flux, "a red star", "moon")
    t5, sd3.text_encoder_3 = sd3.text_encoder_3, None
    try:  # the pipeline puts zeros where T5's tokens were
        assert word_positions(sd3, "a red star", "star") == (5, 6, 7, 8)
    finally:
        sd3.text_encoder_3 = t5


def test_words_on_given_images(pipe, images):
    found = attention_maps(pipe, PROMPTS, [["star"], ["moon"]], images=images, log_snr=[0.0, 2.0])
    tokens = attention_maps(pipe, PROMPTS, None, images=images, log_snr=[0.0, 2.0])
    assert found.heat().shape == (2, 1, 4, 4)
    for site, maps in found.maps.items():
        for i, word in enumerate(("star", "moon")):
            places = list(word_positions(pipe, PROMPTS[i], word))
            np.testing.assert_allclose(maps[:, i, 0], tokens.maps[site][:, i, places].sum(1), atol=1e-6)


def test_the_slope_of_the_score_is_that_of_the_map(pipe, images):
    """dS/dP by central differences, at each joint attention's largest slope."""
    from probe.lenses.gradient_attention import _slopes
    from probe.lenses.noised import NoisedImages
    from probe.lenses.reading import add_values, running_call, text_map

    (batch,) = NoisedImages(pipe, images[:1], PROMPTS[:1], [0.0])
    with torch.no_grad():
        plain = batch.eps()
    sites = cross_attention_sites(pipe)
    for site, (_, slope) in _slopes(pipe, sites, batch, None).items():
        at = np.unravel_index(int(slope.abs().argmax()), slope.shape)

        def score(change: float, site=site, at=at, slope=slope) -> float:
            def hook(attn, args, kwargs, output):
                _, value = text_map(attn, args, kwargs, now.n_text)
                moved = torch.zeros_like(slope)
                moved[at] = change
                return add_values(attn, output, moved @ value, now.n_text)

            with running_call(pipe) as now, torch.no_grad():
                handle = site.module(pipe).register_forward_hook(hook, with_kwargs=True)
                eps = batch.eps().double()
                handle.remove()
            if change == 0:
                torch.testing.assert_close(eps, plain.double(), atol=0, rtol=0)
            return float(-0.5 * (eps - batch.noise.double()).square().sum())

        score(0.0)
        assert score(0.5) - score(-0.5) == pytest.approx(float(slope[at]), rel=0.05)
    found = gradient_attention(pipe, PROMPTS[:1], ["star"], images[:1], [0.0])
    assert found.heat().shape == (1, 1, 4, 4) and found.heat().max() > 0


def test_what_has_no_such_map_is_told(sd3, flux):
    with pytest.raises(UnsupportedSite, match="or a joint attention"):
        attention_maps(sd3, PROMPTS, ["a"], seeds=[0, 1], sites="transformer_blocks.0.attn2")  # the picture's own
    flux.transformer.fuse_qkv_projections()
    try:
        with pytest.raises(UnsupportedSite, match="fused; call unfuse_qkv_projections"):
            attention_maps(flux, PROMPTS, ["a"], seeds=[0, 1], steps=1)
    finally:
        flux.transformer.unfuse_qkv_projections()
