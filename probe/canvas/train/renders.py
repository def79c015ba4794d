"""Renders kept in one file, so that three trainings draw them once.

Index i of a data set is the image ``render_batch([i], split, seed)``. Training uses seed 0; the judge is tested on
``TEST_SEED``, which no training sees.
"""

import os
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from probe.canvas.render import render_batch
from probe.canvas.world import Split

TRAIN_SEED, TEST_SEED = 0, 1
_CHUNK = 500


def cached_renders(folder: Path, n: int, *, split: Split = "train", seed: int = TRAIN_SEED) -> tuple[Tensor, Tensor]:
    """The first n renders of a data set, drawn now or read from ``folder``.

    Returns:
        Images (n, 3, 64, 64) uint8, memory-mapped, and labels (n, 4) int64 in the order of ``FACTORS``.
    """
    path = folder / f"renders-{split}-{seed}-{n}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        starts = tqdm(range(0, n, _CHUNK), desc=f"renders ({split})", unit=f"x{_CHUNK}")
        parts = [render_batch(range(i, min(i + _CHUNK, n)), split=split, seed=seed) for i in starts]
        images = torch.from_numpy(np.concatenate([p.images for p in parts])).permute(0, 3, 1, 2).contiguous()
        labels = torch.from_numpy(np.concatenate([p.labels for p in parts]))
        partial = path.with_suffix(".partial")
        save_file({"images": images, "labels": labels}, partial)
        os.replace(partial, path)
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("images"), file.get_tensor("labels")


def to_float(images: Tensor) -> Tensor:
    """uint8 pixels (N, 3, H, W) to floats in [-1, 1]."""
    return images.float().div_(127.5).sub_(1.0)
