"""Interventions against answers on paper: a Gaussian denoiser in a genuine pipeline, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from intervention_world import LAM, gaussian_pipe, latents

from probe.errors import InvalidIntervention, InvalidRequest, UnsupportedPipeline
from probe.interventions import (
    AddDirection,
    Guide,
    Intervention,
    LowRank,
    Patch,
    ProjectOut,
    Replace,
    Schedule,
    Window,
    intervene,
    text_embedding,
)
from probe.interventions.edit_friendly import invert

C, STEPS, FEW = 0.05, 50, 10
ONES = torch.ones(4, dtype=torch.float64)
SEEDS = [0, 1, 2]
EPS_SITES = ["sampler:eps", "unet.head:out", "unet:out"]


@pytest.fixture(scope="module")
def pipe():
    return gaussian_pipe()


def start(n: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def response(pipe, edits, guidance=1.0, steps=STEPS, x=None) -> torch.Tensor:
    """How far edits move the sampler's end; the model is affine, so it is the same everywhere."""
    x = start() if x is None else x
    plain = latents(pipe, steps, guidance, x)
    with intervene(pipe, edits):
        return latents(pipe, steps, guidance, x) - plain


def recursion(abar, timesteps, offsets, inject="both") -> float:
    """The response of the DDIM recursion to an offset of eps at each step, written for one eigenvector."""
    r = 0.0
    for i, t in enumerate(timesteps):
        a, after = float(abar[t]), float(abar[timesteps[i + 1]]) if i + 1 < len(timesteps) else 1.0
        own = math.sqrt(1 - a) * r / (a * LAM + 1 - a)
        in_x0 = own + (offsets[i] if inject in ("both", "x0") else 0.0)
        in_direction = own + (offsets[i] if inject in ("both", "direction") else 0.0)
        x0 = (r - math.sqrt(1 - a) * in_x0) / math.sqrt(a)
        r = math.sqrt(after) * x0 + math.sqrt(1 - after) * in_direction
    return r


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("site", EPS_SITES)
@pytest.mark.parametrize(("inject", "exact"), [("both", -0.2811623579), ("x0", -2.12568560), ("direction", None)])
def test_v28_offset_of_eps_on_a_gaussian(pipe, site, inject, exact, seed):
    found = response(pipe, Intervention(site, AddDirection(C * ONES), inject=inject), x=start(seed=seed))
    abar, timesteps = pipe.scheduler.alphas_cumprod, [int(t) for t in pipe.scheduler.timesteps]
    expected = recursion(abar, timesteps, [C] * STEPS, inject)
    torch.testing.assert_close(found, torch.full_like(found, expected), rtol=0, atol=1e-10)
    assert exact is None or float(found[0, 0, 0, 0]) == pytest.approx(exact, abs=1e-8)


@pytest.mark.parametrize("seed", SEEDS)
def test_v30_injection_into_x0_alone_moves_the_trajectory_further(pipe, seed):
    edits = [Intervention("sampler:eps", AddDirection(C * ONES), inject=i) for i in ("both", "x0")]
    both, x0 = (float(response(pipe, edit, x=start(seed=seed)).mean()) for edit in edits)
    assert x0 / both == pytest.approx(7.56, rel=1e-2)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("inject", ["both", "x0"])
def test_v29_linearity_in_strength(pipe, inject, seed):
    edits = [Intervention("unet.head", AddDirection(C * ONES), strength=s, inject=inject) for s in (1.0, 4.0)]
    one, four = (response(pipe, edit, steps=FEW, x=start(seed=seed)) for edit in edits)
    torch.testing.assert_close(four, 4 * one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("w", "seed"), [(3.0, 0), (7.5, 1), (4.0, 2)])
