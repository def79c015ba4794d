"""Maps of words: they sum to one, change nothing, and are what the model attends to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from probe.errors import InvalidRequest, UnsupportedSite
from probe.interventions.attention import attention_map
from probe.lenses import NoisedImages, attention_maps, cross_attention_sites, gradient_attention, word_positions
from probe.lenses.reading import query_grid
from probe.model import generate

PROMPTS = ["a red star", "a blue cup in neon style"]
STEPS, GUIDANCE = 3, 2.0
ATTN = "unet.up_blocks.0.attentions.0.transformer_blocks.0.attn2"


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)


def test_words_are_found_among_tokens(tiny_pipe):
    # The tiny tokenizer has a token a letter: <start> a r e d s t a r <end>.
    assert word_positions(tiny_pipe, "a red star", "star") == (5, 6, 7, 8)
    assert word_positions(tiny_pipe, "a red star", "red star") == (2, 3, 4, 5, 6, 7, 8)
    assert word_positions(tiny_pipe, "red cup red", "red") == (1, 2, 3, 7, 8, 9)
    with pytest.raises(InvalidRequest, match="'moon' does not occur in the prompt 'a red star'"):
        word_positions(tiny_pipe, "a red star", "moon")


def test_maps_sum_to_one_over_tokens_and_leave_the_image_as_it_is(tiny_pipe):
    plain = generate(tiny_pipe, PROMPTS, [0, 1], steps=STEPS, guidance=GUIDANCE, batch_size=1)
    found = attention_maps(tiny_pipe, PROMPTS, None, seeds=[0, 1], steps=STEPS, guidance=GUIDANCE, batch_size=1)
    assert np.array_equal(found.images, plain)
    assert set(found.maps) == {f"{site.path}:probs" for site in cross_attention_sites(tiny_pipe)}
    for maps in found.maps.values():
        assert maps.shape[:3] == (STEPS, 2, 32)
        np.testing.assert_allclose(maps.sum(2), 1.0, atol=1e-5)
    for side in (None, 3, 16):
        np.testing.assert_allclose(found.heat(side=side).sum(1), 1.0, atol=1e-5)
    np.testing.assert_allclose(sum(m.sum(2).mean() for m in found.mass().values()), len(found.maps), rtol=1e-5)


def test_a_word_is_the_sum_of_its_tokens_on_the_prompts_branch(tiny_pipe):
    all_tokens = attention_maps(tiny_pipe, PROMPTS, None, seeds=[0, 1], steps=STEPS, guidance=GUIDANCE)
    found = attention_maps(tiny_pipe, PROMPTS, [["star"], ["cup"]], seeds=[0, 1], steps=STEPS, guidance=GUIDANCE)
    for site, maps in found.maps.items():
        for i, word in enumerate(("star", "cup")):
            places = list(word_positions(tiny_pipe, PROMPTS[i], word))
            np.testing.assert_allclose(maps[:, i, 0], all_tokens.maps[site][:, i, places].sum(1), atol=1e-6)
    # Another negative prompt would change only the other branch, so one prompt drawn alone has the same first map.
    alone = attention_maps(tiny_pipe, PROMPTS[:1], ["star"], seeds=[0], steps=STEPS, guidance=1.0)
    for site, maps in alone.maps.items():
        np.testing.assert_allclose(maps[0, 0], found.maps[site][0, 0], atol=1e-5)


def test_maps_are_those_of_the_attention_itself(tiny_pipe, images):
    """With the plain kernel put in, which does make its map, at the same noised images."""
    seen: dict[str, torch.Tensor] = {}

    class Watched(AttnProcessor):
        def __call__(self, attn, hidden_states, *args, **kwargs):
            probs, _ = attention_map(attn, hidden_states, *args, **kwargs)
            value = attn.to_v(kwargs.get("encoder_hidden_states", args[0] if args else hidden_states))
            seen["out"] = (probs @ value.unflatten(2, (attn.heads, -1)).transpose(1, 2)).transpose(1, 2).flatten(2)
            seen["probs"] = probs
            return super().__call__(attn, hidden_states, *args, **kwargs)

    found = attention_maps(tiny_pipe, PROMPTS, None, images=images, log_snr=[0.0], sites=ATTN)
    module = tiny_pipe.unet.get_submodule(ATTN.removeprefix("unet."))
    before = module.processor
    module.set_processor(Watched())
    try:
        outputs: list[torch.Tensor] = []
        handle = module.to_out[0].register_forward_hook(lambda m, args, output: outputs.append(args[0]))
        (batch,) = NoisedImages(tiny_pipe, images, PROMPTS, [0.0])
        with torch.no_grad():
            batch.run()
        handle.remove()
    finally:
        module.set_processor(before)
    torch.testing.assert_close(seen["out"], outputs[0], atol=1e-5, rtol=1e-4)  # the map explains the real output
    expected = seen["probs"].permute(0, 3, 1, 2).unflatten(-1, (4, 4))
    torch.testing.assert_close(torch.from_numpy(found.maps[f"{ATTN}:probs"][0]), expected, atol=1e-5, rtol=1e-4)


def test_the_slope_of_the_score_is_that_of_the_map(tiny_pipe, images):
    """dS/dP by central differences through the attention edit, at the map's largest product."""
    from probe.lenses.gradient_attention import _slopes

    (batch,) = NoisedImages(tiny_pipe, images[:1], PROMPTS[:1], [0.0])
    (site,) = cross_attention_sites(tiny_pipe, ATTN)
    with torch.no_grad():
        plain = batch.eps()
    probs, slope = _slopes(tiny_pipe, [site], batch, None)[site]
    at = np.unravel_index(int(slope.abs().argmax()), slope.shape)
    module = site.module(tiny_pipe)

    def score(change: float) -> float:
        def hook(attn, args, kwargs, output):
            _, value = attention_map(attn, *args, **kwargs)
            moved = torch.zeros_like(probs)
            moved[at] = change
            return output + torch.nn.functional.linear(
                (moved @ value).transpose(1, 2).flatten(2), attn.to_out[0].weight
            )

        handle = module.register_forward_hook(hook, with_kwargs=True)
        with torch.no_grad():
            eps = batch.eps().double()
        handle.remove()
        if change == 0:
            torch.testing.assert_close(eps, plain.double(), atol=0, rtol=0)
        return float(-0.5 * (eps - batch.noise.double()).square().sum())

    score(0.0)
    measured = (score(0.5) - score(-0.5)) / 1.0
    assert measured == pytest.approx(float(slope[at]), rel=0.05)
    found = gradient_attention(tiny_pipe, PROMPTS[:1], ["star"], images[:1], [0.0], sites=ATTN)
    (maps,) = found.maps.values()
    words = list(word_positions(tiny_pipe, PROMPTS[0], "star"))
    expected = (probs * slope).clamp_min(0)[0][:, :, words].sum(-1).unflatten(-1, (4, 4))
    np.testing.assert_allclose(maps[0, 0, 0], expected.numpy(), atol=1e-7, rtol=1e-4)


