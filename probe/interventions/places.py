"""The kinds of place that an edit can have, and what a site of each looks like.

    denoiser    unet.mid_block:out        a module of the denoiser, ports in, out, delta; at every step
    probs       ...attn2:probs            attention maps: a row is one (query, key) cell, its channels are the heads
    prompt      unet:prompt               the text embedding that the denoiser is given, tokens x channels
    text        text_encoder....9:out     a module of a text encoder: once a prompt, no steps; the prompt's pass is
                                          ``cond``, that of the negative or empty prompt ``uncond``
    weight      ...to_k:weight            a weight (out, in): rows are output channels, columns inputs
    sampler     sampler:x_t               the state on entry to a step, in the scale of the denoiser's input
                sampler:eps, sampler:x0   the guided prediction, as noise or as clean sample
                sampler:noise             the fresh unit noise of a step, where the sampler adds any (DDIM, eta > 0)

The sampler's places and weights have no branches.
"""

from __future__ import annotations

import difflib
from typing import NamedTuple

import torch

from probe.capture.sites import EDIT_PORTS, Site, resolve_sites
from probe.errors import InvalidIntervention, UnknownSite
from probe.interventions.intervention import Intervention
from probe.model.pipeline import Pipeline
from probe.model.steps import denoiser

SAMPLER = "sampler"
_SAMPLER_PORTS = ("x_t", "eps", "x0", "noise")


class Placed(NamedTuple):
    """An intervention with its full site and the kind of its place."""

    kind: str
    site: Site
    item: Intervention


def place(pipe: Pipeline, item: Intervention) -> Placed:
    """Find an intervention's place.

    Raises:
        UnknownSite: there is no such module or port; near matches are listed.
        InvalidIntervention: the intervention asks what its place does not have, such as steps in a text encoder.
    """
    site = item.where
    root, _ = denoiser(pipe)
    if site.path == SAMPLER or site.port in _SAMPLER_PORTS:
        if site.path != SAMPLER or site.port not in _SAMPLER_PORTS:
            raise UnknownSite(
                f"site {site}: the sampler's ports are {', '.join(f'sampler:{p}' for p in _SAMPLER_PORTS)}."
            )
        kind = SAMPLER
    elif site.port == "prompt":
        if site.path not in (root, "prompt"):
            raise UnknownSite(f"site {site}: the text embedding is the denoiser's: '{root}:prompt'.")
        site, kind = Site(root, "prompt"), "prompt"
    elif site.path.split(".")[0].startswith("text_encoder"):
        kind = "weight" if site.port == "weight" else "text"
        _check_text_module(pipe, site)
    else:
        kind = site.port if site.port in EDIT_PORTS else "denoiser"
        found = resolve_sites(pipe, Site(site.path, "out"))
        if len(found) != 1:
            raise InvalidIntervention(f"intervene: {site} names {len(found)} sites; an intervention has one.")
        site = Site(found[0].path, site.port)
    placed = Placed(kind, site, item)
    _check(pipe, placed)
    return placed


def has_steps(placed: Placed) -> bool:
    """Whether the place is met at every denoising step."""
    return not placed.site.path.startswith("text_encoder")


def _check_text_module(pipe: Pipeline, site: Site) -> None:
    part, _, rest = site.path.partition(".")
    encoder = getattr(pipe, part, None)
    if not isinstance(encoder, torch.nn.Module):
        raise UnknownSite(f"site {site}: the pipeline has no {part!r}; it has {', '.join(sorted(pipe.components))}.")
    names = [name for name, _ in encoder.named_modules()]
    if rest not in names:
        near = difflib.get_close_matches(rest, names, n=5, cutoff=0.4)
        raise UnknownSite(
            f"site {site}: {part!r} has no module {rest!r}. Near matches: {', '.join(near or names[1:8])}."
        )


def _check(pipe: Pipeline, placed: Placed) -> None:
    kind, site, item = placed
    if kind in (SAMPLER, "weight") and item.branch != "both":
        raise InvalidIntervention(
            f"{site}: branch {item.branch!r}, but both branches share it; use 'both', or a site of the denoiser."
        )
    if not has_steps(placed) and (item.timed or item.inject != "both"):
        raise InvalidIntervention(
            f"{site}: text is encoded once, before the first step, so the edit cannot have steps, a schedule or an "
            f"inject term. Edit what the denoiser is given instead: '{denoiser(pipe)[0]}:prompt'."
        )
    if kind == SAMPLER and site.port in ("x_t", "noise") and item.inject != "both":
        raise InvalidIntervention(
            f"{site}: the state itself is in both terms; inject is for what changes the prediction."
        )
    if kind == "weight":
        weight = site.module(pipe)._parameters.get("weight")
        if not isinstance(weight, torch.Tensor) or weight.ndim < 2:
            raise InvalidIntervention(f"{site}: the module has no weight matrix; choose a linear or convolution layer.")
        if item.mask is not None:
            raise InvalidIntervention(f"{site}: a weight has no cells that a mask could weigh.")
