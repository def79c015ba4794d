"""The autoencoder: 64 x 64 x 3 pixels to 16 x 16 x 8 latents and back.

An ``AutoencoderTiny`` (no attention, no normalisation), encoder and decoder trained jointly on

    L1 + 2 MSE + 0.5 |gradient difference| + 1e-3 z^2,

with Gaussian noise on the latents so that the decoder forgives small errors of the denoiser. The gradient term
keeps outlines sharp, which pixel errors alone do not.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from probe.canvas.train.renders import cached_renders, to_float

LATENT_NOISE = 0.05


def new_autoencoder() -> AutoencoderTiny:
    """The untrained network; most of its blocks work at quarter resolution, where they are cheap."""
    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32),
        decoder_block_out_channels=(32, 32, 32),
        num_encoder_blocks=(0, 1, 3),
        num_decoder_blocks=(3, 2, 0),
        latent_channels=8,
    )


def reconstruct(model: AutoencoderTiny, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 64, 64) in [-1, 1] to their reconstruction and latents (N, 8, 16, 16)."""
    z = model.encode(images).latents  # type: ignore[union-attr]
    return model.decode(z if noise is None else z + noise).sample, z  # type: ignore[union-attr]


def _slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


@dataclass
class AutoencoderTask:
    """Training of the autoencoder on cached renders."""

    work: Path
    n_renders: int

    def build(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return new_autoencoder()

    def prepare(self, device: torch.device) -> None:
        self.images, _ = cached_renders(self.work, self.n_renders)
        self.device = device

    def loss(self, model: nn.Module, batch_size: int, rng: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = torch.randint(len(self.images), (batch_size,), generator=rng)
        x = to_float(self.images[index]).to(self.device, memory_format=torch.channels_last)
        noise = torch.randn(batch_size, 8, 16, 16, generator=rng).to(self.device) * LATENT_NOISE
        assert isinstance(model, AutoencoderTiny)
        y, z = reconstruct(model, x, noise)
        mse = F.mse_loss(y, x)
        slope = sum(F.l1_loss(a, b) for a, b in zip(_slopes(y), _slopes(x), strict=True))
        loss = F.l1_loss(y, x) + 2 * mse + 0.5 * slope + 1e-3 * z.pow(2).mean()
        return loss, {"psnr": float(10 * torch.log10(4 / mse.detach()))}
