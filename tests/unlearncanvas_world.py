"""A tiny UnlearnCanvas: random classifiers, images and a random Stable Diffusion, all in the published layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import build_tiny_pipeline
from PIL import Image
from safetensors.torch import save_file

from apps.unlearncanvas.protocol import LABELS, PHOTOGRAPH
from apps.unlearncanvas.vit import ViT


def tiny_vit(n_labels: int, seed: int = 0) -> ViT:
    """32 pixels, two blocks of width 128, random weights."""
    torch.manual_seed(seed)
    net = ViT(side=32, patch=16, width=128, depth=2, hidden=96, n_labels=n_labels)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


def write_classifiers(folder: Path) -> Path:
    """``object.safetensors`` and ``style.safetensors``."""
    for factor, labels in LABELS.items():
        save_file(dict(tiny_vit(len(labels)).state_dict()), folder / f"{factor}.safetensors")
    return folder


def write_data(folder: Path) -> Path:
    """Two styles, the photographs and two objects, three images each."""
    rng = np.random.default_rng(0)
    for style in ("Van_Gogh", "Monet", PHOTOGRAPH):
        for name in ("Dogs", "Cats"):
            (folder / style / name).mkdir(parents=True)
            for number in (1, 2, 10):
                pixels = rng.integers(0, 255, (20, 24, 3), np.uint8)
                Image.fromarray(pixels).save(folder / style / name / f"{number}.jpg")
    (folder / "notes.txt").write_text("not an image")
    return folder


def write_model(folder: Path) -> Path:
    """A pipeline with attention where the real one has it (``up_blocks.1.attentions.2``)."""
    from diffusers import PNDMScheduler, UNet2DConditionModel

    pipe = build_tiny_pipeline()
    torch.manual_seed(0)
    pipe.unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=4,
    ).eval()
    settings: Any = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    pipe.scheduler = PNDMScheduler(**settings, skip_prk_steps=True)
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder
