"""probe.directions.objectives: what is asked of the decoded sample is what canvas's judge says of the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from probe.canvas import FACTORS, Judge, render_batch, shipped_judge
from probe.directions import AdapterSliders, Asyrp, JudgeFeatures, JudgeObjective, TokenSliders
from probe.directions.objectives import decoded
from probe.errors import InvalidRequest
from probe.model import PipelineEps, load_pipeline

N = 6


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_pipeline("canvas")


@pytest.fixture(scope="module")
def judge() -> Judge:
    return shipped_judge()


@pytest.fixture(scope="module")
def x(pipe: Any) -> torch.Tensor:
    """Renders, as the denoiser would hold them."""
    images = torch.from_numpy(render_batch(range(N), split="train", seed=5).images).float()
    with torch.no_grad():
        found = pipe.vae.encode(images.permute(0, 3, 1, 2) / 127.5 - 1)
    latents = found.latents if hasattr(found, "latents") else found.latent_dist.mode()
    return latents * pipe.vae.config.scaling_factor


def pictures(pipe: Any, x: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return ((decoded(pipe, x).permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()


@pytest.mark.parametrize(("factor", "value"), [("colour", "red"), ("object", "cup"), ("background", "dark")])
def test_the_objective_is_the_calibrated_verdict(pipe, judge, x, factor, value):
    loss = JudgeObjective(pipe, judge, factor, value)(x, torch.zeros_like(x), x, 0.0)
    said = judge(pictures(pipe, x)).probs[factor][:, FACTORS[factor].index(value)]
    assert loss.shape == (N,)
    np.testing.assert_allclose(torch.exp(-loss).detach().numpy(), said, atol=0.02)  # pictures are rounded to 8 bits


def test_its_gradient_is_that_of_finite_differences(pipe, judge, x):
    objective = JudgeObjective(pipe, judge, "colour", "red")
    here = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(here, x, x, 0.0).sum(), here)
    v = gradient / gradient.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1).clamp(min=1e-12)
    with torch.no_grad():
        step = 0.02
        change = (objective(x + step * v, x, x, 0.0) - objective(x - step * v, x, x, 0.0)) / (2 * step)
    expected = (gradient * v).flatten(1).sum(1)
    assert float((change - expected).abs().max() / expected.abs().max()) < 0.05


def test_the_features_are_the_judges_own(pipe, judge, x):
    features = JudgeFeatures(pipe, judge)
    found = features(x.clone().requires_grad_())
    assert found.shape == (N, 160) and found.requires_grad
    expected = judge.features(pictures(pipe, x))
    assert np.abs(found.detach().numpy() - expected).max() < 0.05 * np.abs(expected).max()


def test_a_trained_change_lowers_the_objective_and_says_what_it_was_for(pipe, judge):
    model = PipelineEps(pipe)
    objective = JudgeObjective(pipe, judge, "colour", "red")
    prompt = "a blue cup on white background in flat style"
    found = Asyrp(objective=objective, site="up_blocks.1", iterations=8, batch=2, levels=(0.0, 2.0), lr=0.3).fit(
        model, prompt
    )
    assert found.loss_[-2:].mean() < 0.8 * found.loss_[:2].mean()
    assert found.direction_.provenance["parameters"]["objective"] == objective.record()


@pytest.mark.parametrize("cls", [TokenSliders, AdapterSliders])
def test_sliders_train_on_what_the_judge_sees(pipe, judge, x, cls):
    found = cls(k=2, iterations=2, batch=2, embed=JudgeFeatures(pipe, judge)).fit(PipelineEps(pipe), x, "a star")
    assert found.axes_.shape == (2, 160) and np.isfinite(found.loss_).all()
    about = found.adapter_.provenance if cls is AdapterSliders else found.direction_.provenance
    assert about["parameters"]["embed"] == {"features": "JudgeFeatures"}


def test_a_value_that_the_judge_does_not_know_is_refused(pipe, judge):
    with pytest.raises(InvalidRequest, match="no colour 'plaid'"):
        JudgeObjective(pipe, judge, "colour", "plaid")
