"""Tracing, drift, the text lens, inversion and classification: what patched and inverted runs must be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from intervention_world import gaussian_pipe

from probe.errors import InvalidRequest, UnsupportedPipeline
from probe.interventions import Intervention, intervene, record_run, text_embedding
from probe.lenses import (
    TextLens,
    classify_images,
    drift,
    encoder_layers,
    invert_images,
    text_lens,
    trace,
    without_layers,
)
from probe.lenses.drift import linear_cka, step_cosines
from probe.lenses.inversion import decode
from probe.lenses.tracing import corrupted_prompts
from probe.model import generate

STEPS, GUIDANCE = 3, 2.0
CLEAN, OTHER = ["a red star", "a blue star"], ["a green cup", "the neon moon"]
SEEDS = [3, 4]
RUN = {"steps": STEPS, "guidance": GUIDANCE}


@pytest.mark.parametrize("corruption", [OTHER, 3.0], ids=["prompts", "noise"])
def test_the_output_restored_at_all_steps_is_the_clean_image(tiny_pipe, corruption):
    """conv_out is all that the sampler sees of the denoiser, so restoring it restores everything."""
    found = trace(tiny_pipe, CLEAN, corruption, SEEDS, ["conv_out", "mid_block"], windows=[range(STEPS), [0]], **RUN)
    assert np.array_equal(found.effect[0, 0], [1.0, 1.0])  # exactly, pixel by pixel
    assert (found.null[0, 0] < 1).all() and (found.corrupted < 0).all() and not found.clean.any()
    assert (found.effect[1] < 1).all()
    assert np.array_equal(found.images[0], generate(tiny_pipe, CLEAN, SEEDS, batch_size=2, **RUN))


def test_restoring_nothing_is_the_corrupted_run_and_patching_into_the_clean_one_mirrors(tiny_pipe):
    plain = generate(tiny_pipe, OTHER, SEEDS, batch_size=2, **RUN)
    values = record_run(tiny_pipe, ["conv_out"], CLEAN, SEEDS, **RUN)
    with corrupted_prompts(tiny_pipe, CLEAN, OTHER) as given:
        (site,) = values
        nothing = Intervention(site, values[site], strength=0.0)
        assert np.array_equal(generate(tiny_pipe, given, SEEDS, batch_size=2, interventions=[nothing], **RUN), plain)
    back = trace(tiny_pipe, CLEAN, OTHER, SEEDS, "conv_out", windows=[range(STEPS)], into="clean", **RUN)
    assert np.array_equal(back.effect[0, 0], [1.0, 1.0])  # nothing of the clean image is left
    assert np.array_equal(back.images[1], plain)


def test_a_measure_of_ones_own_and_hopeless_samples(tiny_pipe):
    """Brightness as the measure; a sample whose corruption is no corruption has no effect to speak of."""
    found = trace(
        tiny_pipe,
        CLEAN,
        [OTHER[0], CLEAN[1]],
        SEEDS,
        "conv_out",
        windows=[range(STEPS)],
        measure=lambda images: images.mean((1, 2, 3)),
        **RUN,
    )
    assert found.effect[0, 0, 0] == pytest.approx(1.0) and np.isnan(found.effect[0, 0, 1])
    assert found.mean().shape == (1, 1) and np.isfinite(found.mean(over_null=True)).all()
    with pytest.raises(InvalidRequest, match="one or more, a seed each"):
        trace(tiny_pipe, CLEAN, OTHER, [0], "mid_block", **RUN)
    with pytest.raises(InvalidRequest, match="expected steps from 0 to 2"):
        trace(tiny_pipe, CLEAN, OTHER, SEEDS, "mid_block", windows=[[3]], **RUN)


@pytest.mark.parametrize("into", ["corrupted", "clean"])
def test_the_null_is_of_a_prompt_of_its_own(tiny_pipe, into):
    """At conv_out over all steps a patch draws exactly what it was taken from, so the null is that of its images."""

    def bright(images: np.ndarray) -> np.ndarray:
        return images.mean((1, 2, 3))

    same = {"prompts": [CLEAN[0]] * 2, "corruption": [OTHER[0]] * 2, "seeds": SEEDS, "sites": "conv_out", "into": into}
    given = ["a green moon"] * 2
    found = trace(tiny_pipe, **same, windows=[range(STEPS)], null=given, measure=bright, **RUN)
    images = generate(tiny_pipe, given, SEEDS, batch_size=2, **RUN)
    base, other = (found.corrupted, found.clean) if into == "corrupted" else (found.clean, found.corrupted)
    np.testing.assert_allclose(found.null[0, 0], (bright(images) - base) / (other - base))
    for null in (None, [*given[:1], same["prompts"][0] if into == "corrupted" else OTHER[0]], given[:1]):
        with pytest.raises(InvalidRequest, match="expected another prompt for each sample"):
            trace(tiny_pipe, **same, null=null, **RUN)


def test_likeness_of_steps():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=rng)
    turned = x @ torch.linalg.qr(torch.randn(5, 5, generator=rng))[0]
    other = torch.randn(40, 5, generator=rng)
    cka = linear_cka(torch.stack([x, 3.0 * turned + 1.0, other]))
    torch.testing.assert_close(cka.diagonal(), torch.ones(3, dtype=torch.float64))
    assert float(cka[0, 1]) == pytest.approx(1.0) and float(cka[0, 2]) < 0.4
    rows = torch.stack([x, -2.0 * x, turned])[:, None]
    cosine = step_cosines(rows)[0]
    assert float(cosine[0, 0]) == pytest.approx(1.0) and float(cosine[0, 1]) == pytest.approx(-1.0)
    assert abs(float(cosine[0, 2])) < 0.9
    # With several tokens the mean over tokens is taken, not the product over all.
    two = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]], [[[1.0, 0.0], [1.0, 0.0]]]])
    torch.testing.assert_close(step_cosines(two)[0], torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64))


def test_drift_of_a_generation(tiny_pipe):
    found = drift(tiny_pipe, ["mid_block", "conv_out"], CLEAN, SEEDS, **RUN)
    rows = record_run(tiny_pipe, "mid_block", CLEAN, SEEDS, **RUN)
    (patch,) = rows.values()
    a, b = patch.value[0, 1, 0].double(), patch.value[2, 1, 0].double()
    expected = torch.nn.functional.cosine_similarity(a, b, dim=1).mean()
    assert found.cosine["unet.mid_block:out"][0, 0, 2] == pytest.approx(float(expected))
    assert found.between_neighbours()["unet.conv_out:out"].shape == (2, STEPS - 1)
    assert found.cka["unet.conv_out:out"].shape == (STEPS, STEPS) and len(found.timesteps) == STEPS
    with pytest.raises(InvalidRequest, match="computes cond"):
        drift(tiny_pipe, "mid_block", CLEAN, SEEDS, steps=2, guidance=1.0, branch="uncond")


def test_the_last_layer_is_the_whole_encoder_and_the_first_the_tokens_alone(tiny_pipe):
    assert encoder_layers(tiny_pipe) == ["text_encoder.encoder.layers.0"]
    found = text_lens(tiny_pipe, CLEAN, SEEDS, batch_size=2, **RUN)
    assert found.layers == (0, 1) and found.n_layers == 1
    assert np.array_equal(found.images[1], generate(tiny_pipe, CLEAN, SEEDS, batch_size=2, **RUN))
    assert not np.array_equal(found.images[0], found.images[1])
    encoder = tiny_pipe.text_encoder
    ids = tiny_pipe.tokenizer(CLEAN[0], padding="max_length", max_length=32, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = encoder.final_layer_norm(encoder.embeddings(ids))[0]
    edits = without_layers(tiny_pipe, encoder_layers(tiny_pipe))
    with intervene(tiny_pipe, edits):
        torch.testing.assert_close(text_embedding(tiny_pipe, CLEAN[0]), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(InvalidRequest, match="has layers 0 to 1"):
        text_lens(tiny_pipe, CLEAN, SEEDS, layers=[2])
    with pytest.raises(UnsupportedPipeline, match="no 'text_encoder_2'"):
        text_lens(tiny_pipe, CLEAN, SEEDS, encoder="text_encoder_2")


def test_the_first_layer_is_that_from_which_on_it_is_seen():
    seen = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [1, 1, 0, 1]], bool)
    lens = TextLens((0, 2, 5), 5, ("",) * 4, (0,) * 4, np.zeros((3, 4, 1, 1, 3), np.uint8))
    np.testing.assert_array_equal(lens.first_layer(seen), [5.0, 2.0, np.nan, 0.0])
    with pytest.raises(InvalidRequest, match="answers"):
        lens.first_layer(seen[:2])


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)


def test_edit_friendly_inversion_returns_to_the_image(tiny_pipe, images):
    found = invert_images(tiny_pipe, images, CLEAN, steps=6, guidance=GUIDANCE)
    assert (found.state_error < 1e-5).all()
    np.testing.assert_array_equal(found.draw(tiny_pipe), found.images)
    np.testing.assert_array_equal(decode(tiny_pipe, found.drawn), found.images)
    assert not np.array_equal(found.draw(tiny_pipe, OTHER), found.images)
    assert found.pixel_error.shape == found.codec_error.shape == (2,)


def test_ddim_inversion_gets_better_with_steps():
    """On an exact denoiser the error is that of Euler steps, so four times the steps leave about a quarter."""
    pipe = gaussian_pipe()
    small = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    errors = [invert_images(pipe, small, CLEAN, method="ddim", steps=steps).state_error.mean() for steps in (10, 40)]
    assert 0.15 < errors[1] / errors[0] < 0.35 and errors[1] < 0.1


def test_inversion_checks_its_input(tiny_pipe, images):
    with pytest.raises(InvalidRequest, match="Use an eta below 1"):
        invert_images(tiny_pipe, images, CLEAN, eta=1.0, steps=4)  # the tiny schedule begins with pure noise
    with pytest.raises(InvalidRequest, match="method 'magic'"):
        invert_images(tiny_pipe, images, CLEAN, method="magic")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="2 images but 1 prompts"):
        invert_images(tiny_pipe, images, CLEAN[:1])


def test_decoding_is_the_pipelines_own(tiny_pipe):
    drawn = generate(tiny_pipe, CLEAN, SEEDS, batch_size=2, **RUN)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    latents = tiny_pipe(
        CLEAN, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators, output_type="latent"
    ).images
    np.testing.assert_array_equal(decode(tiny_pipe, latents), drawn)


def test_the_classifier_shares_its_noise(tiny_pipe, images):
    """Two classes with one prompt are equally probable whatever the noise; the order of classes does not matter."""
    same = classify_images(tiny_pipe, images, {"one": CLEAN[0], "two": CLEAN[0]}, nodes=2)
    np.testing.assert_allclose(same.posterior, 0.5, atol=1e-6)
    a = classify_images(tiny_pipe, images, {"star": CLEAN[0], "cup": OTHER[0]}, nodes=2)
    b = classify_images(tiny_pipe, images, {"cup": OTHER[0], "star": CLEAN[0]}, nodes=2)
    np.testing.assert_allclose(a.posterior, b.posterior[:, ::-1], rtol=1e-4)
