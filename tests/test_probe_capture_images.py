"""probe.capture of real images: noise levels against diffusers, stopping early, inversion against a closed form."""

from __future__ import annotations

import math
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
)
from PIL import Image

from activations_store.errors import PlanMismatch
from probe.capture import ImagePlan, collect, estimate, read_images, resolve_sites
from probe.capture.image_files import load_image, load_mask
from probe.capture.inversion import inversion_path, invert, to_eps
from probe.capture.noising import add_noise, condition, encode, noise
from probe.errors import ImageFileError, ImageFolderNotFound, InvalidPlan, InvalidRequest, UnknownSite
from probe.model.schedule import NoiseLevel, noise_levels, schedule_of, training_level

MID, DEEP = "unet.mid_block:out", "unet.up_blocks.0.attentions.0:delta"
LEVELS = (-4.0, 0.0, 2.0)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Five images of different shapes, two of them with masks, and a table."""
    path = tmp_path / "pictures"
    (path / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = ["file_name,text,mask,object,label_style"]
    for i in range(5):
        name = f"more/{i}.jpg" if i % 2 else f"{i}.png"
        pixels = rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / name)
        mask = f"mask{i}.png" if i < 2 else ""
        if mask:
            Image.fromarray((rng.random((20 + i, 30)) > 0.5).astype(np.uint8) * 255).save(path / mask)
        rows.append(f'{name},"a red, cup {i}",{mask},{"star" if i % 2 else "moon"},flat')
    (path / "metadata.csv").write_text("\n".join(rows) + "\n")
    return path


def make_plan(pipe, folder, **changes) -> ImagePlan:
    given = {"batch_size": 2, "dtype": "float32"} | changes
    log_snr = given.pop("log_snr", LEVELS)
    return ImagePlan.for_pipeline(pipe, given.pop("sites", [MID, DEEP]), read_images(folder), log_snr, **given)


# Files


def test_a_folder_with_a_table(folder):
    found = read_images(folder)
    assert found.files == ("0.png", "more/1.jpg", "2.png", "more/3.jpg", "4.png")
    assert found.prompts[1] == "a red, cup 1" and found.masks == ("mask0.png", "mask1.png", "", "", "")
    assert found.labels == {"object": ("moon", "star", "moon", "star", "moon"), "style": ("flat",) * 5}
    assert read_images(folder, limit=2).files == ("0.png", "more/1.jpg")


def test_a_folder_without_a_table(folder):
    (folder / "metadata.csv").unlink()
    found = read_images(folder)
    assert found.files == ("0.png", "2.png", "4.png", "mask0.png", "mask1.png", "more/1.jpg", "more/3.jpg")
    assert set(found.prompts) == {""} and found.labels == {"folder": (".",) * 5 + ("more",) * 2}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,text\n0.png,x\n", "no column 'file_name'; found file, text"),
        ("file_name,text\n0.png\n", "row 2 does not have the 2 fields"),
        ("file_name\nnone.png\n", "'none.png' is not a file in"),
        ("file_name\n../outside.png\n", "'../outside.png' is not a file in"),
        ("file_name,mask\n0.png,none.png\n", "'none.png' is not a file in"),
        ("file_name,label_x,x\n0.png,1,2\n", "gives a label twice: label_x, x"),
    ],
)
def test_bad_tables(folder, table, message):
    (folder.parent / "outside.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "metadata.csv").write_text(table)
    with pytest.raises(ImageFileError) as caught:
        read_images(folder)
    assert message in str(caught.value)


def test_missing_and_changed_files(folder, tmp_path):
    with pytest.raises(ImageFolderNotFound, match="no folder"):
        read_images(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageFolderNotFound, match="holds no image"):
        read_images(tmp_path / "empty")
    found = read_images(folder)
    (folder / "0.png").write_bytes(b"not an image")
    with pytest.raises(ImageFileError, match=r"0\.png changed since the plan was made"):
        load_image(folder, "0.png", found.sha256[0], 16)
    with pytest.raises(ImageFileError, match=r"0\.png cannot be read as an image"):
        load_image(folder, "0.png", read_images(folder).sha256[0], 16)


def test_a_mask_covers_the_same_place_as_its_image(tmp_path):
    # a white square in the left half of the centre crop of a wide picture
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, 16:32] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "m.png")
    image = load_image(tmp_path, "a.png", read_images(tmp_path).sha256[0], 16)
    mask = load_mask(tmp_path, "m.png", 16)
    assert (mask[:, :8] == 255).all() and (mask[:, 8:] == 0).all()
    assert (image[:, :7] > 200).all() and (image[:, 9:] < 50).all()


# Noise levels


def test_noise_is_what_ddim_adds():
    scheduler: Any = DDIMScheduler(beta_schedule="scaled_linear")
    x0, n = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    for level in noise_levels(scheduler, [-4.0, -1.0, 0.0, 3.0]):
        expected = scheduler.add_noise(x0, n, torch.tensor([level.t, level.t]))
        torch.testing.assert_close(add_noise(x0, n, level), expected, rtol=1e-5, atol=1e-5)
        assert level.log_snr == pytest.approx(2 * math.log(level.signal / level.noise), abs=1e-5)


# diffusers 0.42 hands a tensor to numpy in a way that numpy 2 remarks on
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_noise_is_what_euler_adds_in_the_scale_of_the_denoiser():
    scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    x0, n = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    for i, t in enumerate(scheduler.timesteps[1:8], start=1):
        level = training_level(scheduler, float(t))
        scheduler._step_index = None
        noisy = scheduler.add_noise(x0, n, t[None])
        torch.testing.assert_close(add_noise(x0, n, level), scheduler.scale_model_input(noisy, t), rtol=1e-4, atol=1e-4)
        assert level.log_snr == pytest.approx(schedule_of(scheduler)[1][i], abs=1e-3)


def test_noise_of_flow_matching():
    scheduler: Any = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(8)
    x0, n = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    timesteps, log_snr = scheduler.timesteps.tolist(), schedule_of(scheduler)[1]
    for t, level in zip(timesteps[1:], noise_levels(scheduler, log_snr[1:]), strict=True):
        assert level.t == pytest.approx(t, rel=1e-5)
        torch.testing.assert_close(add_noise(x0, n, level), scheduler.scale_noise(x0, torch.tensor([t]), n))
    pure = noise_levels(scheduler, [-math.inf])[0]
    assert pure == NoiseLevel(1000.0, -math.inf, 0.0, 1.0)


def test_levels_are_the_nearest_of_the_training_grid():
    scheduler = DPMSolverMultistepScheduler(beta_schedule="scaled_linear")
    abar = scheduler.alphas_cumprod.double()
    grid = (abar.log() - (1 - abar).log()).tolist()
    for t in (0, 17, 500, 999):
        assert noise_levels(scheduler, [grid[t]])[0].t == t
        assert noise_levels(scheduler, [grid[t]])[0].log_snr == pytest.approx(grid[t], abs=1e-5)
    zero = DDIMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True)
    assert noise_levels(zero, [-math.inf])[0] == NoiseLevel(999, -math.inf, 0.0, 1.0)
    with pytest.raises(InvalidRequest, match="log_snr 20: the nearest level of DDIMScheduler is"):
        noise_levels(zero, [20.0])
    with pytest.raises(InvalidRequest, match=r"two of \[0\.0, 0\.001\] mean timestep"):
        noise_levels(zero, [0.0, 0.001])


# Collection


def test_recorded_values_equal_the_denoiser_run_by_hand(tiny_pipe, folder, tmp_path):
    plan = make_plan(tiny_pipe, folder, branches=("uncond", "cond"))
    store = collect(tiny_pipe, plan, tmp_path / "s")
    assert store.complete and store.verify() == [] and store.spec.n_steps == 3
    levels = noise_levels(tiny_pipe.scheduler, plan.log_snr)
    assert store.spec.timesteps == tuple(level.t for level in levels)
    assert store.spec.timesteps == tuple(sorted(store.spec.timesteps, reverse=True))
    assert store.spec.log_snr == pytest.approx(LEVELS, abs=0.1)

    i, scheduler = 3, tiny_pipe.scheduler
    image = load_image(folder, plan.files[i], plan.sha256[i], 16)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    seen: list[torch.Tensor] = []
    handle = tiny_pipe.unet.mid_block.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        with torch.no_grad():
            x0 = tiny_pipe.vae.encode(pixels).latents * tiny_pipe.vae.config.scaling_factor
            n = torch.randn(x0.shape[1:], generator=torch.Generator().manual_seed(plan.seeds[i]))[None]
            cond, uncond = tiny_pipe.encode_prompt(plan.prompts[i], "cpu", 1, True)
            for level in levels:
                t = torch.tensor(level.t)
                noisy = scheduler.add_noise(x0, n, t[None])
                tiny_pipe.unet(torch.cat([noisy] * 2), t, encoder_hidden_states=torch.cat([uncond, cond]))
    finally:
        handle.remove()
    expected = torch.stack(seen).flatten(3).transpose(2, 3).numpy()  # (levels, branches, tokens, channels)
    np.testing.assert_allclose(store.site(MID).read(sample=i)[0], expected, rtol=1e-4, atol=1e-5)


def test_labels_masks_and_images_are_kept(tiny_pipe, folder, tmp_path):
    plan = make_plan(tiny_pipe, folder, first_seed=5)
    store = collect(tiny_pipe, plan, tmp_path / "s")
    table = store.samples
    assert table.column("file").to_pylist() == list(plan.files)
    assert table.column("mask").to_pylist() == ["000000.png", "000001.png", "", "", ""]
    assert table.column("prompt").to_pylist()[2] == "a red, cup 2"
    assert table.column("seed").to_pylist() == [5, 6, 7, 8, 9]
    assert list(store.labels("object")) == ["moon", "star"] * 2 + ["moon"]
    assert store.plan["mode"] == "noise" and "folder" not in store.plan
    saved = np.asarray(Image.open(tmp_path / "s" / "images" / "000001.png"))
    np.testing.assert_array_equal(saved, load_image(folder, plan.files[1], plan.sha256[1], 16))
    masks = sorted(path.name for path in (tmp_path / "s" / "masks").iterdir())
    assert masks == ["000000.png", "000001.png"]
    mask = np.asarray(Image.open(tmp_path / "s" / "masks" / "000001.png"))
    np.testing.assert_array_equal(mask, load_mask(folder, "mask1.png", 16))


@pytest.mark.parametrize("mode", ["noise", "invert"])
def test_nothing_after_the_deepest_site_runs(tiny_pipe, folder, tmp_path, mode):
    later = ["unet.up_blocks.0", "unet.up_blocks.1", "unet.conv_norm_out", "unet.conv_out"]
    counted = ["unet.conv_in", "unet.mid_block", *later, "vae.decoder"]
    calls = dict.fromkeys(counted, 0)

    def count(name: str):
        def hook(*_: object) -> None:
            calls[name] += 1

        return hook

    plan = make_plan(tiny_pipe, folder, sites=["down_blocks.0", MID], mode=mode, inversion_steps=6)
    collect(tiny_pipe, make_plan(tiny_pipe, folder, sites=["conv_in"]), tmp_path / "warm")
    modules = {name: _module(tiny_pipe, name) for name in counted}
    handles = [module.register_forward_pre_hook(count(name)) for name, module in modules.items()]
    try:
        collect(tiny_pipe, plan, tmp_path / "s")
    finally:
        for handle in handles:
            handle.remove()
    n_batches = 3
    if mode == "noise":
        recorded, whole = n_batches * 3, 1  # the one whole call looks at the shapes
    else:
        path = inversion_path(tiny_pipe.scheduler, 6, noise_levels(tiny_pipe.scheduler, LEVELS))
        recorded, whole = n_batches, 1 + n_batches * len(path)
    assert calls["unet.conv_in"] == calls["unet.mid_block"] == recorded + whole
    assert [calls[name] for name in later] == [whole] * len(later)
    assert calls["vae.decoder"] == 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny_pipe.unet.modules())


def _module(pipe, name: str) -> torch.nn.Module:
    part, _, rest = name.partition(".")
    return getattr(pipe, part).get_submodule(rest)


def test_levels_and_batches_do_not_change_a_sample(tiny_pipe, folder, tmp_path):
    whole = collect(tiny_pipe, make_plan(tiny_pipe, folder), tmp_path / "whole")
    part = collect(tiny_pipe, make_plan(tiny_pipe, folder, log_snr=(0.0,), batch_size=5), tmp_path / "part")
    np.testing.assert_allclose(part.site(MID).read(), whole.site(MID).read(step=1), rtol=1e-4, atol=1e-5)


def test_size_is_predicted(tiny_pipe, folder, tmp_path):
    plan = make_plan(tiny_pipe, folder)
    found = estimate(tiny_pipe, plan, tmp_path / "s")
    assert not (tmp_path / "s").exists() and found.seconds > 0
    collect(tiny_pipe, plan, tmp_path / "s")
    real = sum(path.stat().st_size for path in (tmp_path / "s").rglob("*") if path.is_file())
    assert found.total_bytes == pytest.approx(real, rel=0.1)


def test_a_changed_image_is_another_plan(tiny_pipe, folder, tmp_path):
    collect(tiny_pipe, make_plan(tiny_pipe, folder), tmp_path / "s")
    moved = folder.with_name("moved")
    folder.rename(moved)
    collect(tiny_pipe, make_plan(tiny_pipe, moved), tmp_path / "s")  # the place is no part of the plan
    Image.new("RGB", (20, 20)).save(moved / "0.png")
    with pytest.raises(PlanMismatch, match="samples_hash"):
        collect(tiny_pipe, make_plan(tiny_pipe, moved), tmp_path / "s")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"log_snr": ()}, InvalidPlan, "expected different numbers, at least one"),
        ({"log_snr": (0.0, 0.0)}, InvalidRequest, "ask for it once"),
        ({"log_snr": (25.0,)}, InvalidRequest, "its levels go from"),
        ({"mode": "guess"}, InvalidPlan, "expected noise or invert"),
        ({"inversion_steps": 0}, InvalidPlan, "inversion_steps must be an integer"),
        ({"sites": ["mid"]}, UnknownSite, "Near matches"),
    ],
)
def test_bad_plans(tiny_pipe, folder, changes, error, message):
    with pytest.raises(error) as caught:
        make_plan(tiny_pipe, folder, **changes)
    assert message in str(caught.value)


def test_plan_round_trip(tiny_pipe, folder):
    plan = make_plan(tiny_pipe, folder, mode="invert", log_snr=(3.0, -1.0))
    assert plan.log_snr == (-1.0, 3.0)
    assert ImagePlan.from_json(plan.to_json()) == plan


# Inversion


def gaussian(std: float):
    """The exact noise prediction for data from a centred Gaussian with this standard deviation."""

    def predict(z: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        return level.noise * z / (level.signal**2 * std**2 + level.noise**2)

    return predict


@pytest.mark.parametrize(
    "scheduler",
    [DDIMScheduler(beta_schedule="scaled_linear"), FlowMatchEulerDiscreteScheduler()],
    ids=["variance preserving", "flow"],
)
def test_inversion_follows_the_closed_form_path(scheduler):
    # The probability flow of Gaussian data keeps z / std(z): z = x0 sqrt(signal^2 s^2 + noise^2) / s.
    std = 0.7
    x0 = std * torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    wanted = noise_levels(scheduler, [-2.0, 0.0, 3.0])
    errors = []
    for steps in (40, 160):
        path = inversion_path(scheduler, steps, wanted)
        found = dict(invert(x0, path, gaussian(std)))
        ratios = []
        for level in wanted:
            expected = x0 * math.sqrt(level.signal**2 * std**2 + level.noise**2) / std
            ratios.append(float((found[level] - expected).abs().max() / expected.abs().max()))
        errors.append(max(ratios))
    assert errors[1] < 0.02 and errors[1] < 0.4 * errors[0]  # first order: a quarter


def test_predictions_of_every_kind_mean_the_same_noise():
    x0, n = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    for kind in ("epsilon", "v_prediction", "sample"):
        scheduler = DDIMScheduler(prediction_type=kind)
        level = noise_levels(scheduler, [-1.0])[0]
        output = {"epsilon": n, "v_prediction": level.signal * n - level.noise * x0, "sample": x0}[kind]
        torch.testing.assert_close(to_eps(scheduler, output, add_noise(x0, n, level), level), n, rtol=1e-4, atol=1e-4)
    flow = FlowMatchEulerDiscreteScheduler()
    level = noise_levels(flow, [1.0])[0]
    torch.testing.assert_close(to_eps(flow, n - x0, add_noise(x0, n, level), level), n, rtol=1e-4, atol=1e-4)


def test_inverted_images_are_recorded_on_their_own_path(tiny_pipe, folder, tmp_path):
    plan = make_plan(tiny_pipe, folder, mode="invert", inversion_steps=8, batch_size=5)
    store = collect(tiny_pipe, plan, tmp_path / "s")
    assert store.complete and store.plan["mode"] == "invert"
    scheduler = tiny_pipe.scheduler
    levels = noise_levels(scheduler, plan.log_snr)
    images = np.stack([load_image(folder, f, h, 16) for f, h in zip(plan.files, plan.sha256, strict=True)])
    model = condition(tiny_pipe, plan.prompts, 1.0)
    module = resolve_sites(tiny_pipe, MID)[0].module(tiny_pipe)
    seen: list[Any] = []
    with torch.no_grad():
        x0 = encode(tiny_pipe, images, model.sample_shape)
        path = inversion_path(scheduler, 8, levels)
        found = dict(invert(x0, path, lambda z, level: to_eps(scheduler, model(z, level.t), z, level)))
        handle = module.register_forward_hook(lambda module, args, output: seen.append(output))
        for level in levels:
            model(found[level], level.t)
        handle.remove()
    expected = torch.stack(seen, 1).flatten(3).transpose(2, 3).numpy()  # (samples, levels, tokens, channels)
    np.testing.assert_allclose(store.site(MID).read()[:, :, 0], expected, rtol=1e-4, atol=1e-5)
    noised = collect(tiny_pipe, make_plan(tiny_pipe, folder), tmp_path / "noised")
    assert np.abs(noised.site(MID).read() - store.site(MID).read()).max() > 1e-3


def test_noise_depends_on_the_seed_alone():
    both = noise([3, 4], (2, 5, 5), torch.device("cpu"))
    torch.testing.assert_close(both[1:], noise([4], (2, 5, 5), torch.device("cpu")))
    assert (both[0] != both[1]).any()
