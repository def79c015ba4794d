"""Where a phrase ends among the tokens of its embedding."""

from __future__ import annotations

from typing import Any

import torch

from probe.errors import InvalidRequest, UnsupportedPipeline
from probe.interventions.guide import text_embedding
from probe.model.generate import model_label
from probe.model.pipeline import Pipeline


def last_token(pipe: Pipeline, phrase: str) -> int:
    """Position of the phrase's last token, after the tokenizer's start token.

    Raises:
        InvalidRequest: the phrase is empty, or longer than the text encoder reads.
        UnsupportedPipeline: the pipeline has no tokenizer of the usual kind.
    """
    tokenizer: Any = getattr(pipe, "tokenizer", None)
    if tokenizer is None:
        raise UnsupportedPipeline(f"{model_label(pipe)} has no tokenizer, so a phrase has no last token.")
    ids = tokenizer(phrase, add_special_tokens=False).input_ids
    start = 1 if tokenizer.bos_token_id is not None else 0
    if not ids or len(ids) + start >= tokenizer.model_max_length:
        raise InvalidRequest(f"phrase {phrase!r}: {len(ids)} tokens; expected 1 to {tokenizer.model_max_length - 2}.")
    return start + len(ids) - 1


def concept_embedding(pipe: Pipeline, phrase: str, which: str = "last") -> torch.Tensor:
    """Rows of the text embedding that stand for a phrase.

    Args:
        pipe: the pipeline.
        phrase: such as "star".
        which: ``last``, the last token alone, (1, C); or ``from_last``, that token and all after it, the end token and
            the padding, which in a causal text encoder have read the phrase too, (n, C).
    """
    if which not in ("last", "from_last"):
        raise InvalidRequest(f"tokens {which!r}; expected 'last' or 'from_last'.")
    at = last_token(pipe, phrase)
    return text_embedding(pipe, phrase)[at : at + 1 if which == "last" else None]
