"""Shared fixtures. Heavy imports happen inside them, so that tests of the store alone stay quick."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

TINY_WORDS = ("a", "the", "red", "blue", "green", "star", "moon", "cup", "flat", "mosaic", "neon", "in", "style")


def build_tiny_pipeline() -> StableDiffusionPipeline:
    """A StableDiffusionPipeline with random weights: 16 x 16 images, 65k parameters, 0.05 s an image.

    Sites include ``unet.mid_block`` (4 x 4 x 16), ``unet.up_blocks.0`` (8 x 8 x 16, with attention) and
    ``unet.down_blocks.1.attentions.0``.
    """
    import torch
    from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = sorted(set("".join(TINY_WORDS)))
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer: Any = CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[], model_max_length=32)
    torch.manual_seed(0)
    text_config = CLIPTextConfig(
        vocab_size=len(pieces),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        projection_dim=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=4,
    )
    vae: Any = AutoencoderTiny(
        latent_channels=4,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        upsampling_scaling_factor=2,
    )
    scheduler: Any = DDIMScheduler(
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )
    pipe = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=CLIPTextModel(text_config).eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    for module in (pipe.unet, pipe.vae, pipe.text_encoder):
        module.requires_grad_(False)
    return pipe


@pytest.fixture(scope="session")
def tiny_pipe() -> StableDiffusionPipeline:
    """The tiny pipeline in memory. Shared: a test that changes weights or scheduler loads ``tiny_folder``."""
    return build_tiny_pipeline()


@pytest.fixture(scope="session")
def tiny_folder(tiny_pipe: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pipeline, saved with ``save_pretrained`` and a ``denoscope.json`` (4 steps, guidance 2)."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipe.save_pretrained(folder, safe_serialization=True)
    (folder / "denoscope.json").write_text('{"steps": 4, "guidance": 2.0}')
    return folder


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with planted truth for the dashboard's tests, made once; nobody writes into it."""
    from test_apps_dashboard_run import planted_run

    return planted_run(tmp_path_factory.mktemp("dashboard") / "planted")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finders on a store read so few rows at a time that the smallest store takes several blocks."""
    from probe.directions import rows

    monkeypatch.setattr(rows, "_BLOCK_BYTES", 2048)
