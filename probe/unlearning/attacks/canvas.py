"""Tasks for concepts of canvas: prompts that ask for them, and renders that show them.

References are renders, not samples of the model: an attacker has pictures of the concept from elsewhere, and the edited
model is not asked what the unedited one would have drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from probe.canvas import FACTORS, Scene, caption, render, sample_scene
from probe.errors import UnknownConcept
from probe.interventions.intervention import Intervention
from probe.model.generate import generation_defaults
from probe.model.pipeline import Pipeline
from probe.unlearning.attacks.task import AttackTask

REFERENCE_SEED = 5_000_000
"""Renders are drawn from seeds that neither prompts nor stores use."""


class Shown(NamedTuple):
    """Renders with captions.

    Attributes:
        images: uint8 (n, 64, 64, 3).
        captions: n, as the scenes are.
        labels: n labels of the factor asked for.
    """

    images: np.ndarray
    captions: list[str]
    labels: list[str]


def renders(factor: str, labels: Sequence[str], n: int, seed: int = 0) -> Shown:
    """n renders, the labels in turn, everything else at random from what canvas was trained on."""
    rng = np.random.default_rng((REFERENCE_SEED, seed))
    chosen = [labels[i % len(labels)] for i in range(n)]
    scenes: list[Scene] = [sample_scene(rng, split="train", **{factor: label}) for label in chosen]
    images = [render(scene, REFERENCE_SEED + 1_000 * seed + i).image for i, scene in enumerate(scenes)]
    return Shown(np.stack(images), [caption(scene) for scene in scenes], chosen)


def captions(factor: str, labels: Sequence[str], n: int, seed: int = 0) -> list[str]:
    """n captions, the labels in turn, everything else at random from what canvas was trained on."""
    rng = np.random.default_rng((seed, 17))
    return [caption(sample_scene(rng, split="train", **{factor: labels[i % len(labels)]})) for i in range(n)]


def canvas_task(
    pipe: Pipeline,
    interventions: Sequence[Intervention],
    factor: str,
    label: str,
    *,
    n: int = 16,
    n_references: int = 16,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    batch_size: int = 16,
    prompts: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> AttackTask:
    """A task for a concept of canvas.

    Args:
        pipe: canvas.
        interventions: the edit.
        factor, label: the concept.
        n: prompts, if none are given.
        n_references: renders.
        seed: of prompts, seeds and renders.
        steps, guidance: the model's own if None.
        batch_size: images at a time.
        prompts, seeds: what is to be drawn, captions of canvas with the label.

    Raises:
        UnknownConcept: canvas has no such label.
    """
    check_concept(factor, label)
    own = generation_defaults(pipe)
    shown = renders(factor, [label], n_references, seed)
    asked = list(prompts) or captions(factor, [label], n, seed)
    return AttackTask(
        pipe,
        interventions,
        factor,
        label,
        asked,
        list(seeds) or [1_000 * seed + i for i in range(len(asked))],
        shown.images,
        own.steps if steps is None else steps,
        own.guidance if guidance is None else guidance,
        batch_size,
        captions=shown.captions,
    )


def check_concept(factor: str, label: str) -> None:
    """Raise UnknownConcept unless canvas has the label."""
    if label not in FACTORS.get(factor, ()):
        known = FACTORS.get(factor) or tuple(FACTORS)
        raise UnknownConcept(f"canvas has no {factor} {label!r}; expected one of {', '.join(known)}.")
