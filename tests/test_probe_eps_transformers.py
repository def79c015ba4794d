"""probe.model: transformers with flow matching behind ``PipelineEps``: plain maps (SD3) and packed ones (FLUX)."""

from __future__ import annotations

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

from probe.directions import trajectory
from probe.directions.points import Point, jacobian
from probe.model import PipelineEps, x0_hat
from probe.model.packing import Packing


def embedding(text: str, *shape: int) -> torch.Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(sum(map(ord, text))))


def texts(prompt: Any) -> list[str]:
    return [prompt] if isinstance(prompt, str) else list(prompt)


class TinyFlux(FluxPipeline):
    """FLUX without text encoders: an embedding of each prompt is drawn."""

    def encode_prompt(self, prompt: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        embeds = torch.cat([embedding(p, 5, 16) for p in texts(prompt)])
        pooled = torch.cat([embedding(p, 16) for p in texts(prompt)])
        return embeds, pooled, torch.zeros(5, 3)


class TinySD3(StableDiffusion3Pipeline):
    """Stable Diffusion 3 without text encoders."""

    def encode_prompt(self, prompt: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        negative = ["none"] * len(texts(prompt))
        found = [torch.cat([embedding(p, *s) for p in t]) for s in ((5, 16), (16,)) for t in (texts(prompt), negative)]
        return tuple(found)


@pytest.fixture(scope="module")
def flux() -> TinyFlux:
    none: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = TinyFlux(
        scheduler=FlowMatchEulerDiscreteScheduler(), transformer=tiny_flux_transformer(16), vae=tiny_vae(4, 0.0), **none
    )
    pipe.default_sample_size = 6
    return pipe


@pytest.fixture(scope="module")
def sd3() -> TinySD3:
    transformer = tiny_sd3_transformer(sample_size=4, patch_size=1, num_layers=1)
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    none: dict[str, Any] = dict.fromkeys(names)
    pipe = TinySD3(scheduler=FlowMatchEulerDiscreteScheduler(), transformer=transformer, vae=tiny_vae(4, 0.0), **none)
    pipe.default_sample_size = 4
    return pipe


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (4, 2)])
def test_packing_is_that_of_the_pipeline_and_is_undone(shape):
    rows, columns = shape
    x = torch.randn(2, 4, 2 * rows, 2 * columns)
    theirs = FluxPipeline._pack_latents(x, 2, 4, 2 * rows, 2 * columns)
    ids = FluxPipeline._prepare_latent_image_ids(2, rows, columns, torch.device("cpu"), torch.float32)
    packing = Packing.of(theirs, ids)
    assert packing is not None and packing == Packing(rows, columns)
    assert torch.equal(packing.pack(x), theirs) and torch.equal(packing.unpack(theirs), x)


def test_ids_of_something_else_are_no_packing():
    tokens, ids = torch.zeros(1, 4, 16), torch.cartesian_prod(torch.zeros(1), torch.arange(2.0), torch.arange(2.0))
    assert Packing.of(tokens, ids) == Packing(2, 2)
    assert Packing.of(tokens, None) is None and Packing.of(tokens, ids.flip(0)) is None
    assert Packing.of(torch.zeros(1, 5, 16), ids) is None and Packing.of(torch.zeros(1, 4, 15), ids) is None


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_flow_models_predict_what_their_own_call_does(name, request):
    """eps from a call of ours and from the denoiser's input and output in the pipeline's own generation."""
    pipe = request.getfixturevalue(name)
    model = PipelineEps(pipe)
    assert model.sample_shape == {"flux": (4, 6, 6), "sd3": (4, 4, 4)}[name] and model.kind == "flow_prediction"
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        seen.append((kwargs["hidden_states"].clone(), output[0].clone()))

    handle = pipe.transformer.register_forward_hook(keep, with_kwargs=True)
    try:
        pipe("a red star", num_inference_steps=3, guidance_scale=1.0, output_type="latent")
    finally:
        handle.remove()
    times = [float(t) for t in pipe.scheduler.timesteps]
    for (x, velocity), t in list(zip(seen, times, strict=True))[1:]:
        s = t / 1000
        z, a = model.from_model_scale(model.from_rows(x) if x.ndim == 3 else x, t)
        own, v = (part if part.ndim == 4 else FluxPipeline._unpack_latents(part, 48, 48, 8) for part in (x, velocity))
        torch.testing.assert_close(z, own / np.hypot(1 - s, s))
        expected = own + (1 - s) * v  # n = z_flow + (1 - s) (n - x)
        with torch.no_grad():
            torch.testing.assert_close(model.eps(z, a, "a red star"), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_rows_of_a_batch_do_not_touch_each_other(name, request):
    model = PipelineEps(request.getfixturevalue(name))
    z = torch.randn(3, *model.sample_shape, generator=torch.Generator().manual_seed(1))
    conds, levels = ["a red star", None, "a blue cup"], torch.tensor([-1.0, 0.5, 2.0])
    with torch.no_grad():
        together = model.eps(z, levels, conds)
        alone = [model.eps(z[i : i + 1], float(levels[i]), conds[i]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], model.eps(z[:1], -1.0, "a blue cup"))


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_directions_reach_transformers(name, request):
    model = PipelineEps(request.getfixturevalue(name))
    points = trajectory(model, "a red star", 0, steps=3)
    assert [tuple(p.z.shape[1:]) for p in points] == [model.sample_shape] * 3
    point = Point(points[1].z, points[1].log_snr, "a red star")
    op = jacobian(model, point, batch=2)
    assert op.in_shape == model.sample_shape
    v = torch.randn(2, op.n_in, generator=torch.Generator().manual_seed(2))
    u = torch.randn(2, op.n_out, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close((op.vjp(u) * v).sum(1), (op.jvp(v) * u).sum(1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(op.value, x0_hat(model, point.z, point.log_snr, "a red star"), rtol=1e-4, atol=1e-4)
