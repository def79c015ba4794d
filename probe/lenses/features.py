"""Diffusion features: what a site computes for a given image at a noise level (DIFT, Tang et al. 2023, arXiv
2306.03881).

The image is noised to a level, the denoiser is called once and stopped behind the deepest site, and the site's map is
the feature. Averaging over several noises of one image removes part of what is the noise's own. The prompt is empty
unless one is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from probe.capture.recorder import CallClock, Recorder
from probe.capture.sites import Site, resolve_sites
from probe.errors import InvalidRequest, UnsupportedSite
from probe.lenses.noised import NoisedImages
from probe.lenses.reading import query_grid
from probe.model.pipeline import Pipeline


@dataclass(frozen=True, eq=False)
class Features:
    """Maps of sites.

    Attributes:
        maps: for each site, float32 (levels, samples, channels, height, width).
        timesteps, log_snr: of the levels.
    """

    maps: Mapping[str, np.ndarray]
    timesteps: tuple[float, ...]
    log_snr: tuple[float, ...]

    def vectors(self) -> dict[str, np.ndarray]:
        """For each site the mean over cells, (levels, samples, channels): one vector an image, for probes."""
        return {site: maps.mean((-2, -1)) for site, maps in self.maps.items()}


def diffusion_features(
    pipe: Pipeline,
    images: np.ndarray,
    sites: str | Site | Sequence[str | Site],
    log_snr: Sequence[float],
    *,
    prompts: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    draws: int = 1,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """Features of given images.

    Args:
        pipe: the pipeline.
        images: uint8 (N, H, W, 3), of the size that the model draws.
        sites: modules of the denoiser whose tokens are the cells of a map.
        log_snr: noise levels, in the order of the result.
        prompts: one an image; the empty prompt if None.
        seeds: of the noise, one an image; 0, 1, ... if None.
        draws: noises that are averaged.
        batch_size: images at a time.
        progress: called with (done, total) images.

    Returns:
        4 bytes for each site, level, image, channel and cell, in memory. For more than fits, collect a store of real
        images.

    Raises:
        InvalidRequest, UnknownSite, UnsupportedSite: before or at the first call.

    Cost: images x levels x draws denoiser calls, each up to the deepest site.

    Example:
        >>> from probe.canvas import render_batch
        >>> from probe.lenses import diffusion_features
        >>> from probe.model import load_pipeline
        >>> images = render_batch(range(2)).images
        >>> found = diffusion_features(load_pipeline("canvas"), images, "up_blocks.1", [2.0])
        >>> found.maps["unet.up_blocks.1:out"].shape
        (1, 2, 96, 16, 16)
    """
    places = resolve_sites(pipe, sites)
    given = NoisedImages(
        pipe, images, [""] * len(images) if prompts is None else prompts, log_snr, seeds, draws, batch_size
    )
    found: dict[Site, np.ndarray] = {}
    fired: set[Site] = set()
    for batch in given:
        fired.clear()

        def receive(
            site: Site, step: int, branches: tuple[str, ...], rows: torch.Tensor, grid: tuple[int, int] | None,
            batch=batch,
        ) -> None:  # fmt: skip
            if site in fired:
                raise UnsupportedSite(f"site {site}: it fires more than once a call, so it has no one map.")
            fired.add(site)
            height, width = grid or query_grid(rows.shape[1], (batch.z.shape[-2], batch.z.shape[-1]))
            maps = rows.transpose(1, 2).unflatten(2, (height, width)).float().cpu().numpy()
            if site not in found:
                found[site] = np.zeros((len(given.levels), len(given), *maps.shape[1:]), np.float32)
            found[site][batch.step, batch.samples.start : batch.samples.stop] += maps / given.draws

        clock = CallClock(batch.model.branches, step=0, calls=1)
        with torch.no_grad(), Recorder(pipe, places, receive, clock=clock, stop_steps=(0,)):
            batch.run()
        if progress is not None and batch.step == len(given.levels) - 1 and batch.draw == draws - 1:
            progress(batch.samples.stop, len(given))
    if len(found) < len(places):
        missing = ", ".join(str(site) for site in places if site not in found)
        raise InvalidRequest(f"features: {missing} did not fire; choose a site that every denoiser call reaches.")
    times = tuple(float(level.t) for level in given.levels)
    return Features({str(s): found[s] for s in places}, times, tuple(level.log_snr for level in given.levels))
