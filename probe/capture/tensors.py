"""Find, read and replace the one tensor of a module call that a site means, and see it as rows over tokens.

A module takes and returns many things. The site's tensor is the hidden map: the first tensor argument (or
``hidden_states`` or ``sample``), and the output tensor; where a module returns several tensors, the one
shaped like its input (joint blocks of SD3 and FLUX return the text stream beside the image stream).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from probe.errors import UnsupportedSite

_PER_HEAD = {"norm_q": "to_q", "norm_k": "to_k", "norm_added_q": "add_q_proj", "norm_added_k": "add_k_proj"}
"""Modules that diffusers' attentions call with heads apart: four dimensions, and no picture. The values name the
modules whose output they normalise.
"""
_INPUT_NAMES = ("hidden_states", "sample", "x", "input")


class Slot(NamedTuple):
    """Where a tensor was found: argument position or keyword, output index or field; None if it is the output
    itself.
    """

    key: int | str | None
    tensor: torch.Tensor


def find_input(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Slot:
    """The site's tensor among the arguments of a call."""
    for i, value in enumerate(args):
        if isinstance(value, torch.Tensor):
            return Slot(i, value)
    tensors = {key: value for key, value in kwargs.items() if isinstance(value, torch.Tensor)}
    for key in _INPUT_NAMES:
        if key in tensors:
            return Slot(key, tensors[key])
    if len(tensors) == 1:
        key, value = next(iter(tensors.items()))
        return Slot(key, value)
    raise UnsupportedSite(
        f"site {name}: the module is called without a single input tensor (found {', '.join(tensors) or 'none'}); "
        "choose the output port or another module."
    )


def replace_input(
    slot: Slot, new: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with the slot's tensor replaced."""
    if isinstance(slot.key, int):
        return (*args[: slot.key], new, *args[slot.key + 1 :]), kwargs
    return args, kwargs | {str(slot.key): new}


def find_output(name: str, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Slot:
    """The site's tensor in what a call returned."""
    if isinstance(output, torch.Tensor):
        return Slot(None, output)
    if isinstance(output, dict):  # diffusers and transformers outputs are ordered dictionaries
        slots = [Slot(key, value) for key, value in output.items() if isinstance(value, torch.Tensor)]
    elif isinstance(output, tuple | list):
        slots = [Slot(i, value) for i, value in enumerate(output) if isinstance(value, torch.Tensor)]
    else:
        slots = []
    if len(slots) > 1:
        shape = find_input(name, args, kwargs).tensor.shape
        slots = [slot for slot in slots if slot.tensor.shape == shape]
    if len(slots) != 1:
        raise UnsupportedSite(
            f"site {name}: the module returns {type(output).__name__} with {len(slots)} tensors shaped like its input, "
            "expected exactly one; choose a module inside it."
        )
    return slots[0]


def replace_output(slot: Slot, new: torch.Tensor, output: Any) -> Any:
    """What a call returned, with the slot's tensor replaced."""
    if slot.key is None:
        return new
    if isinstance(output, dict):
        return type(output)(**{key: new if key == slot.key else value for key, value in output.items()})
    return type(output)(new if i == slot.key else value for i, value in enumerate(output))


def to_rows(name: str, x: torch.Tensor) -> torch.Tensor:
    """View a tensor as rows: (B, C, H, W), (B, L, C) or (B, C) become (B, tokens, C), cells row-major.

    Raises:
        UnsupportedSite: another shape, or queries and keys of single heads, whose four dimensions are no map.
    """
    if x.ndim == 4:
        parent, _, last = name.partition(":")[0].rpartition(".")
        if last in _PER_HEAD:
            raise UnsupportedSite(
                f"site {name}: its tensor {tuple(x.shape)} has the heads apart, so it has no rows of channels; take "
                f"{parent}.{_PER_HEAD[last]}:out, the same before it is normalised."
            )
        return x.flatten(2).transpose(1, 2)
    if x.ndim == 3:
        return x
    if x.ndim == 2:
        return x[:, None, :]
    raise UnsupportedSite(
        f"site {name}: its tensor has shape {tuple(x.shape)}; expected (batch, channels, height, width), "
        "(batch, tokens, channels) or (batch, channels)."
    )


def from_rows(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Inverse of ``to_rows``, with the memory layout of ``like``."""
    x = rows.transpose(1, 2).reshape(like.shape) if like.ndim == 4 else rows.reshape(like.shape)
    return torch.empty_like(like).copy_(x)


def delta(name: str, out: torch.Tensor, inp: torch.Tensor) -> torch.Tensor:
    """out - in.

    Raises:
        UnsupportedSite: the module changes the shape, so it adds nothing to its input.
    """
    if out.shape != inp.shape:
        raise UnsupportedSite(
            f"site {name}: input {tuple(inp.shape)} and output {tuple(out.shape)} differ in shape, so there is no "
            "delta; use the out port."
        )
    return out - inp
