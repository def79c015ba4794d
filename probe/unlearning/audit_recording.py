"""What the edited model computes: mean rows of sites, and codes of features, while it draws.

A site's map (tokens, d) is averaged over its tokens, which keeps what the whole picture shows and leaves out where. The
conditional branch is read, at every step, after the edits of that site. Where an edit calls the denoiser more than once
in a step, the pipeline's own call counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from probe.capture.recorder import Recorder
from probe.capture.sites import Site, resolve_sites
from probe.errors import InvalidRequest
from probe.interventions.apply import intervene
from probe.interventions.dictionary import as_dictionary, feature_codes
from probe.interventions.features import FeatureOp
from probe.interventions.intervention import Intervention
from probe.interventions.places import place
from probe.interventions.timed_dictionary import TimedDictionary
from probe.model.generate import generate
from probe.model.pipeline import Pipeline
from probe.model.schedule import schedule


class Features(NamedTuple):
    """Features of a dictionary at a site.

    Attributes:
        site: of the denoiser.
        dictionary: as tensors, or anything ``as_dictionary`` takes.
        features: their numbers.
    """

    site: Site
    dictionary: Any
    features: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Recorded:
    """One run.

    Attributes:
        means: for each site, (n_steps, N, d) float32.
        activity: for each ``Features``, (n_steps, N) mean over tokens of the sum of their codes.
        images: uint8 (N, height, width, 3).
    """

    means: Mapping[str, np.ndarray]
    activity: Sequence[np.ndarray]
    images: np.ndarray


def record(
    pipe: Pipeline,
    interventions: Sequence[Intervention],
    sites: Sequence[str],
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    batch_size: int = 16,
    features: Sequence[Features] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Recorded:
    """Draw N prompts with the edits and keep what the sites hold; memory is steps x N x d x 4 bytes a site.

    Raises:
        UnknownSite: a site does not exist.
    """
    found = resolve_sites(pipe, list(sites)) if sites else []
    wanted = list(dict.fromkeys([*found, *(item.site for item in features)]))
    levels = schedule(pipe, steps)[1]
    steps_run = len(levels)  # more where the sampler calls the denoiser more than once a step
    means = {site: np.zeros((steps_run, len(prompts), 0), np.float32) for site in found}
    activity = [np.zeros((steps_run, len(prompts)), np.float32) for _ in features]
    first, seen = 0, set()

    def receive(
        site: Site, step: int, branches: tuple[str, ...], rows: torch.Tensor, grid: tuple[int, int] | None
    ) -> None:
        if (site, step) in seen or "cond" not in branches:
            return
        seen.add((site, step))
        own = rows.chunk(len(branches))[branches.index("cond")].float()
        at = slice(first, first + len(own))
        if site in means:
            mean = own.mean(1).cpu().numpy()
            if not means[site].shape[2]:
                means[site] = np.zeros((steps_run, len(prompts), mean.shape[1]), np.float32)
            means[site][step, at] = mean
        for k, item in enumerate(features):
            if item.site == site:
                activity[k][step, at] = _codes(item, own, levels[step]).sum(-1).mean(1).cpu().numpy()

    images = []
    with intervene(pipe, interventions), Recorder(pipe, wanted, receive):
        for first in range(0, len(prompts), batch_size):
            part = slice(first, first + batch_size)
            seen.clear()
            images.append(
                generate(
                    pipe,
                    list(prompts[part]),
                    list(seeds[part]),
                    steps=steps,
                    guidance=guidance,
                    batch_size=batch_size,
                )
            )
            if progress is not None:
                progress(min(first + batch_size, len(prompts)), len(prompts))
    return Recorded({str(site): mean for site, mean in means.items()}, activity, np.concatenate(images))


def edited_features(pipe: Pipeline, interventions: Sequence[Intervention]) -> list[Features]:
    """The features that edits change at sites of the denoiser, one entry for each dictionary and site.

    Dictionaries that read the step before cannot be read at one step, and are left out.
    """
    found: dict[tuple[Site, int], Features] = {}
    for item in interventions:
        where = place(pipe, item)
        if not isinstance(item.op, FeatureOp) or where.kind != "denoiser":
            continue
        held = as_dictionary(item.op.dictionary)
        if isinstance(held, TimedDictionary) and held.predictor is not None:
            continue
        key = where.site, id(item.op.dictionary)
        before = found[key].features if key in found else ()
        numbers = tuple(sorted({*before, *item.op.feature_set()}))
        found[key] = Features(where.site, held, numbers)
    return list(found.values())


def _codes(item: Features, rows: torch.Tensor, log_snr: float) -> torch.Tensor:
    dictionary = item.dictionary.at(log_snr) if isinstance(item.dictionary, TimedDictionary) else item.dictionary
    numbers = torch.tensor(item.features)
    if not len(numbers):
        raise InvalidRequest(f"audit: no features were named for {item.site}.")
    return feature_codes(dictionary, rows, numbers, torch.zeros(len(numbers)))
