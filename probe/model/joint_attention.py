"""Joint attention: text and picture in one sequence that attends to itself (Stable Diffusion 3, Esser et al. 2024,
arXiv 2403.03206; FLUX, Black Forest Labs 2024).

    P[h, q, k] = softmax_k (Q_h K_h^T / sqrt(d)),     q and k over the tokens of the text and the cells of the picture

The block of P with cells as queries and text tokens as keys is what a cross-attention is in a UNet, but its rows do not
sum to one: what is left of a cell's weight goes to other cells. Three layouts have the block:

    SD3            projections of its own for the text
    FLUX, double   projections of its own for the text; rotary positions
    FLUX, single   one set of projections for the sequence [text | picture]; rotary positions; no output projection

The order of the keys does not matter to the softmax, so the text stands first here in all three.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention

from probe.errors import UnsupportedSite

_CALL = ("hidden_states", "encoder_hidden_states", "attention_mask", "image_rotary_emb")


def is_joint(module: torch.nn.Module) -> bool:
    """Whether a module is a joint attention of SD3 or FLUX."""
    if isinstance(module, Attention):
        return isinstance(module.processor, JointAttnProcessor2_0) and module.add_k_proj is not None
    return isinstance(module, FluxAttention)


def joint_map(
    attn: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], n_text: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The block of the map from cells to text tokens, and the values of the text, for the call of a joint attention.

    Args:
        attn: the module (see ``is_joint``).
        args, kwargs: of its call.
        n_text: text tokens of the sequence.

    Returns:
        probabilities (B, heads, cells, text tokens) and values (B, heads, text tokens, head size). Softmax in float32,
        one head at a time: beside the result, B x cells x (text tokens + cells) numbers are in memory.

    Raises:
        UnsupportedSite: its projections are fused, or its softmax is masked.
    """
    call = dict(zip(_CALL, args, strict=False)) | dict(kwargs)
    if getattr(attn, "fused_projections", False):
        raise UnsupportedSite("joint attention: its projections are fused; call unfuse_qkv_projections() first.")
    if call.get("attention_mask") is not None:
        raise UnsupportedSite("joint attention: it is called with a mask, which is not read.")
    cells, text = call["hidden_states"], call.get("encoder_hidden_states")

    def heads(x: torch.Tensor, norm: torch.nn.Module | None) -> torch.Tensor:
        x = x.unflatten(2, (attn.heads, -1))
        return x if norm is None else norm(x)

    query, key = heads(attn.to_q(cells), attn.norm_q), heads(attn.to_k(cells), attn.norm_k)
    if text is None:  # the sequence [text | picture]
        query = query[:, n_text:]
        value = heads(attn.to_v(cells[:, :n_text]), None)
    else:
        key = torch.cat([heads(attn.add_k_proj(text), attn.norm_added_k), key], 1)
        value = heads(attn.add_v_proj(text), None)
    rotary = call.get("image_rotary_emb")
    if rotary is not None:
        cos, sin = rotary
        query, key = _turned(query, cos[n_text:], sin[n_text:]), _turned(key, cos, sin)
    query, key = query.transpose(1, 2) * query.shape[-1] ** -0.5, key.transpose(1, 2)
    probs = query.new_empty((*query.shape[:3], n_text))
    for h in range(attn.heads):
        scores = query[:, h] @ key[:, h].transpose(1, 2)
        probs[:, h] = scores.softmax(-1, dtype=torch.float32)[..., :n_text]
    return probs, value.transpose(1, 2)


def add_to_cells(attn: Any, output: Any, values: torch.Tensor, n_text: int) -> Any:
    """What a joint attention returned, with values (B, heads, cells, head size) added to its cells' before they are
    merged and projected.
    """
    moved = values.transpose(1, 2).flatten(2)
    if isinstance(output, tuple):  # the picture's stream and the text's
        return (output[0] + torch.nn.functional.linear(moved, attn.to_out[0].weight), *output[1:])
    return torch.cat([output[:, :n_text], output[:, n_text:] + moved], 1)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Queries or keys (B, tokens, heads, head size) with the rotary embedding of their tokens' places."""
    places: Any = (cos, sin)  # diffusers declares another type than it takes, and returns
    turned: Any = apply_rotary_emb(x, places, sequence_dim=1)
    return turned
