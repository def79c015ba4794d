"""Where a word is read: attention maps per word, layer, head and step (DAAM, Tang et al. 2023, arXiv 2210.04885).

At an attention every cell q of the picture spreads a weight of one over keys k,

    P[h, q, k] = softmax_k (Q_h K_h^T / sqrt(d))

and the map of a word is the sum of P over its tokens, as a picture over q. At a cross-attention the keys are the tokens
of the prompt: the maps of all of them, start mark and padding among them, sum to one in every cell. At a joint
attention (SD3, FLUX) the keys are the tokens of the prompt and the cells themselves, in one softmax: the maps of all
tokens sum to the share of its weight that a cell gives to the text. ``words.py`` says which tokens are a word's where
there are several text encoders. Aggregated, maps are averaged over heads and steps, interpolated to the finest grid,
and averaged over layers.

Read either while the model draws (``seeds``), or on given images at noise levels (``images``, ``log_snr``), one
denoiser call an image and level. The attention itself runs untouched, with whatever kernel it uses; the map is computed
beside it from the same inputs, so what is drawn does not change in a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from probe.capture.sites import Site
from probe.errors import InvalidRequest
from probe.lenses.noised import NoisedImages
from probe.lenses.reading import cross_attention_sites, reading
from probe.lenses.words import Words, word_positions, words_of
from probe.model.generate import generate
from probe.model.pipeline import Pipeline
from probe.model.schedule import schedule_of
from probe.model.steps import StepClock

if TYPE_CHECKING:
    from probe.interventions.intervention import Intervention


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Maps of words.

    Attributes:
        maps: for each site (``...attn2:probs``), float32 (steps, samples, words, heads, height, width).
        words: for each sample, its words.
        timesteps, log_snr: of the steps.
        images: uint8 (samples, H, W, 3): what was drawn, or what was given.
    """

    maps: Mapping[str, np.ndarray]
    words: tuple[tuple[str, ...], ...]
    timesteps: tuple[float, ...]
    log_snr: tuple[float, ...]
    images: np.ndarray = field(repr=False)

    def heat(
        self,
        *,
        sites: Sequence[str] | None = None,
        steps: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        side: int | None = None,
    ) -> np.ndarray:
        """Aggregated maps, (samples, words, height, width) float32.

        Args:
            sites, steps, heads: what to average over; everything if None.
            side: height of the result; the finest of the sites' grids if None.
        """
        chosen = [self.maps[site] for site in (self.maps if sites is None else sites)]
        if not chosen:
            raise InvalidRequest("heat: there is no site to average over.")
        height, width = max((m.shape[-2:] for m in chosen), key=lambda grid: grid[0])
        if side is not None:
            height, width = side, round(side * width / height)
        total = torch.zeros((*chosen[0].shape[1:3], height, width))
        for maps in chosen:
            picked = maps if steps is None else maps[list(steps)]
            picked = picked if heads is None else picked[:, :, :, list(heads)]
            mean = torch.from_numpy(picked.mean((0, 3)))
            total += resample(mean, (height, width))
        return (total / len(chosen)).numpy()

    def mass(self) -> dict[str, np.ndarray]:
        """For each site the mean weight of a word over the picture, (steps, samples, words, heads): which layer, head
        and step attends to a word at all.
        """
        return {site: maps.mean((-2, -1)) for site, maps in self.maps.items()}