def test_a_score_that_ignores_the_prediction_has_no_map(tiny_pipe, images):
    found = gradient_attention(
        tiny_pipe, PROMPTS, [["star"], ["cup"]], images, [1.0, -1.0], score=lambda x0: (x0 * 0).sum((1, 2, 3))
    )
    assert all(maps.shape[0] == 2 and not maps.any() for maps in found.maps.values())


@pytest.mark.parametrize(
    ("queries", "sample", "grid"), [(64, (8, 8), (8, 8)), (8, (8, 16), (2, 4)), (6, (4, 6), (2, 3))]
)
def test_the_grid_of_a_map(queries, sample, grid):
    assert query_grid(queries, sample) == grid


def test_mistakes_are_told_before_work(tiny_pipe, images):
    with pytest.raises(InvalidRequest, match="give seeds to draw samples, or images and log_snr"):
        attention_maps(tiny_pipe, PROMPTS, ["a"], images=images)
    with pytest.raises(InvalidRequest, match="'moon' does not occur"):
        attention_maps(tiny_pipe, PROMPTS, ["moon"], seeds=[0, 1])
    with pytest.raises(InvalidRequest, match="equally many for each"):
        attention_maps(tiny_pipe, PROMPTS, [["red"]], seeds=[0, 1])
    with pytest.raises(UnsupportedSite, match="expected a plain cross-attention"):
        attention_maps(tiny_pipe, PROMPTS, ["a"], seeds=[0, 1], sites="mid_block")
    with pytest.raises(UnsupportedSite, match="no picture of the proportions"):
        query_grid(7, (8, 8))
    with pytest.raises(InvalidRequest, match="expected uint8"):
        attention_maps(tiny_pipe, PROMPTS, ["a"], images=images.astype(float), log_snr=[0.0])
