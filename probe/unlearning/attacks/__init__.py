"""Attacks on unlearning: does the concept come back for prompts that the edit was not made on?

Every attack takes an ``AttackTask`` and returns the images that it got the edited model to draw; a judge says in how
many of them the concept is back (UA after attack is one minus that share). Read ``task.py`` first, and ``controls.py``
for what the numbers must be compared with.
"""

from collections.abc import Callable, Mapping

from probe.unlearning.attacks.controls import ceiling, floor, untrained
from probe.unlearning.attacks.embedding import EmbeddingBudget, embedding
from probe.unlearning.attacks.task import AttackResult, AttackTask
from probe.unlearning.attacks.token_search import TokenBudget, token_search
from probe.unlearning.attacks.wording import held_out, paraphrase

ATTACKS: Mapping[str, Callable[[AttackTask], AttackResult]] = {
    "paraphrase": paraphrase,
    "held_out": held_out,
    "embedding": embedding,
    "token_search": token_search,
}
"""Attacks by name, cheapest first."""

__all__ = [
    "ATTACKS",
    "AttackResult",
    "AttackTask",
    "EmbeddingBudget",
    "TokenBudget",
    "ceiling",
    "embedding",
    "floor",
    "held_out",
    "paraphrase",
    "token_search",
    "untrained",
]
