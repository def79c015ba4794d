"""Which samples of a denoiser's batch belong to which half of classifier-free guidance.

Pipelines do it in three ways, and none of them says which:

    both halves in a batch, unconditional first    Stable Diffusion, SDXL, SD3, PixArt, Sana, HunyuanDiT, Kolors, ...
    both halves in a batch, conditional first      DiT, Lumina, Stable Cascade, Z-Image
    a call for each half                           CogView4, Lumina 2, Chroma, Qwen-Image, FLUX with a negative prompt

A guess would be wrong without a sign of it, so the running call is asked. What ``__call__`` names ``latents`` says how
many samples there are, and so how often the denoiser's batch holds them; ``negative_prompt_embeds`` says which part
is without the prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from probe.errors import UnsupportedPipeline
from probe.model.pipeline import Pipeline

BRANCHES = ("uncond", "cond")
_NEGATIVE = "negative_prompt_embeds"


class Branches(NamedTuple):
    """Guidance branches of a denoiser call.

    Attributes:
        here: along the batch of this call, in order.
        whole: all that the generation computes; more than ``here`` where each branch has a call of its own.
    """

    here: tuple[str, ...]
    whole: tuple[str, ...]


def branch_layout(pipe: Pipeline, call: Mapping[str, Any]) -> Branches:
    """The guidance branches of a denoiser call that is being made.

    Costs a comparison of text embeddings. A call made by hand, outside the pipeline's ``__call__``, is taken to hold
    what the pipeline's last generation did, unconditional first.

    Args:
        pipe: the pipeline.
        call: the denoiser's arguments by name, the sample first, as the pipeline gave them.

    Raises:
        UnsupportedPipeline: the branches cannot be told apart, or there are others (perturbed attention, image
            guidance, skipped layers).
    """
    run = running_call(pipe)
    labels = call.get("class_labels")
    if isinstance(labels, torch.Tensor) and "class_labels" in inspect.signature(type(pipe).__call__).parameters:
        return _of_classes(pipe, labels)
    guided = _guided(pipe, run)
    sample, n = next(iter(call.values()), None), _count(run.get("latents"))
    if not n or not _count(sample):
        if guided is None and "negative_prompt" in inspect.signature(type(pipe).__call__).parameters:
            raise _unclear(pipe, "its batch")
        return Branches(BRANCHES, BRANCHES) if guided else Branches(("cond",), ("cond",))
    parts, rest = divmod(_count(sample), n)
    if parts == 1 and not rest:
        return _one(pipe, call, run, guided)
    if parts != 2 or rest or not guided:
        raise _unclear(pipe, f"a batch of {_count(sample)} for {n} samples")
    order = BRANCHES[::-1] if _negative_last(call, run.get(_NEGATIVE), n) else BRANCHES
    return Branches(order, BRANCHES)


def running_call(pipe: Pipeline) -> Mapping[str, Any]:
    """What the variables of the pipeline's ``__call__`` hold, if it is running; else nothing."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "__call__" and frame.f_locals.get("self") is pipe:
            return frame.f_locals
        frame = frame.f_back
    return {}


def _of_classes(pipe: Pipeline, labels: torch.Tensor) -> Branches:
    """DiT: the unconditional half comes last and has the null class."""
    null = getattr(pipe.transformer.config, "num_embeds_ada_norm", 1000)
    half = labels.shape[0] // 2
    doubled = labels.shape[0] % 2 == 0 and half > 0 and bool((labels[half:] == null).all())
    return Branches(BRANCHES[::-1], BRANCHES) if doubled else Branches(("cond",), ("cond",))


def _guided(pipe: Pipeline, run: Mapping[str, Any]) -> bool | None:
    """Whether the generation computes both branches; None if nothing says so."""
    for name in ("do_classifier_free_guidance", "do_true_cfg"):
        if name in run:
            return bool(run[name])
    return getattr(pipe, "do_classifier_free_guidance", None)


def _one(pipe: Pipeline, call: Mapping[str, Any], run: Mapping[str, Any], guided: bool | None) -> Branches:
    """Branches of a batch that holds every sample once."""
    if not guided:
        return Branches(("cond",), ("cond",))
    for name, branch in (("prompt_embeds", "cond"), (_NEGATIVE, "uncond")):
        if run.get(name) is not None and any(value is run[name] for value in call.values()):
            return Branches((branch,), BRANCHES)
    raise _unclear(pipe, "a call with one branch")


def _negative_last(call: Mapping[str, Any], negative: Any, n: int) -> bool:
    """Whether the second half of the batch, and not the first, is given the negative prompt."""
    if isinstance(negative, list):
        texts = [value for value in call.values() if isinstance(value, list) and len(value) == 2 * n]
        return any(value[n] is negative[0] and value[0] is not negative[0] for value in texts)
    if not isinstance(negative, torch.Tensor):
        return False
    for value in call.values():
        if isinstance(value, torch.Tensor) and value.shape == (2 * n, *negative.shape[1:]) and len(negative) == n:
            first, second = (torch.equal(half, negative.to(half)) for half in value.chunk(2))
            if first != second:
                return second
    return False


def _count(value: Any) -> int:
    """Samples in a batch; 0 for what is none."""
    if isinstance(value, torch.Tensor):
        return len(value) if value.ndim else 0
    return len(value) if isinstance(value, list) else 0


def _unclear(pipe: Pipeline, what: str) -> UnsupportedPipeline:
    return UnsupportedPipeline(
        f"{type(pipe).__name__} gives its denoiser {what}, and which of it is the conditional and which the "
        "unconditional branch of guidance cannot be told. Expected one or two branches a sample: switch off what adds "
        "others (pag_scale=0, skip_guidance_layers=None), or use a text-to-image pipeline on the same weights."
    )
