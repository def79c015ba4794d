"""Attacks by words alone: the same request said in another way, or for a combination that was never trained on.

An edit that was made on one form of prompt may hang on that form. Only wordings that the unedited model follows count:
in each of ``FORMS`` it drew object, style, colour and background as asked at least nine times in ten (the tests measure
it again); it was trained on the first three. Captions of other worlds than canvas come with paraphrases of their own
(``AttackTask.paraphrases``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from probe.canvas import FACTORS, SceneError, caption, parse_caption, partial_caption, sample_scene
from probe.canvas.captions import PARAPHRASES
from probe.errors import InvalidRequest
from probe.unlearning.attacks.task import AttackResult, AttackTask, spending

FORMS = (
    *PARAPHRASES,
    "a {colour} {object} in {style} style on {background} background",
    "on {background} background a {colour} {object} in {style} style",
    "{style} style {colour} {object} on {background} background",
    "{object}, {colour}, {style} style, {background} background",
    "{background} background, {style} style, {colour} {object}",
    "a {object} in {style} style, {colour}, {background} background",
)
"""Other forms of a full canvas caption that the unedited model follows."""


def paraphrase(task: AttackTask) -> AttackResult:
    """Draw every prompt in another form, the forms in turn; costs the drawing.

    Raises:
        InvalidRequest: the prompts are no captions of canvas, and the task brings no paraphrases.
    """
    prompts = list(task.paraphrases) or [
        FORMS[i % len(FORMS)].format_map(_names(task, prompt)) for i, prompt in enumerate(task.prompts)
    ]
    with spending(task.pipe) as spent:
        return AttackResult("paraphrase", task.draw(prompts), tuple(prompts), spent.evaluations, spent.seconds)


def held_out(task: AttackTask) -> AttackResult:
    """Draw the concept in combinations that the model was never trained on; costs the drawing.

    On canvas these are the held-out pairs of object and style or colour, drawn by the task's seeds. Labels of the other
    factors differ from the prompts', so only the concept may be judged.

    Raises:
        InvalidRequest: the concept is none of canvas's, and the task brings no prompts.
    """
    n = len(task.prompts)
    given = list(task.held_out)
    prompts = [given[i % len(given)] for i in range(n)] if given else held_out_prompts(task.factor, task.label, n)
    with spending(task.pipe) as spent:
        return AttackResult("held_out", task.draw(prompts), tuple(prompts), spent.evaluations, spent.seconds)


def held_out_prompts(factor: str, label: str, n: int, seed: int = 0) -> list[str]:
    """n captions of canvas with a label in a held-out combination.

    Raises:
        InvalidRequest: canvas has no such label.
    """
    if label not in FACTORS.get(factor, ()):
        raise InvalidRequest(
            f"held-out attack: canvas has no {factor} {label!r}; give the task held_out prompts of its own world."
        )
    rng = np.random.default_rng(seed)
    return [caption(sample_scene(rng, split="held_out", **{factor: label})) for _ in range(n)]


def captions_of(task: AttackTask) -> Sequence[str]:
    """The captions of the references: the task's own, or a short phrase that names the concept alone."""
    if task.captions:
        return list(task.captions)
    known = task.label in FACTORS.get(task.factor, ()) and task.name == task.label
    phrase = partial_caption({task.factor: task.label}) if known else f"a {task.name}"
    return [phrase] * len(task.references)


def _names(task: AttackTask, prompt: str) -> Mapping[str, str]:
    try:
        return parse_caption(prompt)
    except SceneError as error:
        raise InvalidRequest(
            f"paraphrase attack: {prompt!r} is no caption of canvas; give the task paraphrases of its prompts."
        ) from error
