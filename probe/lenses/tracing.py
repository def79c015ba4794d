"""Causal tracing: which site, at which steps, carries what the prompt asked for (Meng et al. 2022, arXiv 2202.05262; in
diffusion models Basu et al. 2024, arXiv 2310.13730).

Three runs from one initial noise: a clean one, a corrupted one (another prompt, or noise on the text embedding), and
the corrupted one with one site's values, during some steps, taken from the clean run. With m a measure of images,

    effect = (m(restored) - m(corrupted)) / (m(clean) - m(corrupted)):    1 all of it, 0 nothing

The other direction puts the corrupted run's values into the clean one (activation patching), and the effect is the
share of the measure that is lost: what is necessary, where restoring says what is sufficient.

Any foreign values at a site do something. So every cell has a null: the same patch with the values of another prompt.
Those of the same prompt with another seed would be no null: they carry the concept too.
Without a measure of one's own, m is minus the squared distance to the clean image in pixels, for which m(clean) is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from probe.capture.sites import Site, resolve_sites
from probe.errors import InvalidRequest
from probe.interventions.apply import intervene
from probe.interventions.guide import text_embedding
from probe.interventions.intervention import Intervention
from probe.interventions.patching import Patch, record_run
from probe.model.generate import generate, generation_defaults
from probe.model.pipeline import Pipeline
from probe.model.steps import denoiser

Measure = Callable[[np.ndarray], np.ndarray]
"""From uint8 images (n, H, W, 3) to (n,) numbers, such as the judge's probability of the concept."""


@dataclass(frozen=True, eq=False)
class Trace:
    """A heat map over sites and windows of steps.

    Attributes:
        sites: names.
        windows: the steps of each column.
        effect, null: (sites, windows, samples); NaN for samples whose corruption changed nothing.
        clean, corrupted: (samples,) the measure.
        images: the clean and the corrupted images, uint8 (2, samples, H, W, 3).
        into: the run that was patched.
    """

    sites: tuple[str, ...]
    windows: tuple[tuple[int, ...], ...]
    effect: np.ndarray
    null: np.ndarray
    clean: np.ndarray
    corrupted: np.ndarray
    images: np.ndarray = field(repr=False)
    into: str

    def mean(self, *, over_null: bool = False) -> np.ndarray:
        """(sites, windows) mean effect, with that of the null taken off if asked."""
        return np.nanmean(self.effect - self.null if over_null else self.effect, axis=2)


