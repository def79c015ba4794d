"""probe.model: one interface to denoisers, closed forms against their own densities, pipelines against closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_tiny_pipeline
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from scipy.special import iv
from seeded import SEEDS, gen, normal

from probe.errors import InvalidRequest
from probe.model import PipelineEps, noised, schedule, score, x0_hat
from probe.model.analytic import Gaussian, GaussianMixture, LowRankMixture, Sphere
from probe.model.analytic.sphere import mean_resultant

LEVELS = [-6.0, -1.0, 0.5, 4.0]


def covariance(seed: int, d: int) -> torch.Tensor:
    a = normal(seed, d, d)
    return a @ a.T / d


def mixture(seed: int, k: int = 3, d: int = 4) -> GaussianMixture:
    return GaussianMixture(
        2 * normal(seed, k, d), torch.stack([covariance(seed + 10 + i, d) for i in range(k)]), [1.0, 2.0, 3.0][:k]
    )


# Closed forms against their own densities


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("a", LEVELS)
def test_eps_is_the_gradient_of_the_log_density(seed, a):
    model = mixture(seed)
    z = normal(seed + 50, 6, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_density(z, a).sum(), z)
    torch.testing.assert_close(score(model, z, a), gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_condition_leaves_its_component_and_the_posterior_mixes_them(seed):
    model = mixture(seed)
    z, a = normal(seed, 5, 4), 0.3
    each = torch.stack([Gaussian(m, c).eps(z, a) for m, c in zip(model.means, model.covariances, strict=True)], 1)
    for k in range(3):
        torch.testing.assert_close(model.eps(z, a, k), each[:, k])
    mixed = (model.label_posterior(z, a)[..., None] * each).sum(1)
    torch.testing.assert_close(model.eps(z, a), mixed)
    together = model.eps(z, a, [0, None, 2, 1, None])
    torch.testing.assert_close(together, torch.stack([each[0, 0], mixed[1], each[2, 2], each[3, 1], mixed[4]]))


@pytest.mark.parametrize("seed", SEEDS)
def test_samples_have_the_moments_and_levels_may_differ_by_row(seed):
    model = mixture(seed)
    x, labels = model.sample(40_000, gen(seed))
    for k in range(3):
        part = x[labels == k]
        assert abs(len(part) / len(x) - float(model.weights[k])) < 0.015
        assert (part.mean(0) - model.means[k]).abs().max() < 0.1
        assert (torch.cov(part.T) - model.covariances[k]).abs().max() < 0.15
    z, a = normal(seed, 4, 4), torch.tensor([-2.0, 0.0, 1.0, 5.0])
    rows = torch.cat([model.eps(z[i : i + 1], float(a[i])) for i in range(4)])
    torch.testing.assert_close(model.eps(z, a), rows)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("a", LEVELS)
def test_v21_jacobian_of_x0_is_the_posterior_covariance(seed, a):
    """d x0hat / d z = alpha / sigma^2 Cov(x | z): symmetric, positive, to 1e-9."""
    for model in (mixture(seed), Gaussian(normal(seed, 4), covariance(seed, 4))):
        z = normal(seed + 7, 1, 4)
        j = torch.autograd.functional.jacobian(lambda y, m=model: x0_hat(m, y[None], a)[0], z[0])
        factor = math.sqrt(1 / (1 + math.exp(-a))) * (1 + math.exp(a))
        exact = factor * model.covariance_given(z, a)[0]
        assert (j - j.T).norm() / j.norm() < 1e-9
        assert (j - exact).norm() / exact.norm() < 1e-9
        assert torch.linalg.eigvalsh((j + j.T) / 2).min() > 0


def test_gaussian_density_and_entropy():
    model = Gaussian(normal(0, 3), covariance(1, 3))
    x = model.sample(20_000, gen(2))
    assert abs(float(-model.log_density(x).mean()) - model.entropy()) < 0.05
    flat = Gaussian.linear_manifold(torch.eye(5, 2), 2.0)
    assert (flat.sample(10, gen(0))[:, 2:] == 0).all()
    with pytest.raises(InvalidRequest, match="singular"):
        flat.entropy()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("a", [-2.0, 1.0])
def test_sphere_has_the_posterior_mean_of_its_samples(seed, a):
    basis = torch.linalg.qr(normal(seed, 5, 3)).Q
    model = Sphere(basis, 1.5)
    x = model.sample(200_000, gen(seed))
    z = noised(x[:3], normal(seed + 1, 3, 5), a)
    alpha, sigma = math.sqrt(1 / (1 + math.exp(-a))), math.sqrt(1 / (1 + math.exp(a)))
    weight = torch.softmax(-((z[:, None] - alpha * x) ** 2).sum(-1) / (2 * sigma**2), 1)
    assert (weight @ x - x0_hat(model, z, a)).abs().max() < 0.02


@pytest.mark.parametrize("p", [2, 3, 11, 51])
def test_mean_resultant_over_all_arguments(p):
    kappa = torch.logspace(-8, 2, 60, dtype=torch.float64)
    exact = iv(p / 2, kappa.numpy()) / iv(p / 2 - 1, kappa.numpy())
    good = np.isfinite(exact)
    np.testing.assert_allclose(mean_resultant(kappa, p).numpy()[good], exact[good], rtol=1e-10)
    assert good.sum() > 20
    far = mean_resultant(torch.tensor([1e5, 1e7, 1e9, 1e12], dtype=torch.float64), p)
    torch.testing.assert_close(
        1 - far, (p - 1) / 2 / torch.tensor([1e5, 1e7, 1e9, 1e12]).double(), rtol=1e-3, atol=1e-12
    )
    k = torch.tensor([0.3, 2.0, 30.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: mean_resultant(x, p), k)
    assert torch.autograd.gradgradcheck(lambda x: mean_resultant(x, p), k)


def test_low_rank_mixture_lies_on_its_subspaces():
    model = LowRankMixture.random(3, 4, 48, gen(0))
    x, labels = model.sample(20, gen(1))
    for row, k in zip(x, labels, strict=True):
        assert (row - model.bases[k] @ (model.bases[k].T @ row)).norm() < 1e-12
    assert (model.bases[0].T @ model.bases[1]).norm() < 1e-12
    assert LowRankMixture.random(5, 4, 10, gen(0)).bases.shape == (5, 10, 4)


def test_what_cannot_be_is_refused():
    model = mixture(0)
    z = normal(0, 2, 4)
    impossible: list[dict[str, Any]] = [
        {"log_snr": [1.0, 2.0, 3.0]},
        {"log_snr": math.nan},
        {"log_snr": 100.0},
        {"log_snr": 0.0, "cond": [0]},
    ]
    for bad in impossible:
        with pytest.raises(InvalidRequest):
            model.eps(z, **bad)
    for label in (3, -1, "a", True):
        with pytest.raises(InvalidRequest, match="no component; expected 0 to 2"):
            model.eps(z, 0.0, label)
    with pytest.raises(InvalidRequest, match=r"samples \(2, 3\); expected \(B, 4\)"):
        model.eps(z[:, :3], 0.0)
    with pytest.raises(InvalidRequest, match="symmetric"):
        Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(InvalidRequest, match="no conditions"):
        Gaussian(torch.zeros(2), torch.eye(2)).eps(torch.zeros(1, 2), 0.0, 1)
    with pytest.raises(InvalidRequest, match="-inf"):
        x0_hat(model, z, -math.inf)


# Pipelines


SCHEDULERS = {
    "epsilon": (DDIMScheduler, {"prediction_type": "epsilon"}),
    "v_prediction": (DDIMScheduler, {"prediction_type": "v_prediction"}),
    "sample": (DDIMScheduler, {"prediction_type": "sample"}),
    "flow": (DPMSolverMultistepScheduler, {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers, with numpy 2
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_what_a_pipeline_predicts_is_hidden(kind):
    """The tiny pipeline, made to output what an exact Gaussian denoiser would: eps is then that of the Gaussian."""
    cls, options = SCHEDULERS[kind]
    pipe = build_tiny_pipeline()
    pipe.scheduler = cls(num_train_timesteps=1000, beta_schedule="scaled_linear", **options)
    truth = Gaussian(torch.zeros(256), 2.0 * torch.eye(256))
    seen: list[tuple[torch.dtype, float]] = []

    def exact(module, args, kwargs, output):
        x, t = kwargs["sample"], float(kwargs["timestep"][0])
        if kind == "flow":
            s = t / 1000
            signal, noise = 1 - s, s
        else:
            abar = float(np.interp(t, np.arange(1000), torch.logit(pipe.scheduler.alphas_cumprod.double()).numpy()))
            signal, noise = math.sqrt(1 / (1 + math.exp(-abar))), math.sqrt(1 / (1 + math.exp(abar)))
        seen.append((x.dtype, t))
        a, size = 2 * math.log(signal / noise), math.hypot(signal, noise)
        n = truth.eps(x.double().flatten(1) / size, a).reshape(x.shape)
        x0 = (x - noise * n) / signal
        out = {"epsilon": n, "v_prediction": signal * n - noise * x0, "sample": x0, "flow": n - x0}[kind]
        return (out.to(x.dtype),)

    model = PipelineEps(pipe)
    handle = pipe.unet.register_forward_hook(exact, with_kwargs=True)
    low, high = model.log_snr_range
    for a in np.linspace(max(low, -4.0), min(high, 6.0), 5):
        z = normal(3, 2, *model.sample_shape)
        found = model.eps(z, float(a), "a red star")
        torch.testing.assert_close(found.flatten(1), truth.eps(z.flatten(1), float(a)), rtol=2e-4, atol=2e-4)
        assert found.dtype == torch.float64 and seen[-1][0] == torch.float32
    handle.remove()


def test_a_pipelines_own_steps_are_reproduced(tiny_pipe):
    """At the scheduler's timesteps eps is what the pipeline's branches compute, rows of a batch are on their own."""
    model = PipelineEps(tiny_pipe)
    calls = []
    hook = tiny_pipe.unet.register_forward_hook(
        lambda m, args, kw, out: calls.append((args, kw, out[0])), with_kwargs=True
    )
    generator = torch.Generator().manual_seed(5)
    tiny_pipe("a red star", num_inference_steps=3, guidance_scale=2.0, generator=generator, output_type="latent")
    hook.remove()
    timesteps, log_snr = schedule(tiny_pipe, 3)
    assert log_snr[0] == -math.inf and model.log_snr_range[0] > -60
    z = torch.zeros(0)
    for (args, _, output), t, a in zip(calls, timesteps, log_snr, strict=True):
        z, level = model.from_model_scale(args[0][:1], t)
        assert level == pytest.approx(a, abs=1e-9)
        found = model.eps(z.repeat(2, 1, 1, 1), a, [None, "a red star"])
        abar = float(tiny_pipe.scheduler.alphas_cumprod[t])
        expected = math.sqrt(abar) * output + math.sqrt(1 - abar) * args[0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    mixed = torch.cat([z, z, z])
    prompts = ["a blue cup", None, "a red star"]
    a = torch.tensor([0.0, 1.0, -1.0])
    alone = torch.cat([model.eps(z, float(level), c) for level, c in zip(a, prompts, strict=True)])
    torch.testing.assert_close(model.eps(mixed, a, prompts), alone, rtol=1e-4, atol=1e-5)
    assert (alone[0] - alone[1]).abs().max() > 1e-3


def test_an_edited_prompt_is_not_kept_as_the_prompts_own(tiny_pipe):
    model, z = PipelineEps(tiny_pipe), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    layer = tiny_pipe.text_encoder.encoder.layers[0]

    def under(strength: float, prompt: str) -> torch.Tensor:
        handle = layer.register_forward_hook(lambda module, args, out: out * strength)
        try:
            return model.eps(z, 0.0, prompt)
        finally:
            handle.remove()

    for first in ("a red star", "a blue cup"):  # met plain first, and met edited first
        values = [model.eps(z, 0.0, first)] if first == "a red star" else []
        values += [under(-1.0, first), under(1.0, first), under(-1.0, first), model.eps(z, 0.0, first)]
        plain, edited = values[-1], values[-2]
        assert float((plain - edited).abs().max()) > 1e-4
        torch.testing.assert_close(values[-3], plain)
        torch.testing.assert_close(values[-4], edited)
        torch.testing.assert_close(values[0], plain if first == "a red star" else edited)


def test_a_pipeline_refuses_levels_that_it_does_not_know(tiny_pipe):
    model = PipelineEps(tiny_pipe)
    z = torch.zeros(1, *model.sample_shape)
    for a in (-30.0, 20.0):
        with pytest.raises(InvalidRequest, match="knows levels from"):
            model.eps(z, a)
    with pytest.raises(InvalidRequest, match="2 conditions for 1 samples"):
        model.eps(z, 0.0, ["a", "b"])
