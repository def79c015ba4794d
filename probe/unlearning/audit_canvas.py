"""An audit of a concept of canvas: its prompts, its renders, and those of other labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from probe.canvas import FACTORS
from probe.interventions.intervention import Intervention
from probe.model.generate import generation_defaults
from probe.model.pipeline import Pipeline
from probe.unlearning.attacks.canvas import captions, check_concept, renders
from probe.unlearning.audit import AuditTask


def canvas_audit(
    pipe: Pipeline,
    interventions: Sequence[Intervention],
    factor: str,
    label: str,
    *,
    n: int = 40,
    n_train: int = 24,
    n_images: int = 16,
    n_words: int = 6,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    **settings: Any,
) -> AuditTask:
    """The task; run it with ``audit``.

    Args:
        pipe: canvas.
        interventions: the edit.
        factor, label: the concept.
        n: prompts of each kind.
        n_train: of them, for training probes.
        n_images: renders of each kind that are classified.
        n_words: labels that compete for an image, the concept's among them.
        steps, guidance: the model's own if None.
        seed: of prompts, seeds and renders.
        **settings: as ``AuditTask``: ``sites``, ``batch_size``, ``n_null``.

    Raises:
        UnknownConcept: canvas has no such label.
    """
    check_concept(factor, label)
    own = generation_defaults(pipe)
    others = [name for name in FACTORS[factor] if name != label]
    words = [label, *others[: max(1, n_words - 1)]]
    shown, rest = renders(factor, [label], n_images, seed), renders(factor, words[1:], n_images, seed + 1)
    return AuditTask(
        pipe,
        interventions,
        factor,
        label,
        captions(factor, [label], n, seed),
        captions(factor, others, n, seed + 1),
        shown.images,
        shown.captions,
        rest.images,
        [_renamed(text, name, label) for text, name in zip(rest.captions, rest.labels, strict=True)],
        words,
        own.steps if steps is None else steps,
        own.guidance if guidance is None else guidance,
        n_train=n_train,
        seed=seed,
        **settings,
    )


def _renamed(text: str, name: str, label: str) -> str:
    return " ".join(label if part == name else part for part in text.split())