def trace(
    pipe: Pipeline,
    prompts: Sequence[str],
    corruption: Sequence[str] | float,
    seeds: Sequence[int],
    sites: str | Site | Sequence[str | Site],
    *,
    windows: Sequence[Sequence[int]] | None = None,
    null: Sequence[str] | None = None,
    measure: Measure | None = None,
    into: str = "corrupted",
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Trace:
    """Patch one site at a time.

    Args:
        pipe: the pipeline.
        prompts: clean prompts, one batch.
        corruption: other prompts, one each; or the standard deviation of noise added to the text embedding, in units
            of the embedding's own.
        seeds: of the initial noise, one a prompt.
        sites: modules of the denoiser.
        windows: steps of each column; every step by itself if None.
        null: prompts, one each, whose values the null puts in, drawn with the samples' seeds; ``""`` is the empty
            prompt. If None, the values of the sample before, whose prompt must be another.
        measure: of images; the pixel distance if None.
        into: ``corrupted`` (restore the clean values) or ``clean`` (put the corrupted ones in).
        steps, guidance: as ``generate``.
        seed: of the noise on the embedding.
        progress: called with (done, total) generated batches.

    Raises:
        InvalidRequest: numbers that do not fit, or a null of a sample's own prompt.

    Cost: 3 (4 with ``null``) + 2 sites x windows generations of the batch; the values of all sites are
    kept twice, 4 bytes each.

    Example:
        >>> from probe.lenses import trace
        >>> from probe.model import load_pipeline
        >>> clean, other = "a red star on dark background in flat style", "a red cup on dark background in flat style"
        >>> pipe, settings = load_pipeline("canvas"), {"windows": [range(3)], "null": [""], "steps": 3}
        >>> found = trace(pipe, [clean], [other], [0], "up_blocks.0", **settings)
        >>> found.mean().shape
        (1, 1)
    """
    if into not in ("corrupted", "clean"):
        raise InvalidRequest(f"trace: into {into!r}; expected 'corrupted' or 'clean'.")
    default = generation_defaults(pipe)
    steps, guidance = steps or default.steps, default.guidance if guidance is None else guidance
    if not len(prompts) or len(seeds) != len(prompts):
        raise InvalidRequest(f"trace: {len(prompts)} prompts and {len(seeds)} seeds; give one or more, a seed each.")
    source = list(prompts if into == "corrupted" or isinstance(corruption, int | float) else corruption)
    foreign = [source[-1], *source[:-1]] if null is None else list(null)
    if len(foreign) != len(source) or any(a == b for a, b in zip(foreign, source, strict=True)):
        raise InvalidRequest(
            f"trace: the null's values come from {foreign}, those of the patch from {source}; expected another prompt "
            "for each sample. Give null, such as one empty prompt each."
        )
    columns = tuple((s,) for s in range(steps)) if windows is None else tuple(tuple(w) for w in windows)
    if any(not w or not all(0 <= s < steps for s in w) for w in columns):
        raise InvalidRequest(f"trace: windows {columns} for {steps} steps; expected steps from 0 to {steps - 1}.")
    places = resolve_sites(pipe, sites)
    run: dict[str, Any] = {"steps": steps, "guidance": guidance}
    total, done = 2 + 2 * len(places) * len(columns), 0  # beside the recorded run

    def draw(given: Sequence[str], *edits: Intervention) -> np.ndarray:
        nonlocal done
        images = generate(
            pipe, given, seeds, steps=steps, guidance=guidance, batch_size=len(given), interventions=edits
        )
        done += 1
        if progress is not None:
            progress(done, total)
        return images

    with corrupted_prompts(pipe, prompts, corruption, seed) as wrong:
        spoilt = draw(wrong)
        recorded = record_run(pipe, places, wrong, seeds, **run) if into == "clean" else {}
    clean = draw(prompts)
    if into == "corrupted":
        recorded = record_run(pipe, places, prompts, seeds, **run)
    if null is None:
        others = {site: _previous(patch) for site, patch in recorded.items()}
    else:
        others = record_run(pipe, places, null, seeds, **run)
    asked = measure or (lambda images: -_distance(images, clean))
    m_clean, m_spoilt = asked(clean), asked(spoilt)
    base, other = (m_spoilt, m_clean) if into == "corrupted" else (m_clean, m_spoilt)
    span = np.where(other == base, np.nan, other - base)
    effect, by_chance = (np.empty((len(places), len(columns), len(prompts))) for _ in range(2))
    with corrupted_prompts(pipe, prompts, corruption, seed) if into == "corrupted" else nullcontext(prompts) as given:
        for i, site in enumerate(places):
            for j, window in enumerate(columns):
                for found, patch in ((effect, recorded[site]), (by_chance, others[site])):
                    images = draw(given, Intervention(site, patch, steps=window))
                    found[i, j] = (asked(images) - base) / span
    return Trace(
        tuple(map(str, places)), columns, effect, by_chance, m_clean, m_spoilt, np.stack([clean, spoilt]), into
    )


@contextmanager
def corrupted_prompts(
    pipe: Pipeline, prompts: Sequence[str], corruption: Sequence[str] | float, seed: int = 0
) -> Iterator[Sequence[str]]:
    """Prompts whose generations inside the block are corrupted: others, or the same with noise on their embedding.

    Raises:
        InvalidRequest: not one other prompt each, or noise that is not above zero.
    """
    if isinstance(corruption, int | float):
        if not corruption > 0:
            raise InvalidRequest(f"trace: noise {corruption!r} on the text embedding; expected more than 0.")
        clean = torch.stack([text_embedding(pipe, prompt) for prompt in prompts]).float().cpu()
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
        spoilt = clean + corruption * clean.std() * noise
        edit = Intervention(Site(denoiser(pipe)[0], "prompt"), Patch(spoilt[None, None], ("cond",)), branch="cond")
        with intervene(pipe, edit):
            yield prompts
        return
    if isinstance(corruption, str) or len(corruption) != len(prompts):
        raise InvalidRequest(
            f"trace: {len(corruption)} corrupted prompts for {len(prompts)} clean ones; give one each."
        )
    yield corruption


def _previous(patch: Patch) -> Patch:
    """Each sample with the values of the one before."""
    return Patch(patch.value.roll(1, 2), patch.branches, patch.timesteps)


def _distance(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n,) mean squared difference, of values in [0, 1]."""
    return np.square((images.astype(np.float64) - others) / 255.0).mean((1, 2, 3))
