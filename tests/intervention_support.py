"""What tests of edits share: prompts and sites of the tiny pipeline, a dictionary for it, drawing with edits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from probe.interventions import TopKDictionary
from probe.interventions.ops import StepContext
from probe.model import generate

D, D_SAE, K = 16, 24, 4
"""Channels of the mid-block, and the dictionary of its rows."""
STEPS, GUIDANCE = 3, 2.0
PROMPTS, SEEDS = ["a red star", "a blue moon"], [3, 4]
ATTN = "up_blocks.0.attentions.0.transformer_blocks.0.attn2"
GAINS = torch.tensor([0.0, 3.0, 1.0, 0.5, 1.0, 1.0, 2.0, 1.0])
"""Of the heads of ATTN."""
HERE = StepContext("here", 0, 999.0)


def random_dictionary(seed: int = 0) -> TopKDictionary:
    """Unit decoder rows, small biases."""
    g = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(D_SAE, D, generator=g), dim=-1)
    b_enc, b_dec = 0.1 * torch.randn(D_SAE, generator=g), 0.1 * torch.randn(D, generator=g)
    return TopKDictionary(W_dec.T.clone(), b_enc, W_dec, b_dec, k=K)


def draw(
    pipe: Any, edits: Any = (), prompts: Sequence[str] = PROMPTS, seeds: Sequence[int] = SEEDS, **settings: Any
) -> np.ndarray:
    """Images of the prompts with edits, uint8 (n, H, W, 3)."""
    return generate(pipe, prompts, seeds, **({"steps": STEPS, "guidance": GUIDANCE} | settings), interventions=edits)
