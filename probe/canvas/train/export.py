"""Writes what was trained as the folders that ship: an ordinary Stable Diffusion pipeline and the judge."""

import json
import os
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from probe.canvas.judge_net import JudgeNet
from probe.canvas.train.autoencoder import new_autoencoder, reconstruct
from probe.canvas.train.denoiser import Denoiser, cached_latents, new_scheduler
from probe.canvas.train.judge import temperature
from probe.canvas.train.renders import TEST_SEED, cached_renders, to_float
from probe.canvas.train.text import canvas_tokenizer
from probe.canvas.world import FACTORS

DEFAULTS = {"steps": 10, "guidance": 2.0}  # read by probe.model.generation_defaults
CLEAN_FLAGGED = 0.01  # share of clean images that the artifact threshold flags


def export_autoencoder(ema: Path, folder: Path, *, scaling_factor: float = 1.0) -> None:
    """Write the averaged autoencoder as a diffusers folder."""
    model = new_autoencoder()
    model.load_state_dict(load_file(ema))
    model.register_to_config(scaling_factor=scaling_factor)
    model.save_pretrained(folder, safe_serialization=True)


def export_pipeline(ema: Path, autoencoder: Path, work: Path, n_renders: int, folder: Path) -> None:
    """Write the pipeline in half precision, with canvas's own defaults beside it."""
    model = Denoiser()
    model.load_state_dict(load_file(ema))
    vae = AutoencoderTiny.from_pretrained(autoencoder, local_files_only=True)
    assert isinstance(vae, AutoencoderTiny)
    _, std = cached_latents(work, n_renders, autoencoder)
    vae.register_to_config(scaling_factor=1 / std)
    pipe = StableDiffusionPipeline(
        vae=vae,  # type: ignore[arg-type]
        text_encoder=model.text_encoder,
        tokenizer=canvas_tokenizer(),
        unet=model.unet,
        scheduler=new_scheduler(),  # type: ignore[arg-type]
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    pipe.to(dtype=torch.float16)
    pipe.save_pretrained(folder, safe_serialization=True)
    for path in folder.glob("*/config.json"):  # where a part was trained is nobody's business
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2) + "\n")
    (folder / "denoscope.json").write_text(json.dumps(DEFAULTS, indent=2) + "\n")


@torch.inference_mode()
def export_judge(ema: Path, autoencoder: Path, work: Path, folder: Path, *, n: int = 2000) -> dict[str, float]:
    """Calibrate the judge on held-out renders and their reconstructions and write it; returns accuracies."""
    net = JudgeNet().eval()
    net.load_state_dict(load_file(ema))
    vae = AutoencoderTiny.from_pretrained(autoencoder, local_files_only=True)
    assert isinstance(vae, AutoencoderTiny)
    images, labels = cached_renders(work, n, split="all", seed=TEST_SEED)
    outs: dict[str, list[torch.Tensor]] = {}
    for chunk in images.split(250):
        x = to_float(chunk)
        for kind, y in (("render", x), ("decoded", reconstruct(vae, x)[0].clamp(-1, 1))):
            for name, logits in net(y).items():
                outs.setdefault(f"{kind}.{name}", []).append(logits)
    joined = {k: torch.cat(v) for k, v in outs.items()}
    accuracy: dict[str, float] = {}
    temperatures = {"artifact": 1.0}
    for i, factor in enumerate(FACTORS):
        both = torch.cat([joined[f"render.{factor}"], joined[f"decoded.{factor}"]])
        temperatures[factor] = temperature(both, labels[:, i].repeat(2))
        for kind in ("render", "decoded"):
            accuracy[f"{kind}.{factor}"] = float((joined[f"{kind}.{factor}"].argmax(1) == labels[:, i]).double().mean())
    clean = torch.sigmoid(torch.cat([joined["render.artifact"], joined["decoded.artifact"]]))
    threshold = max(0.5, float(torch.quantile(clean, 1 - CLEAN_FLAGGED)))
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "judge.partial"
    save_file({k: v.half().contiguous() for k, v in net.state_dict().items()}, partial)
    os.replace(partial, folder / "judge.safetensors")
    config = {"temperatures": temperatures, "artifact_threshold": threshold}
    (folder / "judge.json").write_text(json.dumps(config, indent=2) + "\n")
    return accuracy
