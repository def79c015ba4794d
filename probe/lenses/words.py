"""Where words stand among the tokens of a prompt.

The prompt and the word are cut by the pipeline's own tokenizer, the word without start and end marks, and the word is
where its pieces occur in a row. A word that occurs several times has the positions of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from probe.errors import InvalidRequest, UnsupportedPipeline
from probe.model.generate import model_label
from probe.model.pipeline import Pipeline

Words = Sequence[str] | Sequence[Sequence[str]]
"""The same words for every prompt, or a sequence of words for each prompt, all of one length."""


def word_positions(pipe: Pipeline, prompt: str, word: str) -> tuple[int, ...]:
    """Positions of a word (or phrase) in the token sequence of a prompt, the start mark counted.

    Raises:
        InvalidRequest: the word is not in the prompt, or lies behind what the text encoder reads.
        UnsupportedPipeline: the pipeline has no tokenizer.
    """
    tokenizer: Any = getattr(pipe, "tokenizer", None)
    if tokenizer is None:
        raise UnsupportedPipeline(f"{model_label(pipe)} has no tokenizer, so a word has no place in a prompt.")
    whole = list(tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids)
    part = list(tokenizer(word, add_special_tokens=False).input_ids)
    starts = [i for i in range(len(whole) - len(part) + 1) if part and whole[i : i + len(part)] == part]
    if not starts:
        raise InvalidRequest(f"word {word!r} does not occur in the prompt {prompt!r} as it is tokenized.")
    return tuple(sorted({i + k for i in starts for k in range(len(part))}))


def words_of(words: Words, prompts: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Words for each prompt.

    Raises:
        InvalidRequest: no word, or not equally many for every prompt.
    """
    if isinstance(words, str):
        raise InvalidRequest(f"words must be a list, got the string {words!r}.")
    if all(isinstance(word, str) for word in words):
        found = [tuple(str(word) for word in words)] * len(prompts)
    else:
        found = [tuple(some) for some in words]
    if len(found) != len(prompts) or len({len(some) for some in found}) != 1 or not found[0]:
        raise InvalidRequest(
            f"words: {[len(some) for some in found]} words for {len(prompts)} prompts; give at least one word for all "
            "prompts, or equally many for each."
        )
    return tuple(found)