def attention_maps(
    pipe: Pipeline,
    prompts: Sequence[str],
    words: Words | None,
    *,
    seeds: Sequence[int] | None = None,
    images: np.ndarray | None = None,
    log_snr: Sequence[float] | None = None,
    sites: str | Site | Sequence[str | Site] | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    interventions: Sequence[Intervention] = (),
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> AttentionMaps:
    """Maps of words while the model draws, or on given images.

    Args:
        pipe: a pipeline whose denoiser has plain cross-attention (UNets, PixArt), or joint attention (SD3, FLUX).
        prompts: one a sample.
        words: the same for all prompts, or some for each, that occur in the prompts; None for every text token,
            marks and padding among them. The tokens of a word are, in SD3, its tokens in CLIP's part of the text and
            in T5's; in FLUX those of T5.
        seeds: draw these samples: one seed a prompt. With ``images``, the seeds of their noise.
        images: uint8 (N, H, W, 3) instead, noised to each of ``log_snr``.
        sites: cross-attention or joint attention modules; all of them if None.
        steps, guidance, interventions: of the generation, as ``generate``. Maps are those of the prompt's branch.
        batch_size: samples at a time.
        progress: called with (done, total) samples.

    Raises:
        InvalidRequest: a word is not in its prompt; neither or both of generation and images are asked for.
        UnsupportedSite: a site is neither a plain cross-attention nor a joint attention.
        UnsupportedPipeline: there is none.

    Cost: the generation, or one denoiser call an image and level; beside it the queries, keys and map of each site.
    4 bytes for each step, sample, word, head and cell are kept. A joint attention's map is made head by head, with
    samples x cells x (text tokens + cells) numbers in memory.

    Example:
        >>> from probe.lenses import attention_maps
        >>> from probe.model import load_pipeline
        >>> pipe = load_pipeline("canvas")
        >>> found = attention_maps(pipe, ["a red star on dark background in flat style"], ["star"], seeds=[0], steps=5)
        >>> found.heat().shape
        (1, 1, 8, 8)
    """
    if isinstance(prompts, str) or not len(prompts):
        raise InvalidRequest(f"attention_maps: prompts must be a list with at least one prompt, got {prompts!r}.")
    if (images is None) != (log_snr is None) or (images is None and seeds is None):
        raise InvalidRequest("attention_maps: give seeds to draw samples, or images and log_snr to read given ones.")
    named = None if words is None else words_of(words, prompts)
    positions = None
    if named is not None:
        positions = [
            [word_positions(pipe, p, w) for w in some] for p, some in zip(prompts, named, strict=True)
        ]  # every word is looked up before any work
    places = cross_attention_sites(pipe, sites)
    found: dict[Site, dict[int, list[np.ndarray]]] = {site: {} for site in places}
    start = 0

    def keep(site: Site, step: int, probs: torch.Tensor, grid: tuple[int, int]) -> None:
        some = None if positions is None else positions[start : start + len(probs)]
        found[site].setdefault(step, []).append(word_maps(probs, some, grid))

    if images is not None and log_snr is not None:
        given = NoisedImages(pipe, images, prompts, log_snr, seeds, batch_size=batch_size)
        for batch in given:
            start, step = batch.samples.start, batch.step
            with torch.no_grad(), reading(pipe, places, lambda s, p, g, step=step: keep(s, step, p, g)):
                batch.run()
            if progress is not None:
                progress(batch.samples.stop if step == len(given.levels) - 1 else start, len(images))
        levels = (tuple(float(v.t) for v in given.levels), tuple(v.log_snr for v in given.levels))
    else:
        assert seeds is not None
        drawn = []
        with StepClock(pipe) as clock:

            def own_branch(site: Site, probs: torch.Tensor, grid: tuple[int, int]) -> None:
                if "cond" in clock.branches:
                    half = probs.chunk(len(clock.branches))[clock.branches.index("cond")]
                    keep(site, clock.step, half, grid)

            with reading(pipe, places, own_branch):
                for start in range(0, len(prompts), batch_size):
                    part = slice(start, start + batch_size)
                    drawn.append(
                        generate(
                            pipe,
                            prompts[part],
                            seeds[part],
                            steps=steps,
                            guidance=guidance,
                            batch_size=batch_size,
                            interventions=interventions,
                        )
                    )
                    if progress is not None:
                        progress(min(start + batch_size, len(prompts)), len(prompts))
        images = np.concatenate(drawn)
        timesteps, snr = schedule_of(pipe.scheduler)
        levels = (tuple(float(t) for t in timesteps), snr)
    maps = {
        str(Site(site.path, "probs")): np.stack([np.concatenate(by_step[k]) for k in sorted(by_step)])
        for site, by_step in found.items()
    }
    if named is None:
        n_tokens = next(iter(maps.values())).shape[2]
        named = tuple(tuple(str(i) for i in range(n_tokens)) for _ in prompts)
    return AttentionMaps(maps, named, *levels, images)


def resample(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(n, channels, h, w) float maps on another grid: averaged where it is coarser, else bilinear, so that maps that
    sum to one still do.
    """
    if maps.shape[-2:] == size:
        return maps
    if maps.shape[-2] > size[0]:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def word_maps(
    probs: torch.Tensor, positions: Sequence[Sequence[tuple[int, ...]]] | None, grid: tuple[int, int]
) -> np.ndarray:
    """Maps of words from those of tokens: (samples, words, heads, height, width) from (samples, heads, queries, keys).

    Args:
        positions: for each sample and word, its tokens; None for a word a token.
    """
    if positions is None:
        chosen = probs.permute(0, 3, 1, 2)
    else:
        chosen = torch.stack(
            [
                torch.stack([one[..., list(places)].sum(-1) for places in words])
                for one, words in zip(probs, positions, strict=True)
            ]
        )
    return chosen.unflatten(-1, grid).float().cpu().numpy()
