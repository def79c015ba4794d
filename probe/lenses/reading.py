"""Reading the attention of a running denoiser from its picture to its text, whatever the layout.

A module is either a cross-attention (UNets, PixArt: the keys are the text) or a joint attention (SD3, FLUX: the keys
are text and picture in one softmax, see ``probe.model.joint_attention``). From either comes the map P (batch, heads,
cells, text tokens). It is computed beside the attention, from the same inputs: fused kernels never make it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import Attention

from probe.capture.sites import Site, resolve_sites
from probe.errors import UnsupportedPipeline, UnsupportedSite
from probe.interventions.attention import attention_map
from probe.model.generate import model_label
from probe.model.joint_attention import add_to_cells, is_joint, joint_map
from probe.model.packing import Packing
from probe.model.pipeline import Pipeline
from probe.model.steps import denoiser

_CALL = ("hidden_states", "encoder_hidden_states", "attention_mask", "temb")


def cross_attention_sites(pipe: Pipeline, sites: str | Site | Sequence[str | Site] | None = None) -> list[Site]:
    """Modules of the denoiser in which the picture attends to the text: cross-attentions and joint attentions.

    Raises:
        UnsupportedPipeline: there is none.
        UnsupportedSite: one of ``sites`` is none.
    """
    if sites is None:
        root, module = denoiser(pipe)
        found = [Site(f"{root}.{name}") for name, m in module.named_modules() if _reads_text(m)]
        if not found:
            raise UnsupportedPipeline(
                f"{model_label(pipe)} has no plain cross-attention and no joint attention of SD3 or FLUX: its words "
                "meet its picture in another way."
            )
        return found
    given = [sites] if isinstance(sites, str | Site) else sites
    paths = [Site(s.path if isinstance(s, Site) else Site.parse(s).path) for s in given]
    found = resolve_sites(pipe, paths)
    for site in found:
        if not _reads_text(site.module(pipe)):
            raise UnsupportedSite(
                f"site {site}: expected a plain cross-attention, such as a module named attn2, or a joint attention."
            )
    return found


@dataclass
class RunningCall:
    """What the denoiser's present call is made on.

    Attributes:
        grid: (height, width) in proportion to the cells of its maps.
        n_text: text tokens, padding counted; 0 if it is given none by name.
    """

    grid: tuple[int, int] = (0, 0)
    n_text: int = 0


@contextmanager
def running_call(pipe: Pipeline) -> Iterator[RunningCall]:
    """Follows the denoiser's calls; the hook is always removed.

    Raises:
        UnsupportedPipeline: at a call with tokens whose place on the picture is unknown.
    """
    _, module = denoiser(pipe)
    signature = inspect.signature(module.forward)
    now = RunningCall()

    def note(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = signature.bind_partial(*args, **kwargs).arguments
        sample = next(iter(call.values()))
        packing = Packing.of(sample, call.get("img_ids")) if sample.ndim == 3 else None
        if sample.ndim != 4 and packing is None:
            raise UnsupportedPipeline(
                f"{model_label(pipe)} calls its denoiser with {tuple(sample.shape)}, no map; where its cells lie is "
                "unknown."
            )
        text = call.get("encoder_hidden_states")
        now.grid = (
            (int(sample.shape[-2]), int(sample.shape[-1])) if packing is None else (packing.rows, packing.columns)
        )
        now.n_text = text.shape[1] if isinstance(text, torch.Tensor) else 0

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield now
    finally:
        handle.remove()


@contextmanager
def reading(
    pipe: Pipeline, sites: Sequence[Site], receive: Callable[[Site, torch.Tensor, tuple[int, int]], None]
) -> Iterator[None]:
    """Hand the maps of modules to a function at every denoiser call; hooks are always removed.

    Args:
        receive: takes the site, its map (batch, heads, cells, text tokens) and the grid of its cells. Runs within the
            call; what it is given carries no gradient.
    """
    with running_call(pipe) as now:

        def hook(site: Site) -> Callable[..., None]:
            def read(attn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                with torch.no_grad():
                    probs, _ = text_map(attn, args, kwargs, now.n_text)
                receive(site, probs, query_grid(probs.shape[2], now.grid))

            return read

        handles = []
        try:
            handles += [site.module(pipe).register_forward_hook(hook(site), with_kwargs=True) for site in sites]
            yield
        finally:
            for handle in handles:
                handle.remove()


def text_map(
    attn: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], n_text: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The map (batch, heads, cells, text tokens) of a module's call, and the values (batch, heads, text tokens, head
    size) that it weighs.
    """
    if is_joint(attn):
        return joint_map(attn, args, kwargs, n_text)
    call: dict[str, Any] = dict(zip(_CALL[:3], args, strict=False)) | dict(kwargs)
    return attention_map(attn, **{key: call[key] for key in _CALL if key in call})


def add_values(attn: Any, output: Any, values: torch.Tensor, n_text: int) -> Any:
    """What a module returned, had its cells' values been larger by ``values`` (batch, heads, cells, head size)."""
    if is_joint(attn):
        return add_to_cells(attn, output, values, n_text)
    moved = values.transpose(1, 2).flatten(2)
    moved = torch.nn.functional.linear(moved, attn.to_out[0].weight) / attn.rescale_output_factor
    return output + (moved.transpose(1, 2).reshape(output.shape) if output.ndim == 4 else moved)


def query_grid(queries: int, sample: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the cells of a map, which has the proportions of the sample.

    Raises:
        UnsupportedSite: no such grid has this many cells.
    """
    height = round((queries * sample[0] / sample[1]) ** 0.5)
    if height < 1 or queries % height or abs(queries / height / height - sample[1] / sample[0]) > 1e-6:
        raise UnsupportedSite(f"attention: {queries} queries are no picture of the proportions {sample}.")
    return height, queries // height


def _reads_text(module: torch.nn.Module) -> bool:
    if is_joint(module):
        return True
    return (
        isinstance(module, Attention)
        and module.is_cross_attention
        and module.add_k_proj is None
        and module.to_k is not None
    )
