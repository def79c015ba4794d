"""Tokens whose embedding is a vector of our own.

A placeholder stands where the concept's word stands: while ``substituted`` is open, wherever the word's tokens occur in
a text, the text encoder is given other vectors in their place. Tokenizer and weights stay as they are, and edits of the
text encoder see the new vectors as they would see those of any new token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from probe.errors import InvalidRequest, UnsupportedPipeline
from probe.model.generate import model_label
from probe.model.pipeline import Pipeline


def word_tokens(pipe: Pipeline, word: str) -> tuple[int, ...]:
    """Token numbers of a word inside a text.

    Raises:
        InvalidRequest: the word is empty.
        UnsupportedPipeline: the pipeline has not one text encoder with an embedding table and a tokenizer.
    """
    embedding_table(pipe)
    found = tuple(int(i) for i in pipe.tokenizer(word, add_special_tokens=False).input_ids)
    if not found:
        raise InvalidRequest(f"placeholder: {word!r} has no token; give the word that names the concept in prompts.")
    return found


def embedding_table(pipe: Pipeline) -> torch.nn.Embedding:
    """The text encoder's embedding of tokens, (vocabulary, channels).

    Raises:
        UnsupportedPipeline: see ``word_tokens``.
    """
    encoder: Any = getattr(pipe, "text_encoder", None)
    get = getattr(encoder, "get_input_embeddings", None)
    table = get() if callable(get) else None
    if (
        not isinstance(table, torch.nn.Embedding)
        or getattr(pipe, "tokenizer", None) is None
        or getattr(pipe, "text_encoder_2", None) is not None
    ):
        raise UnsupportedPipeline(
            f"{model_label(pipe)}: a placeholder token needs one text encoder with an embedding table and a tokenizer."
        )
    return table


def occurrences(input_ids: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
    """Which token of a sequence stands where: (B, L) position within ``tokens``, or -1 outside of it.

    Args:
        input_ids: (B, L) int64.
        tokens: the sequence; it counts only as a whole.
    """
    k, found = len(tokens), torch.full_like(input_ids, -1)
    if input_ids.shape[1] < k:
        return found
    wanted = torch.tensor(list(tokens), device=input_ids.device)
    starts = (input_ids.unfold(1, k, 1) == wanted).all(-1)  # (B, L - k + 1)
    for j in range(k):
        part = found[:, j : input_ids.shape[1] - k + 1 + j]
        part[starts] = j
    return found


@contextmanager
def substituted(pipe: Pipeline, tokens: Sequence[int], vectors: torch.Tensor) -> Iterator[None]:
    """While open, the sequence ``tokens`` is embedded as ``vectors``, with gradients.

    Args:
        pipe: the pipeline.
        tokens: k token numbers, as ``word_tokens``.
        vectors: (k, channels), on the text encoder's device.
    """
    table = embedding_table(pipe)
    if vectors.shape != (len(tokens), table.embedding_dim):
        raise InvalidRequest(
            f"placeholder: vectors {tuple(vectors.shape)}; expected ({len(tokens)}, {table.embedding_dim})."
        )

    def hook(module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        at = occurrences(args[0], tokens)
        return torch.where((at >= 0)[..., None], vectors.to(output)[at.clamp(min=0)], output)

    handle = table.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def check_contains(pipe: Pipeline, texts: Sequence[str], word: str, tokens: Sequence[int]) -> None:
    """Refuse texts in which a word is not found, or is cut off at the text encoder's end.

    Raises:
        InvalidRequest: the first of them.
    """
    limit = pipe.tokenizer.model_max_length
    for text in dict.fromkeys(texts):
        ids = pipe.tokenizer(text, truncation=True, max_length=limit).input_ids
        if not bool((occurrences(torch.tensor([ids]), tokens) >= 0).any()):
            raise InvalidRequest(
                f"placeholder: {text!r} does not hold the word {word!r} within {limit} tokens; say how prompts name "
                "the concept (word=...), and name it in each of them."
            )
