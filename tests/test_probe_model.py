"""probe.model: loading, fingerprints, schedules, the step clock, generation."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)

from probe.errors import EmptyPrompts, InvalidRequest, ModelNotFound, UnsupportedPipeline
from probe.model import (
    StepClock,
    branch_layout,
    fingerprint,
    generate,
    generation_defaults,
    load_pipeline,
    model_name,
    schedule,
    schedule_of,
)
from probe.model.fingerprint import weights_hash

# diffusers' schedulers hand tensors to numpy.array in a way that numpy 2 announces to change
NUMPY_REMARK = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
PROMPTS = ["a red star", "a blue moon", "the green cup"]


def test_reload_gives_the_same_model_and_images(tiny_pipe, tiny_folder):
    loaded = load_pipeline(tiny_folder)
    assert fingerprint(loaded)["weights_hash"] == fingerprint(tiny_pipe)["weights_hash"]
    assert model_name(loaded) == "tiny" and model_name(tiny_pipe) == "in-memory"
    before = generate(tiny_pipe, PROMPTS, [1, 2, 3], steps=3, guidance=2.0)
    after = generate(loaded, PROMPTS, [1, 2, 3], steps=3, guidance=2.0)
    assert before.shape == (3, 16, 16, 3) and before.dtype == np.uint8
    np.testing.assert_array_equal(before, after)
    assert not any(p.requires_grad for p in loaded.unet.parameters())


@pytest.mark.parametrize("name", ["no/such/folder", "./nothing", "/nothing/here"])
def test_missing_model_says_what_to_give(name):
    with pytest.raises(ModelNotFound, match="Expected 'canvas', an existing pipeline folder, or a hub id"):
        load_pipeline(name)


def test_folder_without_a_pipeline(tmp_path):
    with pytest.raises(ModelNotFound, match=r"no model_index\.json"):
        load_pipeline(tmp_path)
    with pytest.raises(FileNotFoundError):  # each error is also a builtin
        load_pipeline(tmp_path)


def test_pickled_weights_are_refused(tiny_pipe, tmp_path):
    tiny_pipe.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ModelNotFound, match="safetensors"):
        load_pipeline(tmp_path)


def test_damaged_index(tiny_folder, tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "NoSuchPipeline", "_diffusers_version": "0.42"}')
    with pytest.raises(UnsupportedPipeline, match="model_index"):
        load_pipeline(tmp_path)


def test_fingerprint_follows_weights_not_storage(tiny_folder, tmp_path):
    pipe = load_pipeline(tiny_folder)
    first = fingerprint(pipe)
    assert first == fingerprint(pipe)
    assert set(first) >= {"model_class", "name", "weights_hash", "scheduler", "scheduler_config_hash", "dtype"}
    with torch.no_grad():
        pipe.unet.conv_in.weight[0, 0, 0, 0] += 1.0  # in place: the cached hash must not survive
    assert weights_hash(pipe) != first["weights_hash"]
    pipe.to(torch.float16).save_pretrained(tmp_path)
    assert weights_hash(load_pipeline(tmp_path)) == weights_hash(pipe)  # fp16 file read as float32: same values
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="epsilon")
    assert fingerprint(pipe)["scheduler_config_hash"] != first["scheduler_config_hash"]


def test_generation_defaults(tiny_pipe, tiny_folder):
    assert generation_defaults(load_pipeline(tiny_folder)) == (4, 2.0)
    assert generation_defaults(tiny_pipe) == (50, 7.5)


def test_damaged_defaults(tiny_pipe, tmp_path):
    tiny_pipe.save_pretrained(tmp_path)
    (tmp_path / "denoscope.json").write_text('{"steps": 0, "guidance": 2.0}')
    with pytest.raises(InvalidRequest, match="steps must be an integer of at least 1, got 0"):
        generation_defaults(load_pipeline(tmp_path))


def test_ddim_schedule_in_closed_form(tiny_pipe):
    before = tiny_pipe.scheduler.timesteps.clone()
    timesteps, log_snr = schedule(tiny_pipe, 5)
    assert torch.equal(before, tiny_pipe.scheduler.timesteps)
    assert timesteps == (999, 799, 599, 399, 199)
    assert log_snr[0] == -math.inf  # zero terminal SNR
    abar = tiny_pipe.scheduler.alphas_cumprod[199].double().item()
    assert log_snr[-1] == pytest.approx(math.log(abar / (1 - abar)), rel=1e-5)
    assert list(log_snr) == sorted(log_snr)


@NUMPY_REMARK
def test_sigma_schedules_agree_with_alphas():
    betas: dict[str, Any] = {
        "beta_schedule": "scaled_linear",
        "timestep_spacing": "trailing",
        "prediction_type": "epsilon",
    }
    reference = DDIMScheduler(**betas)
    for kind in (DPMSolverMultistepScheduler, EulerDiscreteScheduler):
        scheduler = kind(**betas)
        reference.set_timesteps(8)
        scheduler.set_timesteps(8)
        np.testing.assert_allclose(schedule_of(scheduler)[1], schedule_of(reference)[1], rtol=1e-4)


def test_flow_matching_schedule():
    scheduler: Any = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    timesteps, log_snr = schedule_of(scheduler)
    sigma = float(scheduler.sigmas[2])
    assert timesteps[0] == 1000 and log_snr[0] == -math.inf
    assert log_snr[2] == pytest.approx(2 * math.log((1 - sigma) / sigma), rel=1e-5)


@NUMPY_REMARK
@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler])
def test_step_clock_also_after_an_aborted_generation(tiny_folder, kind):
    pipe = load_pipeline(tiny_folder)
    config = {k: v for k, v in pipe.scheduler.config.items() if k != "rescale_betas_zero_snr"}
    extra = {"skip_prk_steps": True} if kind is PNDMScheduler else {}
    pipe.scheduler = kind.from_config(config, **extra)
    pipe.set_progress_bar_config(disable=True)
    n_calls = len(schedule(pipe, 4)[0])
    seen: list[int] = []

    def note() -> None:
        seen.append(clock.step)
        if stop_at is not None and clock.step == stop_at:
            raise InterruptedError

    with StepClock(pipe, note) as clock:
        stop_at = 1
        with pytest.raises(InterruptedError):
            pipe("a red star", num_inference_steps=4, guidance_scale=2.0, output_type="latent")
        seen.clear()
        stop_at = None
        pipe("a red star", num_inference_steps=4, guidance_scale=2.0, output_type="latent")
        assert seen == list(range(n_calls)) and clock.branches == ("uncond", "cond")
        seen.clear()
        pipe("a red star", num_inference_steps=2, guidance_scale=1.0, output_type="latent")
        assert seen == list(range(len(schedule(pipe, 2)[0]))) and clock.branches == ("cond",)
    assert not pipe.unet._forward_pre_hooks


def test_branch_layout_of_dit():
    class DiTLike:
        def __init__(self) -> None:
            self.transformer = torch.nn.Linear(1, 1)
            self.transformer.config = type("Config", (), {"num_embeds_ada_norm": 10})()  # type: ignore[assignment]

        def __call__(self, class_labels: list[int], guidance_scale: float = 4.0) -> None: ...

    pipe = DiTLike()
    guided, plain = torch.tensor([3, 4, 10, 10]), torch.tensor([3, 4])
    assert branch_layout(pipe, {"class_labels": guided}).here == ("cond", "uncond")
    assert branch_layout(pipe, {"class_labels": plain}).here == ("cond",)


def test_an_image_does_not_depend_on_its_batch(tiny_pipe):
    together = generate(tiny_pipe, PROMPTS, [1, 2, 3], steps=3, guidance=2.0, batch_size=3)
    again = generate(tiny_pipe, PROMPTS, [1, 2, 3], steps=3, guidance=2.0, batch_size=3)
    np.testing.assert_array_equal(together, again)  # same composition: bit-equal
    for i, (prompt, seed) in enumerate(zip(PROMPTS, [1, 2, 3], strict=True)):
        alone = generate(tiny_pipe, [prompt], [seed], steps=3, guidance=2.0)
        # Kernels are chosen by shape, so other compositions may differ in the last bit: one grey level.
        assert np.abs(alone[0].astype(int) - together[i]).max() <= 1
    assert (together[0] != together[1]).any()


def test_progress_and_the_pipelines_own_bar(tiny_pipe, capsys):
    calls: list[tuple[int, int]] = []
    tiny_pipe.set_progress_bar_config(desc="mine")
    generate(tiny_pipe, PROMPTS, [0, 0, 0], steps=1, batch_size=2, progress=lambda *c: calls.append(c))
    assert calls == [(2, 3), (3, 3)]
    assert tiny_pipe._progress_bar_config == {"desc": "mine"}
    assert capsys.readouterr() == ("", "")


def test_bad_requests(tiny_pipe):
    with pytest.raises(EmptyPrompts, match="no prompts"):
        generate(tiny_pipe, [], [])
    with pytest.raises(InvalidRequest, match="3 prompts but 1 seeds"):
        generate(tiny_pipe, PROMPTS, [0])
    with pytest.raises(InvalidRequest, match="list of strings"):
        generate(tiny_pipe, "a red star", [0])  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=re.escape("steps must be an integer of at least 1, got 0")):
        generate(tiny_pipe, PROMPTS, [0, 1, 2], steps=0)
    with pytest.raises(InvalidRequest, match="guidance"):
        generate(tiny_pipe, PROMPTS, [0, 1, 2], guidance=float("nan"))


def test_names_never_hold_a_path(tiny_folder):
    assert model_name(tiny_folder) == "tiny"
    assert "/" not in str(fingerprint(load_pipeline(Path(tiny_folder))))
