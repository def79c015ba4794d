"""Concept inversion: find a token embedding for which the edited model draws the concept again.

Pham et al. (2024, arXiv 2308.01508) run textual inversion (Gal et al. 2023) through the edited model,

    v* = argmin_v  L(caption with v in the concept's place)          L: see ``loss.py``

with the model, the edits and all other tokens held, and then prompt with v*. Restarts begin at the concept's own word
and at other tokens; the best of them, by the same loss on noise that none was trained on, is drawn. The word's own
embedding is among the candidates, so that by this measure the attack is not weaker than the plain prompt.

A success shows that the model can still draw the concept, not by itself that it remembers it: a good enough search
might describe anything. ``controls.py`` says what to compare it with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from probe.errors import InvalidRequest
from probe.interventions.apply import intervene
from probe.unlearning.attacks.loss import Batch, DenoisingLoss, gradient
from probe.unlearning.attacks.placeholder import check_contains, embedding_table, substituted, word_tokens
from probe.unlearning.attacks.task import AttackResult, AttackTask, spending
from probe.unlearning.attacks.wording import captions_of


@dataclass(frozen=True)
class EmbeddingBudget:
    """What the search may spend: restarts x (iterations x batch x 3 + validation) denoiser evaluations, roughly.

    Attributes:
        iterations: of Adam, a restart.
        batch: images a gradient.
        rate: learning rate, in root mean squares of the embedding table.
        restarts: beginnings; the first is the word itself, the others are other tokens, drawn at random.
        repeats: placeholders in the word's place, for one of it.
        validation: images at each of four steps that choose among restarts.
        seed: of noise, references and beginnings.
    """

    iterations: int = 40
    batch: int = 6
    rate: float = 0.15
    restarts: int = 2
    repeats: int = 1
    validation: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.batch, self.restarts, self.repeats, self.validation) < 1 or self.iterations < 0 or self.rate <= 0:
            raise InvalidRequest(f"embedding attack: every number must be above zero; got {self}.")


def embedding(task: AttackTask, budget: EmbeddingBudget = EmbeddingBudget()) -> AttackResult:
    """Search for the embedding, then draw the prompts with it in the word's place.

    ``detail`` holds the losses of all candidates, which was taken, and its vectors.

    Raises:
        UnsupportedPipeline: see ``DenoisingLoss`` and ``substituted``.
        InvalidRequest: a prompt or caption lacks the word, or the edit lets no gradient through from text to image.
    """
    pipe, table = task.pipe, embedding_table(task.pipe)
    word = " ".join([task.name] * budget.repeats)
    tokens = word_tokens(pipe, word)
    prompts, captions = (
        [re.sub(rf"\b{re.escape(task.name)}\b", word, text) for text in texts]
        for texts in (task.prompts, captions_of(task))
    )
    check_contains(pipe, [*prompts, *captions], word, tokens)
    with spending(pipe) as spent:
        loss = DenoisingLoss(task)
        found: list[torch.Tensor] = [table.weight.detach()[list(tokens)].float().clone()]
        losses: list[float] = []
        with intervene(pipe, task.interventions):
            for restart in range(budget.restarts):
                found.append(_search(task, budget, loss, captions, tokens, _beginning(table, tokens, budget, restart)))
                task.report(restart + 1, budget.restarts + 1)
            held = loss.batches(budget.validation, 4, budget.seed + 7_919)
            for vectors in found:
                with torch.no_grad(), substituted(pipe, tokens, vectors):
                    losses.append(float(torch.cat([loss(_texts(captions, b), b) for b in held]).mean()))
        best = min(range(len(found)), key=lambda i: losses[i])
        with substituted(pipe, tokens, found[best]):
            images = task.draw(prompts)
        task.report(budget.restarts + 1, budget.restarts + 1)
        detail = {
            "losses": losses,
            "candidates": ["word", *(f"restart {i}" for i in range(budget.restarts))],
            "chosen": best,
            "vectors": found[best].tolist(),
        }
        return AttackResult("embedding", images, None, spent.evaluations, spent.seconds, detail)


def _search(
    task: AttackTask,
    budget: EmbeddingBudget,
    loss: DenoisingLoss,
    captions: Sequence[str],
    tokens: Sequence[int],
    start: torch.Tensor,
) -> torch.Tensor:
    """Vectors (k, channels) after one descent."""
    scale = float(embedding_table(task.pipe).weight.detach().float().square().mean().sqrt())
    vectors = start.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([vectors], lr=budget.rate * scale)
    draw = torch.Generator("cpu").manual_seed(budget.seed)
    order: list[int] = []
    for i in range(budget.iterations):
        order = order or torch.randperm(loss.n_steps, generator=draw).tolist()
        batch = loss.batch(budget.batch, order.pop(), draw)
        for group in optimiser.param_groups:  # down to a tenth, so that the end is not noise
            group["lr"] = budget.rate * scale * (1.0 - 0.9 * i / budget.iterations)
        with torch.enable_grad(), substituted(task.pipe, tokens, vectors):
            vectors.grad = gradient(loss(_texts(captions, batch), batch).mean(), vectors, task.label)
        optimiser.step()
    return vectors.detach()


def _texts(captions: Sequence[str], batch: Batch) -> list[str]:
    return [captions[i] for i in batch.at]


def _beginning(table: torch.nn.Embedding, tokens: Sequence[int], budget: EmbeddingBudget, restart: int) -> torch.Tensor:
    """Where a restart begins, (k, channels): the word, then other tokens."""
    weight = table.weight.detach().float()
    if restart == 0:
        return weight[list(tokens)]
    draw = torch.Generator("cpu").manual_seed(budget.seed + restart)
    return weight[torch.randint(len(weight), (len(tokens),), generator=draw).to(weight.device)]
