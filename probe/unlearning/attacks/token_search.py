"""Discrete search: real words that make the edited model draw the concept again.

A few tokens in the concept's place are exchanged one by one for tokens that lower the denoising loss of the references
(``loss.py``), which is UnlearnDiffAtk's objective (Zhang et al. 2024, arXiv 2310.11868). The search is greedy
coordinate gradient (Zou et al. 2023, arXiv 2307.15043): with g_j the gradient of the loss with respect to the embedding
at position j, and E the embedding table,

    score(j, w) = -g_j . (E_w - E_now)          the fall of the loss that exchanging j for w promises, to first order

a few exchanges among the best are tried for real, and the best is taken if it lowers the loss. The search begins at
the concept's own word, repeated; at the end the plain word is taken if it does better on noise that was not searched
on. Unlike an embedding, the result is a prompt that anybody can type. Only tokens that are a word by themselves are
used, so that the prompt is read as it was found.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from probe.errors import InvalidRequest
from probe.interventions.apply import intervene
from probe.model.pipeline import Pipeline
from probe.unlearning.attacks.loss import Batch, DenoisingLoss, gradient
from probe.unlearning.attacks.placeholder import check_contains, embedding_table, substituted, word_tokens
from probe.unlearning.attacks.task import AttackResult, AttackTask, spending
from probe.unlearning.attacks.wording import captions_of


@dataclass(frozen=True)
class TokenBudget:
    """What the search may spend: (rounds (1 + candidates) + 3) x images x n_steps denoiser evaluations, and as many
    backward as rounds.

    Attributes:
        n_tokens: words in the concept's place.
        rounds: exchanges.
        candidates: exchanges tried in a round.
        pool: most promising exchanges from which they are drawn.
        images: references at each step.
        n_steps: steps of the sampler that count.
        seed: of noise, references and draws.
    """

    n_tokens: int = 3
    rounds: int = 8
    candidates: int = 10
    pool: int = 32
    images: int = 3
    n_steps: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.n_tokens, self.candidates, self.pool, self.images, self.n_steps) < 1 or self.rounds < 0:
            raise InvalidRequest(f"token search: every number must be at least 1; got {self}.")


def token_search(task: AttackTask, budget: TokenBudget = TokenBudget()) -> AttackResult:
    """Search for the words, then draw the prompts with them in the concept's place.

    Raises:
        UnsupportedPipeline: see ``DenoisingLoss`` and ``word_tokens``.
        InvalidRequest: a prompt or caption lacks the word or leaves no room for the tokens.
    """
    pipe, own = task.pipe, word_tokens(task.pipe, task.name)
    words = single_words(pipe)
    usable = torch.tensor([i for i in words if i not in own])
    if not len(usable):
        raise InvalidRequest("token search: the tokenizer has no token that is a word by itself.")
    draw = torch.Generator("cpu").manual_seed(budget.seed)
    now = [task.name] * budget.n_tokens
    captions = captions_of(task)
    check_contains(
        pipe,
        [_said(text, task.name, now) for text in (*task.prompts, *captions)],
        " ".join(now),
        word_tokens(pipe, " ".join(now)),
    )
    with spending(pipe) as spent:
        loss = DenoisingLoss(task)
        batches = loss.batches(budget.images, budget.n_steps, budget.seed)
        with intervene(pipe, task.interventions):
            (value,) = _values(task, loss, [now], captions, batches)
            history = [value]
            for done in range(budget.rounds):
                tried = _exchanges(task, loss, now, captions, batches, usable, words, budget, draw)
                values = _values(task, loss, tried, captions, batches)
                best = min(range(len(values)), key=values.__getitem__)
                if values[best] < value:
                    now, value = tried[best], values[best]
                history.append(value)
                task.report(done + 1, budget.rounds + 1)
            held = loss.batches(budget.images, budget.n_steps, budget.seed + 7_919)
            plain, found = _values(task, loss, [[task.name], now], captions, held)
        chosen = now if found < plain else [task.name]
        prompts = tuple(_said(prompt, task.name, chosen) for prompt in task.prompts)
        images = task.draw(prompts)
        task.report(budget.rounds + 1, budget.rounds + 1)
        detail = {"words": chosen, "found": now, "losses": history, "held_out": {"plain": plain, "found": found}}
        return AttackResult("token_search", images, prompts, spent.evaluations, spent.seconds, detail)


def single_words(pipe: Pipeline) -> dict[int, str]:
    """Token number -> the word that is read as this token alone, for every token that is a word by itself."""
    special = set(pipe.tokenizer.all_special_ids)
    found: dict[int, str] = {}
    texts = {i: pipe.tokenizer.decode([i]).strip() for i in range(embedding_table(pipe).num_embeddings)}
    plain = [(i, text) for i, text in texts.items() if i not in special and text.isalpha()]
    read = pipe.tokenizer([text for _, text in plain], add_special_tokens=False).input_ids if plain else []
    for (i, text), ids in zip(plain, read, strict=True):
        if list(ids) == [i]:
            found[i] = text
    return found


def _exchanges(
    task: AttackTask,
    loss: DenoisingLoss,
    now: Sequence[str],
    captions: Sequence[str],
    batches: Sequence[Batch],
    usable: torch.Tensor,
    words: dict[int, str],
    budget: TokenBudget,
    draw: torch.Generator,
) -> list[list[str]]:
    """Some of the exchanges that promise most."""
    table = embedding_table(task.pipe).weight.detach().float()
    tokens = word_tokens(task.pipe, " ".join(now))
    spans = [len(word_tokens(task.pipe, word)) for word in now]
    vectors = table[list(tokens)].clone().requires_grad_(True)
    with torch.enable_grad(), substituted(task.pipe, tokens, vectors):
        value = torch.cat([loss(_texts(task.name, now, captions, b), b) for b in batches]).mean()
        slope = gradient(value, vectors, task.label)
    # a word of several tokens is exchanged as a whole, judged by its first
    at = [sum(spans[:j]) for j in range(len(now))]
    fall = -(slope[at] @ table[usable.to(table.device)].T - (slope[at] * vectors.detach()[at]).sum(1, keepdim=True))
    order = fall.flatten().argsort(descending=True)[: budget.pool].cpu()
    picked = order[torch.randperm(len(order), generator=draw)[: budget.candidates]].tolist()
    found = []
    for flat in picked:
        j, w = divmod(flat, len(usable))
        new = list(now)
        new[j] = words[int(usable[w])]
        found.append(new)
    return found


@torch.no_grad()
def _values(
    task: AttackTask,
    loss: DenoisingLoss,
    tried: Sequence[Sequence[str]],
    captions: Sequence[str],
    batches: Sequence[Batch],
) -> list[float]:
    """Mean loss of each choice of words, all on the same noise."""
    found = torch.zeros(len(tried), dtype=torch.float64)
    for batch in batches:
        size = max(1, task.batch_size // len(batch.at))
        for start in range(0, len(tried), size):
            part = tried[start : start + size]
            k = len(part)
            many = Batch(batch.at * k, batch.x0.repeat(k, 1, 1, 1), batch.noise.repeat(k, 1, 1, 1), batch.step)
            texts = [text for words in part for text in _texts(task.name, words, captions, batch)]
            found[start : start + k] += loss(texts, many).view(k, -1).mean(1).double().cpu() / len(batches)
    return found.tolist()


def _texts(name: str, words: Sequence[str], captions: Sequence[str], batch: Batch) -> list[str]:
    return [_said(captions[i], name, words) for i in batch.at]


def _said(text: str, name: str, words: Sequence[str]) -> str:
    """A text with other words in the concept's place."""
    return re.sub(rf"\b{re.escape(name)}\b", " ".join(words), text)