@pytest.mark.parametrize(
    ("branch", "gain"),
    [("both", lambda w: 1.0), ("cond", lambda w: w), ("uncond", lambda w: 1 - w), ("opposite", lambda w: 2 * w - 1)],
)
def test_v33_branch_gains(pipe, branch, gain, w, seed):
    """1, w, 1 - w, 2w - 1, on the guided noise of one step and on the whole trajectory."""
    seen: list[torch.Tensor] = []
    step = pipe.scheduler.step

    def keep(model_output, *args, **kwargs):
        seen.append(model_output.clone())
        return step(model_output, *args, **kwargs)

    pipe.scheduler.step = keep
    try:
        edit = Intervention("unet.head", AddDirection(C * ONES), branch=branch)
        found = response(pipe, edit, guidance=w, steps=FEW, x=start(seed=seed))
    finally:
        del pipe.scheduler.step
    torch.testing.assert_close(seen[FEW] - seen[0], torch.full_like(seen[0], gain(w) * C), rtol=0, atol=1e-12)
    both = response(pipe, Intervention("unet.head", AddDirection(C * ONES)), guidance=w, steps=FEW)
    torch.testing.assert_close(found, gain(w) * both, rtol=1e-9, atol=1e-10)


def test_second_call_is_guided_as_the_pipeline_guides(pipe):
    """With both terms edited by two interventions of one step each, nothing is left of the split."""
    split = [Intervention("unet.head", AddDirection(C * ONES), branch="cond", inject=i) for i in ("x0", "direction")]
    whole = Intervention("unet.head", AddDirection(C * ONES), branch="cond")
    torch.testing.assert_close(
        response(pipe, split, guidance=4.0, steps=FEW),
        response(pipe, whole, guidance=4.0, steps=FEW),
        rtol=0,
        atol=1e-10,
    )


