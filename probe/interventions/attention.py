"""Edit attention maps without replacing the attention.

The module runs as it is, with whatever kernel it uses. Then the map P = softmax(Q K^T / sqrt(d)) is computed once
more, edited to P', and the output is moved by what that changes, which is linear in the map:

    out' = out + merge_heads((P' - P) V) W_out^T / rescale

so an edit that changes nothing leaves every bit in place. Costs the projections and the map of the edited modules a
second time at the steps of the edit, and batch x heads x queries x keys numbers. A mask may be (queries, keys), (keys,)
for text tokens, or a (height, width) picture over the queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention_processor import Attention

from probe.errors import UnsupportedSite

if TYPE_CHECKING:
    from probe.interventions.places import Placed


class AttentionEdits:
    """Forward hook of one attention module."""

    def __init__(
        self,
        module: torch.nn.Module,
        placed: Sequence[Placed],
        change: Callable[[Placed, torch.Tensor], torch.Tensor],
        active: Callable[[Placed], bool],
    ) -> None:
        """
        Raises:
            UnsupportedSite: the module is not an attention of the plain kind.
        """
        site = placed[0].site
        if not isinstance(module, Attention) or module.add_k_proj is not None or module.to_k is None:
            raise UnsupportedSite(
                f"site {site}: {type(module).__name__} is not a plain attention of diffusers, so it has no one map; "
                "choose a module named attn1 or attn2."
            )
        self._placed = placed
        self._change = change
        self._active = active

    def __call__(self, attn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> torch.Tensor:
        if not any(self._active(where) for where in self._placed):
            return output
        call: dict[str, Any] = dict(zip(_CALL[:3], args, strict=False)) | kwargs
        with torch.set_grad_enabled(torch.is_grad_enabled() and output.requires_grad):
            probs, value = attention_map(attn, **{key: call[key] for key in _CALL if key in call})
            edited = probs
            for where in self._placed:
                edited = self._change(where, edited)
            if edited is probs:
                return output
            moved = ((edited - probs) @ value).transpose(1, 2).flatten(2)  # (B, Q, heads * head size)
            moved = torch.nn.functional.linear(moved, attn.to_out[0].weight) / attn.rescale_output_factor
            if output.ndim == 4:
                moved = moved.transpose(1, 2).reshape(output.shape)
            return torch.where(moved != 0, output + moved, output)


_CALL = ("hidden_states", "encoder_hidden_states", "attention_mask", "temb")


def attention_map(
    attn: Any,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    temb: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The map and the values of an ``Attention`` for the arguments it was called with.

    Returns:
        probabilities (B, heads, queries, keys) and values (B, heads, keys, head size).
    """
    if attn.spatial_norm is not None:
        hidden_states = attn.spatial_norm(hidden_states, temb)
    if hidden_states.ndim == 4:
        hidden_states = hidden_states.flatten(2).transpose(1, 2)
    source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
    mask = attn.prepare_attention_mask(attention_mask, source.shape[1], source.shape[0])
    if attn.group_norm is not None:
        hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
    if encoder_hidden_states is None:
        source = hidden_states
    elif attn.norm_cross:
        source = attn.norm_encoder_hidden_states(source)
    query, key, value = (
        x.unflatten(2, (attn.heads, -1)).transpose(1, 2)
        for x in (attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source))
    )
    query = query if attn.norm_q is None else attn.norm_q(query)
    key = key if attn.norm_k is None else attn.norm_k(key)
    scores = attn.get_attention_scores(query.flatten(0, 1), key.flatten(0, 1), mask)
    return scores.unflatten(0, (-1, attn.heads)), value
