"""Where a word looks: cross-attention maps per word, layer, head and step (DAAM, Tang et al. 2023, arXiv 2210.04885).

At a cross-attention every cell q of the picture spreads a weight of one over the tokens k of the prompt,

    P[h, q, k] = softmax_k (Q_h K_h^T / sqrt(d))

and the map of a word is the sum of P over its tokens, as a picture over q. The maps of all tokens, start mark and
padding among them, sum to one in every cell. Aggregated, maps are averaged over heads and steps, interpolated to
the finest grid, and averaged over layers.

Read either while the model draws (``seeds``), or on given images at noise levels (``images``, ``log_snr``), one
denoiser call an image and level. The attention itself runs untouched, with whatever kernel it uses; the map is computed
beside it from the same inputs, so what is drawn does not change in a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention

from probe.capture.sites import Site, resolve_sites
from probe.capture.tensors import find_input
from probe.errors import InvalidRequest, UnsupportedPipeline, UnsupportedSite
from probe.interventions.attention import attention_map
from probe.lenses.noised import NoisedImages
from probe.lenses.words import Words, word_positions, words_of
from probe.model.generate import generate, model_label
from probe.model.pipeline import Pipeline
from probe.model.schedule import schedule_of
from probe.model.steps import StepClock, denoiser

if TYPE_CHECKING:
    from probe.interventions.intervention import Intervention

_CALL = ("hidden_states", "encoder_hidden_states", "attention_mask", "temb")


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
        pipe: a pipeline whose denoiser has plain cross-attention (UNets, PixArt).
        prompts: one a sample.
        words: the same for all prompts, or some for each, that occur in the prompts; None for every token, whose
            maps sum to one.
        seeds: draw these samples: one seed a prompt. With ``images``, the seeds of their noise.
        images: uint8 (N, H, W, 3) instead, noised to each of ``log_snr``.
        sites: cross-attention modules; all of them if None.
        steps, guidance, interventions: of the generation, as ``generate``. Maps are those of the prompt's branch.
        batch_size: samples at a time.
        progress: called with (done, total) samples.

    Raises:
        InvalidRequest: a word is not in its prompt; neither or both of generation and images are asked for.
        UnsupportedSite: a site is no plain cross-attention.
        UnsupportedPipeline: there is none.

    Cost: the generation, or one denoiser call an image and level; beside it the queries, keys and map of each site.
    4 bytes for each step, sample, word, head and cell are kept.

    Example:
        >>> from probe.model import load_pipeline
        >>> pipe = load_pipeline("canvas")
        >>> found = attention_maps(pipe, ["a red star on dark background in flat style"], ["star"], seeds=[0])
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


def cross_attention_sites(pipe: Pipeline, sites: str | Site | Sequence[str | Site] | None = None) -> list[Site]:
    """Cross-attention modules of the denoiser.

    Raises:
        UnsupportedPipeline: there is none.
        UnsupportedSite: one of ``sites`` is none.
    """
    if sites is None:
        root, module = denoiser(pipe)
        found = [Site(f"{root}.{name}") for name, m in module.named_modules() if _is_cross_attention(m)]
        if not found:
            raise UnsupportedPipeline(
                f"{model_label(pipe)} has no plain cross-attention: its words meet its picture in another way."
            )
        return found
    given = [sites] if isinstance(sites, str | Site) else sites
    paths = [Site(s.path if isinstance(s, Site) else Site.parse(s).path) for s in given]
    found = resolve_sites(pipe, paths)
    for site in found:
        if not _is_cross_attention(site.module(pipe)):
            raise UnsupportedSite(f"site {site}: expected a plain cross-attention, such as a module named attn2.")
    return found


@contextmanager
def reading(
    pipe: Pipeline, sites: Sequence[Site], receive: Callable[[Site, torch.Tensor, tuple[int, int]], None]
) -> Iterator[None]:
    """Hand the attention maps of modules to a function at every denoiser call; hooks are always removed.

    Args:
        receive: takes the site, its map (batch, heads, queries, keys) and the grid of its queries. Runs within the
            call; what it is given carries no gradient.
    """
    grid_of: dict[str, tuple[int, int]] = {}

    def note(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sample = find_input("denoiser:in", args, kwargs).tensor
        grid_of["sample"] = (int(sample.shape[-2]), int(sample.shape[-1]))

    def hook(site: Site) -> Callable[..., None]:
        def read(attn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            with torch.no_grad():
                probs, _ = attention_map(attn, **call_arguments(args, kwargs))
            receive(site, probs, query_grid(probs.shape[2], grid_of["sample"]))

        return read

    handles = [denoiser(pipe)[1].register_forward_pre_hook(note, with_kwargs=True)]
    try:
        handles += [site.module(pipe).register_forward_hook(hook(site), with_kwargs=True) for site in sites]
        yield
    finally:
        for handle in handles:
            handle.remove()


def call_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an attention's call that its map depends on."""
    call: dict[str, Any] = dict(zip(_CALL[:3], args, strict=False)) | dict(kwargs)
    return {key: call[key] for key in _CALL if key in call}


def query_grid(queries: int, sample: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the cells of a map, which has the proportions of the sample.

    Raises:
        UnsupportedSite: no such grid has this many cells.
    """
    height = round((queries * sample[0] / sample[1]) ** 0.5)
    if height < 1 or queries % height or abs(queries / height / height - sample[1] / sample[0]) > 1e-6:
        raise UnsupportedSite(f"attention: {queries} queries are no picture of the proportions {sample}.")
    return height, queries // height


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


def _is_cross_attention(module: torch.nn.Module) -> bool:
    return (
        isinstance(module, Attention)
        and module.is_cross_attention
        and module.add_k_proj is None
        and module.to_k is not None
    )