@pytest.mark.parametrize(
    "steps",
    [range(10, 20), Window("step", 10, 19), Window("t", 600, 780), Window("log_snr", -6.2, -3.4)],
    ids=["range", "step", "t", "log_snr"],
)
def test_windows(pipe, steps):
    from probe.model.schedule import schedule

    found = response(pipe, Intervention("unet.head", AddDirection(C * ONES), steps=steps))
    timesteps, log_snr = schedule(pipe, STEPS)
    on = {
        "step": lambda i: 10 <= i <= 19,
        "t": lambda i: 600 <= timesteps[i] <= 780,
        "log_snr": lambda i: -6.2 <= log_snr[i] <= -3.4,
    }[steps.axis if isinstance(steps, Window) else "step"]
    offsets = [C if on(i) else 0.0 for i in range(STEPS)]
    assert 5 < sum(offset > 0 for offset in offsets) < 45
    expected = recursion(pipe.scheduler.alphas_cumprod, list(timesteps), offsets)
    torch.testing.assert_close(found, torch.full_like(found, expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize("site", EPS_SITES)
def test_schedule_of_strength(pipe, site):
    ramp = Schedule("step", (5, 25), (0.0, 2.0))
    found = response(pipe, Intervention(site, AddDirection(C * ONES), strength=ramp))
    offsets = [C * min(max((i - 5) / 10, 0.0), 2.0) for i in range(STEPS)]
    expected = recursion(pipe.scheduler.alphas_cumprod, [int(t) for t in pipe.scheduler.timesteps], offsets)
    torch.testing.assert_close(found, torch.full_like(found, expected), rtol=0, atol=1e-10)


def test_clean_sample_and_noise_are_two_views_of_one_output(pipe):
    """A shift of x0 by d is one of eps by -sqrt(abar / (1 - abar)) d."""
    d, step = 0.3, 20
    pipe.scheduler.set_timesteps(STEPS)
    abar = float(pipe.scheduler.alphas_cumprod[int(pipe.scheduler.timesteps[step])])
    x0 = response(pipe, Intervention("sampler:x0", AddDirection(d * ONES), steps=[step]))
    eps = response(
        pipe, Intervention("sampler:eps", AddDirection(-math.sqrt(abar / (1 - abar)) * d * ONES), steps=[step])
    )
    torch.testing.assert_close(x0, eps, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize(("port", "inject"), [("eps", "both"), ("eps", "x0"), ("x0", "both"), ("x0", "direction")])
def test_what_the_denoiser_predicts_does_not_matter(pipe, port, inject, prediction):
    """The same Gaussian as a noise, velocity or sample predictor: the same edit, the same pictures."""
    edit = Intervention(f"sampler:{port}", AddDirection(C * ONES), inject=inject)
    expected = response(pipe, edit, guidance=3.0, steps=10)
    other = gaussian_pipe()
    other.scheduler.register_to_config(prediction_type=prediction)
    other.unet.prediction = prediction
    torch.testing.assert_close(response(other, edit, guidance=3.0, steps=10), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # the scheduler's own tables
@pytest.mark.parametrize("site", ["sampler:eps", "sampler:x0", "sampler:x_t", "unet.head"])
def test_samplers_in_another_scale(pipe, site):
    """Euler's method on x / sqrt(abar) is DDIM; its tables are float32."""
    edit = Intervention(site, AddDirection(C * ONES), steps=range(3, 6))
    expected = response(pipe, edit, guidance=3.0, steps=10)
    other = gaussian_pipe()
    other.scheduler = EulerDiscreteScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", timestep_spacing="leading", steps_offset=0
    )
    found = response(other, edit, guidance=3.0, steps=10)
    assert float(expected.abs().max()) > 1e-2
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_state_edit_is_carried_by_the_recursion(pipe):
    """x_t + d at one step: the answer is the homogeneous recursion from there."""
    found = response(pipe, Intervention("sampler:x_t", AddDirection(C * ONES), steps=[30]), guidance=3.0)
    abar, times = pipe.scheduler.alphas_cumprod, [int(t) for t in pipe.scheduler.timesteps]
    r = C
    for i in range(30, STEPS):
        a, after = float(abar[times[i]]), float(abar[times[i + 1]]) if i + 1 < STEPS else 1.0
        eps = math.sqrt(1 - a) * r / (a * LAM + 1 - a)
        r = math.sqrt(after) * (r - math.sqrt(1 - a) * eps) / math.sqrt(a) + math.sqrt(1 - after) * eps
    torch.testing.assert_close(found, torch.full_like(found, r), rtol=0, atol=1e-10)


def test_replacing_the_state_starts_anew(pipe):
    value = start()[0].flatten(1).T  # (tokens, channels)
    with intervene(pipe, Intervention("sampler:x_t", Replace(value), steps=[0])):
        found = latents(pipe, STEPS, 3.0, torch.zeros(1, 4, 4, 4, dtype=torch.float64))
    assert torch.equal(found, latents(pipe, STEPS, 3.0, start()))


def test_guide_adds_the_difference_of_two_prompts(pipe):
    """At guidance w towards the same prompt, g more is guidance w + g."""
    towards, null = text_embedding(pipe, "a red star"), text_embedding(pipe, "")
    guide = Intervention("sampler:eps", Guide(towards, null), strength=1.5)
    x = start()
    with intervene(pipe, guide):
        found = latents(pipe, STEPS, 3.0, x)
    torch.testing.assert_close(found, latents(pipe, STEPS, 4.5, x), rtol=0, atol=1e-10)
    with pytest.raises(InvalidIntervention, match="use 'sampler:eps'"):
        response(pipe, Intervention("unet.head", Guide(towards, null)))


def test_weight_edits_act_as_the_map_they_are(pipe):
    """The head multiplies eps: W = I + s u v^T adds s u (v . eps), which an output edit of the same form equals."""
    g = torch.Generator().manual_seed(1)
    u, v = (torch.randn(4, 1, dtype=torch.float64, generator=g) for _ in range(2))
    before = pipe.unet.head.weight
    found = response(pipe, Intervention("unet.head:weight", LowRank(u, v.T), strength=0.1))
    assert pipe.unet.head.weight is before
    changed = torch.nn.Parameter((before[:, :, 0, 0] + 0.1 * u @ v.T)[..., None, None])
    plain = latents(pipe, STEPS, 1.0, start())
    pipe.unet.head.weight = changed
    expected = latents(pipe, STEPS, 1.0, start()) - plain
    pipe.unet.head.weight = before
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    late = Intervention("unet.head:weight", ProjectOut(torch.eye(4, dtype=torch.float64)), steps=range(40, 50))
    hooked = Intervention("unet.head", ProjectOut(torch.eye(4, dtype=torch.float64)), steps=range(40, 50))
    torch.testing.assert_close(response(pipe, late), response(pipe, hooked), rtol=0, atol=1e-12)


def test_weight_edits_may_be_injected_into_one_term(pipe):
    """The bias that an offset is cannot be a weight, so the gain is compared between weight and output."""
    gain = 0.05 * torch.eye(4, dtype=torch.float64)
    weight = response(
        pipe, Intervention("unet.head:weight", LowRank(gain, torch.eye(4, dtype=torch.float64)), inject="x0")
    )
    hook = response(
        pipe, Intervention("unet.head", ProjectOut(torch.eye(4, dtype=torch.float64)), strength=-0.05, inject="x0")
    )
    torch.testing.assert_close(weight, hook, rtol=0, atol=1e-10)


def test_injection_needs_a_ddim_sampler(pipe):
    from diffusers import DPMSolverMultistepScheduler

    edit = Intervention("sampler:eps", AddDirection(C * ONES), inject="x0")
    ddim = pipe.scheduler
    pipe.scheduler = DPMSolverMultistepScheduler()
    try:
        with (
            pytest.raises(UnsupportedPipeline, match="the sampler is DPMSolverMultistepScheduler"),
            intervene(pipe, edit),
        ):
            pass
    finally:
        pipe.scheduler = ddim


def test_commuting_edits_commute(pipe):
    """An offset in one channel and a projection of another."""
    a = Intervention("unet.head", AddDirection(torch.tensor([0.1, 0, 0, 0], dtype=torch.float64)))
    b = Intervention("unet.head", ProjectOut(torch.tensor([[0, 0, 1.0, 0]], dtype=torch.float64)))
    assert torch.equal(response(pipe, [a, b], guidance=2.0, steps=FEW), response(pipe, [b, a], guidance=2.0, steps=FEW))


def test_adding_then_subtracting_returns_the_start(pipe):
    for site in ("unet.head", "sampler:eps", "sampler:x0", "sampler:x_t", "unet:prompt"):
        width = 16 if site == "unet:prompt" else 4
        v = torch.full((width,), 0.25, dtype=torch.float64)
        there, back = (Intervention(site, AddDirection(v), strength=s) for s in (1.0, -1.0))
        assert float(response(pipe, [there], guidance=3.0, steps=FEW).abs().max()) > 1e-3, site
        assert float(response(pipe, [there, back], guidance=3.0, steps=FEW).abs().max()) < 1e-12, site


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_v31_edit_friendly_inversion_passes_through_its_states(pipe, eta, seed):
    """Exact at the lowest noisy level with the sampler's own eta; with eta squared in its place, off by per cents."""
    x0 = start(2, seed)
    prompts = ["a red star", "a blue moon"]
    edits = invert(pipe, x0, prompts, steps=20, guidance=3.0, eta=eta)
    last = float(pipe.scheduler.alphas_cumprod[int(pipe.scheduler.timesteps[-1])])
    noise = torch.randn(20, 2, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))[-1]
    expected = math.sqrt(last) * x0 + math.sqrt(1 - last) * noise

    def state_at_last_step(used: float) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        keep = lambda module, args: seen.append(args[0][:2].clone())  # noqa: E731
        handle = pipe.unet.register_forward_pre_hook(keep)
        try:
            with intervene(pipe, edits):
                pipe(prompts, num_inference_steps=20, guidance_scale=3.0, eta=used, output_type="latent")
        finally:
            handle.remove()
        return seen[-1]

    torch.testing.assert_close(state_at_last_step(eta), expected, rtol=0, atol=1e-12)
    if eta < 1:
        assert float((state_at_last_step(eta**2) - expected).abs().max()) > 1e-2
    noise_edit = edits[1].op
    assert isinstance(noise_edit, Patch) and float(noise_edit.value[:-1].std()) > 1.2  # not white noise


def test_edit_friendly_inversion_checks_its_input(pipe):
    with pytest.raises(InvalidRequest, match="do not fit"):
        invert(pipe, start(2), ["a red star"], steps=3, guidance=1.0)
