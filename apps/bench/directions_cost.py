"""What ``denoscope bench directions`` has to do, told before it is done.

Images, which are most of the work: every candidate of a finder is drawn at every strength, for all prompts. A finder
that is asked for each concept, or whose vectors are read for each, has one candidate a concept; one whose vectors the
judge tries has k vectors in both signs, whatever the concepts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from apps.bench.directions import DirectionsConfig, finder_stage
from apps.bench.directions_data import prompts_of, seeds_of
from apps.bench.directions_entrants import entrants
from apps.bench.directions_world import CONCEPTS
from apps.progress import Clock
from apps.runs import Run

if TYPE_CHECKING:
    from probe.model.pipeline import Pipeline


def images_of(name: str, config: DirectionsConfig) -> int:
    """Images that are drawn for a finder, at most: a vector that reads two concepts best is drawn once."""
    entrant = entrants()[name]
    candidates = 2 * config.k if entrant.kind == "tried" else len(CONCEPTS)
    return candidates * len(entrant.strengths or config.strengths) * config.prompts


def foretold(pipe: Pipeline, config: DirectionsConfig, work: Path) -> str:
    """Finders, images and time that are left; draws the prompts once, for the time."""
    from probe.model import generate

    left = [name for name in config.finders if not Run(work).stage(finder_stage(name)).is_file()]
    images = sum(images_of(name, config) for name in left)
    clock = Clock()
    generate(pipe, list(prompts_of(config)), seeds_of(config), steps=config.steps)
    minutes = images * clock.seconds / config.prompts / 60
    return (
        f"{config.train + config.test} renders, {len(config.finders)} finders; {len(left)} finders have no result in "
        f"{str(work)!r} yet\nat most {images} images, about {minutes:.0f} min; fitting the finders comes on top"
    )
