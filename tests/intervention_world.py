"""A closed-form denoiser inside a genuine StableDiffusionPipeline, so that edits have answers on paper."""

from __future__ import annotations

from typing import Any

import torch
from conftest import build_tiny_pipeline
from diffusers import ConfigMixin, DDIMScheduler, ModelMixin, StableDiffusionPipeline
from diffusers.configuration_utils import register_to_config

LAM = 0.9563524997290027
"""Variance of the data: the eigenvalue of the exact figures below."""


class GaussianDenoiser(ModelMixin, ConfigMixin):
    """The exact noise of data N(mu(c), lam): eps = sqrt(1 - abar) (z - sqrt(abar) mu) / (abar lam + 1 - abar).

    mu(c) is the mean of the text embedding, so that the guidance branches differ. ``head`` is a site between the answer
    and the output.
    """

    @register_to_config
    def __init__(
        self, lam: float = LAM, in_channels: int = 4, sample_size: int = 4, time_cond_proj_dim: Any = None
    ) -> None:
        super().__init__()
        self.lam = lam
        self.prediction = "epsilon"
        self.head = torch.nn.Conv2d(in_channels, in_channels, 1, bias=False)
        torch.nn.init.dirac_(self.head.weight)
        self.alphas_cumprod = torch.empty(0, dtype=torch.float64)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep_cond: Any = None,
        cross_attention_kwargs: Any = None,
        added_cond_kwargs: Any = None,
        return_dict: bool = False,
    ) -> tuple[torch.Tensor]:
        abar = self.alphas_cumprod[int(timestep)]
        mu = encoder_hidden_states.mean((1, 2))[:, None, None, None]
        eps = (1 - abar).sqrt() * (sample - abar.sqrt() * mu) / (abar * self.lam + 1 - abar)
        eps = self.head(eps)
        x0 = (sample - (1 - abar).sqrt() * eps) / abar.sqrt()
        velocity = abar.sqrt() * eps - (1 - abar).sqrt() * x0
        return ({"epsilon": eps, "v_prediction": velocity, "sample": x0}[self.prediction],)


def gaussian_pipe() -> StableDiffusionPipeline:
    """Float64, linear betas from 1e-4 to 0.02, 1,000 training steps; latents 4 x 4 x 4."""
    pipe = build_tiny_pipeline()
    unet = GaussianDenoiser()
    scheduler: Any = DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False, set_alpha_to_one=True, steps_offset=0
    )
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    unet.alphas_cumprod = scheduler.alphas_cumprod
    for part in (unet, pipe.text_encoder, pipe.vae):
        torch.nn.Module.to(part, torch.float64)
    components: dict[str, Any] = dict(pipe.components) | {"unet": unet}
    made = StableDiffusionPipeline(**components, requires_safety_checker=False)
    made.scheduler = scheduler
    made.set_progress_bar_config(disable=True)
    return made


def latents(pipe: StableDiffusionPipeline, steps: int, guidance: float, start: torch.Tensor) -> torch.Tensor:
    """Where the sampler ends, from a given start."""
    call: Any = pipe
    found = call(
        ["a red star"] * len(start),
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=start.clone(),
        output_type="latent",
    )
    return found.images
