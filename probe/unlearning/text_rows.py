"""What a module of a text encoder computes for prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from probe.capture.sites import Site
from probe.capture.tensors import find_output
from probe.errors import InvalidRequest
from probe.interventions.guide import text_embedding
from probe.interventions.intervention import Intervention
from probe.interventions.ops import Op
from probe.interventions.places import place
from probe.model.pipeline import Pipeline


def text_rows(pipe: Pipeline, site: Site | str, prompts: Sequence[str], op: Op) -> torch.Tensor:
    """Rows (prompts, tokens, channels) at a text-encoder site.

    Args:
        pipe: the pipeline.
        site: such as ``text_encoder.encoder.layers.9``; port ``out``.
        prompts: texts.
        op: the operation that will be placed there; the site is checked as if it were.

    Raises:
        UnknownSite: there is no such module.
        InvalidRequest: the site is not the output of a text encoder's module, or there are no prompts.
    """
    where = place(pipe, Intervention(site, op))
    if where.kind != "text" or where.site.port != "out" or not prompts:
        raise InvalidRequest(f"{where.site}: expected prompts and the output of a module of a text encoder.")
    seen: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen.append(find_output(str(where.site), output, args, kwargs).tensor.detach().float().cpu())

    handle = where.site.module(pipe).register_forward_hook(keep, with_kwargs=True)
    try:
        for prompt in prompts:
            text_embedding(pipe, prompt)
    finally:
        handle.remove()
    return torch.cat(seen)
