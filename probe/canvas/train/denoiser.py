"""The denoiser: a UNet with cross-attention and its text encoder, trained jointly on cached latents.

Velocity prediction (Salimans & Ho, 2022): with z_t = a_t z + s_t e, a_t^2 = abar_t, the target is v = a_t e - s_t z.
The betas are rescaled to zero terminal SNR (Lin et al., 2024), so that step 0 starts from pure noise and images can
be as dark or as bright as the data. Timesteps are drawn 70 % from a logit-normal (Esser et al., 2024), 30 % uniformly.
One caption in ten is replaced by the empty one (classifier-free guidance, Ho & Salimans, 2022).

Training uses the plain attention processor: on CPUs the backward of the fused kernel is several times slower.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from probe.canvas.captions import training_caption
from probe.canvas.train.renders import cached_renders, to_float
from probe.canvas.train.text import MAX_TOKENS, canvas_tokenizer, new_text_encoder
from probe.canvas.world import FACTORS

EMPTY_CAPTION = 0.1  # share of captions dropped
LOGIT_NORMAL = 0.7  # share of timesteps from the logit-normal


def new_unet() -> UNet2DConditionModel:
    """The untrained UNet, 5.2 M parameters: attention at 8 x 8 and 4 x 4, none at 16 x 16 where it would cost most."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        cross_attention_dim=64,
        # diffusers reads this field as the number of heads.
        attention_head_dim=4,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )


def new_scheduler() -> DDIMScheduler:
    """The noise schedule of training and the sampler that ships."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )


def cached_latents(work: Path, n: int, autoencoder: Path) -> tuple[Tensor, float]:
    """Latents of the first n training renders, encoded now or read from ``work``.

    Returns:
        (n, 8, 16, 16) float16 latents divided by their standard deviation, and that deviation.
    """
    path = work / f"latents-{n}.safetensors"
    if not path.exists():
        images, _ = cached_renders(work, n)
        vae = AutoencoderTiny.from_pretrained(autoencoder, local_files_only=True)
        assert isinstance(vae, AutoencoderTiny)
        parts = []
        with torch.inference_mode():
            for chunk in tqdm(images.split(250), desc="latents"):
                parts.append(vae.encode(to_float(chunk)).latents)  # type: ignore[union-attr]
        z = torch.cat(parts)
        std = z.std()
        partial = path.with_suffix(".partial")
        save_file({"latents": (z / std).half(), "std": std}, partial)
        partial.replace(path)
    state = load_file(path)
    return state["latents"], float(state["std"])


class Denoiser(nn.Module):
    """UNet and text encoder as one module, so that one optimiser and one average cover both."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = new_unet()
        self.unet.set_attn_processor(AttnProcessor())
        self.text_encoder = new_text_encoder(canvas_tokenizer())

    def forward(self, z: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Velocity (N, 8, 16, 16) for noisy latents, timesteps (N,) and token ids (N, 16)."""
        return self.unet(z, t, self.text_encoder(tokens).last_hidden_state).sample


@dataclass
class DenoiserTask:
    """Training of the denoiser; ``start`` holds weights to begin from, such as the shipped ones."""

    work: Path
    n_renders: int
    autoencoder: Path
    start: Path | None = None

    def build(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = Denoiser()
        if self.start is not None:
            model.load_state_dict(load_file(self.start))
        return model

    def prepare(self, device: torch.device) -> None:
        self.latents, _ = cached_latents(self.work, self.n_renders, self.autoencoder)
        _, self.labels = cached_renders(self.work, self.n_renders)
        self.tokenizer = canvas_tokenizer()
        self.alphas_cumprod = new_scheduler().alphas_cumprod
        self.device = device

    def captions(self, labels: Tensor, rng: torch.Generator) -> list[str]:
        """A training caption for each row of labels (N, 4)."""
        draws = np.random.default_rng(int(torch.randint(2**62, (1,), generator=rng)))
        texts = []
        for row in labels.tolist():
            names = {factor: values[i] for (factor, values), i in zip(FACTORS.items(), row, strict=True)}
            texts.append("" if draws.random() < EMPTY_CAPTION else training_caption(names, draws))
        return texts

    def loss(self, model: nn.Module, batch_size: int, rng: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = torch.randint(len(self.latents), (batch_size,), generator=rng)
        z = self.latents[index].float()
        texts = self.captions(self.labels[index], rng)
        tokens = self.tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids
        u = torch.where(
            torch.rand(batch_size, generator=rng) < LOGIT_NORMAL,
            torch.sigmoid(torch.randn(batch_size, generator=rng)),
            torch.rand(batch_size, generator=rng),
        )
        t = (u * 1000).long().clamp(0, 999)
        abar = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        a, s = abar.sqrt(), (1 - abar).sqrt()
        e = torch.randn(z.shape, generator=rng)
        target = (a * e - s * z).to(self.device)
        noisy = (a * z + s * e).to(self.device, memory_format=torch.channels_last)
        return F.mse_loss(model(noisy, t.to(self.device), tokens.to(self.device)), target), {}
