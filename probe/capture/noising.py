"""Bring real images into the model's own space and call its denoiser on them.

What the denoiser needs beside a noisy sample is taken from the pipeline itself (``probe.model.conditioning``); then
sample and time are replaced by ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from probe.errors import UnsupportedPipeline
from probe.model.conditioning import denoiser_call
from probe.model.generate import model_label
from probe.model.packing import Packing
from probe.model.pipeline import Pipeline
from probe.model.schedule import NoiseLevel
from probe.model.steps import denoiser


@dataclass(frozen=True)
class Conditioned:
    """A denoiser with everything but sample and time.

    Attributes:
        branches: guidance branches along the batch.
        sample_shape: shape of one sample, (C, H, W), also where the denoiser takes it cut into tokens.
        dtype: of the sample.
    """

    branches: tuple[str, ...]
    sample_shape: tuple[int, ...]
    dtype: torch.dtype
    _module: torch.nn.Module
    _call: dict[str, Any]
    _sample: str
    _packing: Packing | None
    _time_scale: float

    def __call__(self, x: torch.Tensor, t: float) -> torch.Tensor:
        """The denoiser's output, (len(branches) * B, C', H, W), for samples x (B, C, H, W) at a time t of the
        scheduler.
        """
        given = self._call["timestep"]
        n = x.shape[0] * len(self.branches)
        like = given if isinstance(given, torch.Tensor) else torch.tensor(given, device=x.device)
        time = torch.full((n,) if like.ndim else (), t * self._time_scale, dtype=like.dtype, device=like.device)
        doubled = torch.cat([x.to(self.dtype)] * len(self.branches))
        doubled = doubled if self._packing is None else self._packing.pack(doubled)
        output = self._module(**(self._call | {self._sample: doubled, "timestep": time}))
        output = output[0] if isinstance(output, tuple) else output.sample
        output = output if self._packing is None else self._packing.unpack(output)
        return output[:, : x.shape[1]]  # DiT predicts variances behind the noise


def condition(pipe: Pipeline, prompts: Sequence[str], guidance: float) -> Conditioned:
    """The pipeline's denoiser, conditioned on prompts. Costs the text encoder, no denoiser call.

    Args:
        pipe: the pipeline; its scheduler's timesteps are set anew.
        prompts: one a sample.
        guidance: above 1 for both branches.

    Raises:
        UnsupportedPipeline: the denoiser is not called with a map, plain or packed, and a 'timestep'.
    """
    found = denoiser_call(pipe, prompts, guidance)
    sample = found.arguments[found.sample]
    shape = sample.shape if found.packing is None else found.packing.unpack(sample).shape
    return Conditioned(
        found.branches, tuple(shape[1:]), sample.dtype, found.module, found.arguments, found.sample, found.packing,
        found.time_scale,
    )  # fmt: skip


def image_size(pipe: Pipeline, sample_shape: Sequence[int]) -> int:
    """Side of the square images that belong to a sample of this shape."""
    return int(sample_shape[-1]) * int(getattr(pipe, "vae_scale_factor", 1) if getattr(pipe, "vae", None) else 1)


@torch.no_grad()
def encode(pipe: Pipeline, images: np.ndarray, sample_shape: Sequence[int]) -> torch.Tensor:
    """Clean samples x0 of images, in the scale the denoiser was trained in.

    Args:
        pipe: the pipeline; its autoencoder's mean is taken, nothing is drawn. Without one, images are samples.
        images: uint8 (B, H, W, 3).
        sample_shape: expected shape of a sample.

    Returns:
        float32 (B, C, h, w).
    """
    _, module = denoiser(pipe)
    device = next(module.parameters()).device
    x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    vae = getattr(pipe, "vae", None)
    if vae is not None:
        encoded = vae.encode(x.to(next(vae.parameters()).dtype))
        latents = (encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()).float()
        config = vae.config
        shift, scale = config.get("shift_factor") or 0.0, config.get("scaling_factor") or 1.0
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:  # some SDXL models normalise each channel
            mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (mean, std))
            x = (latents - mean) * scale / std
        else:
            x = (latents - shift) * scale
    if tuple(x.shape[1:]) != tuple(sample_shape):
        raise UnsupportedPipeline(
            f"{model_label(pipe)}: an image becomes a sample {tuple(x.shape[1:])}, but the denoiser takes "
            f"{tuple(sample_shape)}."
        )
    return x


def noise(seeds: Sequence[int], shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Unit normal noise (B, *shape) float32; a sample's depends on its own seed alone, on any device."""
    drawn = [torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(int(seed))) for seed in seeds]
    return torch.stack(drawn).to(device)


def add_noise(x0: torch.Tensor, n: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """signal x0 + noise n: what ``scheduler.add_noise`` makes, in the scale the denoiser takes."""
    return level.signal * x0 + level.noise * n
