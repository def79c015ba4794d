"""A pipeline whose denoiser is a closed form: samples of a prompt are Gaussian about a mean linear in its embedding.

    h = W e      e the mean over tokens of the text embedding, (16,)
    x ~ N(M h, s^2 I),        E[x | z] = M h + alpha s^2 / (alpha^2 s^2 + sigma^2) (z - alpha M h)

The site of h is unet.mid_block:out and W is the weight of unet.text,
so what a vector at the site, in the embedding, or a change of W does to the posterior mean is known.
"""

from __future__ import annotations

from typing import Any

import torch
from conftest import build_tiny_pipeline
from diffusers.configuration_utils import FrozenDict

from probe.interventions.guide import text_embedding
from probe.model import PipelineEps

D_TEXT, D_SITE, SPREAD = 16, 6, 0.5


class PlantedUNet(torch.nn.Module):
    """The denoiser; predicts the velocity, as the tiny pipeline's scheduler expects."""

    def __init__(self, abar: torch.Tensor, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.config = FrozenDict(in_channels=4, sample_size=4, time_cond_proj_dim=None)
        self.register_buffer("abar", abar.double())
        self.text = torch.nn.Linear(D_TEXT, D_SITE, bias=False)
        self.mid_block = torch.nn.Identity()
        self.mean = torch.nn.Linear(D_SITE, 64, bias=False)
        for layer, size in ((self.text, D_TEXT), (self.mean, D_SITE)):
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator) / size**0.5
        self.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.text.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.text.weight.dtype

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep_cond: Any = None,
        cross_attention_kwargs: Any = None,
        added_cond_kwargs: Any = None,
        return_dict: bool = True,
    ) -> tuple[torch.Tensor]:
        h = self.mid_block(self.text(encoder_hidden_states.mean(1, keepdim=True)))
        m = self.mean(h[:, 0]).reshape(-1, 4, 4, 4)
        abar = self.get_buffer("abar")[torch.as_tensor(timestep).long()].float().reshape(-1, 1, 1, 1)
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        x0 = m + alpha * SPREAD**2 / (abar * SPREAD**2 + sigma**2) * (sample - alpha * m)
        return ((alpha * sample - x0) / sigma,)


class Planted:
    """The pipeline behind ``PipelineEps``, and its truth."""

    def __init__(self, seed: int) -> None:
        pipe: Any = build_tiny_pipeline()
        self.unet = PlantedUNet(pipe.scheduler.alphas_cumprod, seed)
        pipe.unet = self.unet
        self.model = PipelineEps(pipe)
        self.w, self.m = self.unet.text.weight, self.unet.mean.weight

    def h(self, prompt: str) -> torch.Tensor:
        """The site's row (6,) for a prompt."""
        return self.w @ text_embedding(self.model.pipe, prompt).mean(0)

    def samples(self, h: torch.Tensor, n: int, seed: int) -> torch.Tensor:
        """n samples whose site would hold h, with the mean that they should have."""
        noise = SPREAD * torch.randn(n, 64, generator=torch.Generator().manual_seed(seed))
        return (self.m @ h + noise - noise.mean(0)).reshape(n, 4, 4, 4)
