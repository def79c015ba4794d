"""Random FLUX and SD3 transformers and an autoencoder for them, small enough to run in a moment."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel


def tiny_vae(n_blocks: int, shift: float) -> AutoencoderKL:
    """Four latent channels, 2^(n_blocks - 1) pixels a cell; latents are shifted before they are scaled."""
    sizes: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * n_blocks,
        "up_block_types": ("UpDecoderBlock2D",) * n_blocks,
        "block_out_channels": (4,) * n_blocks,
        "latent_channels": 4,
        "norm_num_groups": 2,
        "shift_factor": shift,
    }
    return AutoencoderKL(**sizes).eval().requires_grad_(False)


def tiny_flux_transformer(pooled: int) -> FluxTransformer2DModel:
    """One double and one single block of width 32, prompts of width 16."""
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=pooled, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    ).eval().requires_grad_(False)  # fmt: skip


def tiny_sd3_transformer(**options: Any) -> SD3Transformer2DModel:
    """Width 16, prompts of width 16; options: what differs, such as ``num_layers`` and ``sample_size``."""
    torch.manual_seed(0)
    return SD3Transformer2DModel(
        in_channels=4, out_channels=4, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16,
        caption_projection_dim=16, pooled_projection_dim=16, pos_embed_max_size=8, **options,
    ).eval().requires_grad_(False)  # fmt: skip
