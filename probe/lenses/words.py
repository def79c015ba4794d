"""Where words stand among the tokens of a prompt.

The prompt and the word are cut by the pipeline's own tokenizer, the word without start and end marks, and the word is
where its pieces occur in a row. A word that occurs several times has the positions of all of them.

What the denoiser's attention sees is not always the tokens of one tokenizer:

    UNets, PixArt   the tokens of ``tokenizer``; a second text encoder (SDXL) adds channels, no positions
    SD3             those of both CLIP encoders, side by side in the channels, at 0 ... 76, and behind them those of T5
    FLUX            those of T5 (``tokenizer_2``); CLIP gives one pooled vector, which is no token

In SD3 a word stands in both parts, and its tokens are those of both.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

from probe.errors import InvalidRequest, UnsupportedPipeline
from probe.model.generate import model_label
from probe.model.pipeline import Pipeline
from probe.model.steps import denoiser

Words = Sequence[str] | Sequence[Sequence[str]]
"""The same words for every prompt, or a sequence of words for each prompt, all of one length."""


class TextPart(NamedTuple):
    """A stretch of the text tokens that the denoiser sees.

    Attributes:
        tokenizer: that cuts it.
        offset: position of its first token.
        length: tokens, marks and padding counted; what is longer is cut off.
    """

    tokenizer: Any
    offset: int
    length: int


def text_parts(pipe: Pipeline) -> list[TextPart]:
    """The stretches of text tokens of a pipeline.

    Raises:
        UnsupportedPipeline: the pipeline has no tokenizer.
    """
    module = denoiser(pipe)[1]
    given: Any = pipe
    if isinstance(module, SD3Transformer2DModel):
        clip = int(given.tokenizer_max_length)
        parts = [TextPart(given.tokenizer, 0, clip), TextPart(given.tokenizer_2, 0, clip)]
        if given.text_encoder_3 is not None:  # without it its positions hold zeros
            parts.append(TextPart(given.tokenizer_3, clip, _longest(pipe)))
    elif isinstance(module, FluxTransformer2DModel):
        parts = [TextPart(given.tokenizer_2, 0, _longest(pipe))]
    else:
        tokenizer = getattr(pipe, "tokenizer", None)
        parts = [TextPart(tokenizer, 0, getattr(tokenizer, "model_max_length", 0))]
    parts = [part for part in parts if part.tokenizer is not None]
    if not parts:
        raise UnsupportedPipeline(f"{model_label(pipe)} has no tokenizer, so a word has no place in a prompt.")
    return parts


def word_positions(pipe: Pipeline, prompt: str, word: str) -> tuple[int, ...]:
    """Positions of a word (or phrase) among the text tokens that the denoiser sees, marks counted, ascending.

    Raises:
        InvalidRequest: the word is not in the prompt, or lies behind what every text encoder reads.
        UnsupportedPipeline: the pipeline has no tokenizer.
    """
    found: set[int] = set()
    for tokenizer, offset, length in text_parts(pipe):
        whole = list(tokenizer(prompt, truncation=True, max_length=length).input_ids)
        part = list(tokenizer(word, add_special_tokens=False).input_ids)
        starts = [i for i in range(len(whole) - len(part) + 1) if part and whole[i : i + len(part)] == part]
        found |= {offset + i + k for i in starts for k in range(len(part))}
    if not found:
        raise InvalidRequest(f"word {word!r} does not occur in the prompt {prompt!r} as it is tokenized.")
    return tuple(sorted(found))


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


def _longest(pipe: Pipeline) -> int:
    """Tokens of T5 where a call does not say how many."""
    return int(inspect.signature(pipe.__call__).parameters["max_sequence_length"].default)
