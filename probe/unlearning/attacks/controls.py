"""What the success of an attack must be compared with.

A judge finds the concept in some share of the attacked images. By itself that says little: the attack might be too weak
for any model, or strong enough to describe the concept to a model that has forgotten it. Hence the same attack with one
thing changed:

    ceiling     the unedited model                      what the attack reaches where nothing was forgotten
    floor       references of another concept           what template, prompts and judge give without the concept
    untrained   a random token, no optimisation         what a meaningless word in the concept's place gives

An attack found the concept where it stands above floor and untrained; where it stands between them and the ceiling says
how much of it. The floor also answers the opposite question: judged for the *other* concept it says how well a
placeholder can stand for anything at all in this model, also for what the edit never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from probe.errors import InvalidRequest
from probe.unlearning.attacks.placeholder import check_contains, embedding_table, substituted, word_tokens
from probe.unlearning.attacks.task import AttackResult, AttackTask, spending

Attack = Callable[[AttackTask], AttackResult]


def ceiling(attack: Attack, task: AttackTask) -> AttackResult:
    """The same attack on the unedited model."""
    return attack(replace(task, interventions=()))


def floor(attack: Attack, task: AttackTask, references: np.ndarray, captions: Sequence[str] = ()) -> AttackResult:
    """The same attack with references of another concept.

    Args:
        attack, task: what is to be compared.
        references: images that do not show the concept, shaped as the task's.
        captions: of these images, with the task's word where their own concept is named, so that the placeholder comes
            to stand for it; a short phrase if empty.

    Raises:
        InvalidRequest: a caption lacks the word; see ``AttackTask`` for the rest.
    """
    for text in captions:
        if task.name not in text.split():
            raise InvalidRequest(f"floor: caption {text!r} does not name {task.name!r}, so nothing would be learned.")
    return attack(replace(task, references=references, captions=tuple(captions)))


def untrained(task: AttackTask, seed: int = 0) -> AttackResult:
    """Random tokens' embeddings in the concept's place, without optimisation; costs the drawing.

    Args:
        task: its references are not used.
        seed: of the tokens.
    """
    tokens, table = word_tokens(task.pipe, task.name), embedding_table(task.pipe).weight.detach()
    check_contains(task.pipe, task.prompts, task.name, tokens)
    draw = torch.Generator("cpu").manual_seed(seed)
    drawn = torch.randint(len(table), (len(tokens),), generator=draw)
    with spending(task.pipe) as spent, substituted(task.pipe, tokens, table[drawn.to(table.device)]):
        images = task.draw(task.prompts)
        return AttackResult("untrained", images, None, spent.evaluations, spent.seconds, {"tokens": drawn.tolist()})
