"""Guide the sampler by a second prompt: a term added to the predicted noise.

    eps' = eps + w (eps(x_t | c) - eps(x_t | null))

NoiseCLR's edits (Dalva & Yanardag 2024) have this form, and safe latent diffusion (Schramowski et al. 2023) is it with
w < 0. Two more denoiser evaluations a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from probe.errors import InvalidIntervention, UnsupportedPipeline
from probe.interventions.ops import Op, Pack, StepContext, Unpack, Weight, add_change, float_table
from probe.model.generate import model_label
from probe.model.pipeline import Pipeline


@dataclass(frozen=True, eq=False)
class Guide(Op):
    """eps' = eps + w (eps(x_t | towards) - eps(x_t | null)); for the site ``sampler:eps``.

    Attributes:
        towards: (L, C) text embedding.
        null: (L, C) text embedding that it is compared with, usually that of the empty prompt.
    """

    kind: ClassVar[str] = "guide"
    towards: torch.Tensor
    null: torch.Tensor

    def __post_init__(self) -> None:
        for name in ("towards", "null"):
            object.__setattr__(self, name, float_table(f"Guide: {name}", getattr(self, name), 2))

    def apply(self, x: torch.Tensor, weight: Weight, context: StepContext) -> torch.Tensor:
        if context.predict is None:
            raise InvalidIntervention(f"Guide at {context.site}: it adds to the sampler's noise; use 'sampler:eps'.")
        return add_change(x, context.predict(self.towards) - context.predict(self.null), weight)

    def to_record(self, pack: Pack) -> dict[str, Any]:
        return {"towards": pack(self.towards), "null": pack(self.null)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], unpack: Unpack) -> Guide:
        return cls(unpack(record["towards"]), unpack(record["null"]))


def text_embedding(pipe: Pipeline, prompt: str) -> torch.Tensor:
    """The embedding (L, C) that the denoiser is given for a prompt.

    Raises:
        UnsupportedPipeline: the denoiser is given more than that for a prompt (pooled embeddings, class labels).
    """
    return text_embeddings(pipe, [prompt])[0]


def text_embeddings(pipe: Pipeline, prompts: Sequence[str]) -> torch.Tensor:
    """The same for several prompts in one call of the text encoder, (N, L, C)."""
    encode = getattr(pipe, "encode_prompt", None)
    found = encode(list(prompts), pipe.device, 1, False) if encode is not None else ()
    if len(found) != 2:
        raise UnsupportedPipeline(
            f"{model_label(pipe)}: expected encode_prompt to return a text embedding and its negative, "
            f"found {len(found)} values; a prompt is more than one embedding here."
        )
    return found[0].detach().clone()
