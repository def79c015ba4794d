"""Gradient x attention: the part of a word's attention that raises a score (after Grad-SAM, Barkan et al. 2021, arXiv
2204.11073; the same product in diffusion models is used for editing masks).

Attention says where a word looks, not whether that matters. For a scalar score S of the denoiser's prediction,

    G[h, q, k] = max(0, P[h, q, k] dS/dP[h, q, k])

keeps the cells where more attention would raise S. By default S is minus half the squared error of the predicted noise
on a given image, the integrand of its likelihood: then a cell counts where attending to the word makes the image more
likely.

The map P is not a tensor of the running model (fused kernels never make it). So a zero D is put in its place beside it,

    out' = out + merge_heads(D V) W_out^T / rescale,     D = 0,

which changes no value and has dS/dD = dS/dP. One forward and one backward pass of the denoiser an image and level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from probe.capture.sites import Site
from probe.errors import InvalidRequest
from probe.lenses.attention_maps import AttentionMaps, word_maps
from probe.lenses.noised import NoisedBatch, NoisedImages
from probe.lenses.reading import add_values, cross_attention_sites, query_grid, running_call, text_map
from probe.lenses.words import Words, word_positions, words_of
from probe.model.pipeline import Pipeline

Score = Callable[[torch.Tensor], torch.Tensor]
"""From the predicted clean latents (B, C, h, w) to (B,) scores, differentiable."""


def gradient_attention(
    pipe: Pipeline,
    prompts: Sequence[str],
    words: Words,
    images: np.ndarray,
    log_snr: Sequence[float],
    *,
    seeds: Sequence[int] | None = None,
    sites: str | Site | Sequence[str | Site] | None = None,
    score: Score | None = None,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> AttentionMaps:
    """Gradient x attention of words on given images.

    Args:
        pipe, prompts, words, images, log_snr, seeds, sites, progress: as ``attention_maps``.
        score: of the predicted clean latents; minus half the squared error of the noise if None. Scores that divide
            by the signal need levels above pure noise.
        batch_size: images at a time; the graph of a batch is kept in memory.

    Returns:
        Maps of G >= 0, in units of the score.

    Raises:
        InvalidRequest, UnsupportedSite, UnsupportedPipeline: as ``attention_maps``.

    Example:
        >>> from probe.canvas import render_batch
        >>> from probe.lenses import gradient_attention
        >>> from probe.model import load_pipeline
        >>> shown = render_batch(range(2))
        >>> objects = [[caption.split()[2]] for caption in shown.captions]  # a COLOUR OBJECT on ...
        >>> found = gradient_attention(load_pipeline("canvas"), shown.captions, objects, shown.images, [2.0])
        >>> found.heat().shape
        (2, 1, 8, 8)
    """
    named = words_of(words, prompts)
    positions = [[word_positions(pipe, p, w) for w in some] for p, some in zip(prompts, named, strict=True)]
    places = cross_attention_sites(pipe, sites)
    given = NoisedImages(pipe, images, prompts, log_snr, seeds, batch_size=batch_size)
    if score is not None and min(level.signal for level in given.levels) <= 0:
        raise InvalidRequest("gradient_attention: at pure noise there is no predicted sample that could be scored.")
    found: dict[Site, list[list[np.ndarray]]] = {site: [[] for _ in given.levels] for site in places}
    for batch in given:
        for site, (probs, slope) in _slopes(pipe, places, batch, score).items():
            product = (probs * slope).clamp_min(0)
            some = positions[batch.samples.start : batch.samples.stop]
            grid = query_grid(probs.shape[2], (batch.z.shape[-2], batch.z.shape[-1]))
            found[site][batch.step].append(word_maps(product, some, grid))
        if progress is not None and batch.step == len(given.levels) - 1:
            progress(batch.samples.stop, len(images))
    maps = {
        str(Site(site.path, "probs")): np.stack([np.concatenate(parts) for parts in levels])
        for site, levels in found.items()
    }
    times = tuple(float(level.t) for level in given.levels)
    return AttentionMaps(maps, named, times, tuple(level.log_snr for level in given.levels), images)


def _slopes(
    pipe: Pipeline, sites: Sequence[Site], batch: NoisedBatch, score: Score | None
) -> dict[Site, tuple[torch.Tensor, torch.Tensor]]:
    """For each site P and dS/dP, (samples, heads, queries, keys)."""
    probs: dict[Site, torch.Tensor] = {}
    zeros: dict[Site, torch.Tensor] = {}

    def hook(site: Site) -> Callable[..., Any]:
        def lay_beside(attn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            with torch.no_grad():
                probs[site], value = text_map(attn, args, kwargs, now.n_text)
            zeros[site] = torch.zeros_like(probs[site], requires_grad=True)
            return add_values(attn, output, zeros[site] @ value, now.n_text)

        return lay_beside

    with ExitStack() as stack:
        now = stack.enter_context(running_call(pipe))
        for site in sites:
            handle = site.module(pipe).register_forward_hook(hook(site), with_kwargs=True)
            stack.callback(handle.remove)
        with torch.enable_grad():
            eps = batch.eps()
            if score is None:
                total = -0.5 * (eps - batch.noise).square().sum()
            else:
                total = score((batch.z - batch.level.noise * eps) / batch.level.signal).sum()
            slopes = torch.autograd.grad(total, [zeros[site] for site in sites])
    return {site: (probs[site], slope) for site, slope in zip(sites, slopes, strict=True)}
