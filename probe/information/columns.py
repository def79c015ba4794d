"""Columns of a node table: a denoiser and what it is told, for every image.

A column is named by its role, the same for all images, while the text behind it is the image's own:

    empty              nothing is said
    caption            the whole caption
    caption-red        the caption without a word           word:red            the word alone
    caption-red-star   without two words                    pair:red+star       the two words alone
    shuffled           the caption of another image     swap:red            the caption with another image's word there

The last two are nulls: what the same formula gives for words that do not belong to the image.

A column may have a denoiser of its own (``model``), such as one with a feature ablated, or a Gaussian control: it then
meets the same noisy samples as all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from probe.errors import InvalidRequest
from probe.model.eps_model import EpsModel

EMPTY, CAPTION, SHUFFLED, CONTROL = "empty", "caption", "shuffled", "control"


@dataclass(frozen=True, eq=False)
class Column:
    """One denoiser under one role of condition.

    Attributes:
        name: unique in the table.
        conds: one condition an image, or None for no condition at any.
        model: the denoiser, or None for the table's own.
    """

    name: str
    conds: Sequence[Any] | None = None
    model: EpsModel | None = None

    def of(self, images: range) -> list[Any]:
        """Conditions of some images."""
        return [None] * len(images) if self.conds is None else [self.conds[i] for i in images]


def word(role: str) -> str:
    """Name of the column of a word alone."""
    return f"word:{role}"


def pair(first: str, second: str) -> str:
    """Name of the column of two words alone."""
    return f"pair:{first}+{second}"


def swap(role: str) -> str:
    """Name of the column of the caption with another image's word."""
    return f"swap:{role}"


def without(*roles: str) -> str:
    """Name of the column of the caption without words."""
    return "-".join((CAPTION, *roles))


def drop_words(text: str, words: Mapping[str, str]) -> str:
    """A caption without words; each must be one of its words.

    Args:
        text: the caption.
        words: word -> what is said in its place, nothing if empty.

    Raises:
        InvalidRequest: a word that the caption does not have, or has twice.
    """
    parts = text.split()
    for w in words:
        if parts.count(w) != 1:
            raise InvalidRequest(f"drop_words: {w!r} is {parts.count(w)} times in {text!r}; expected once.")
    return " ".join(kept for kept in (words.get(part, part) for part in parts) if kept)


def class_columns(n_images: int, classes: Mapping[str, Any]) -> list[Column]:
    """A column a class, the same condition for every image; for ``classify``."""
    return [Column(name, [cond] * n_images) for name, cond in classes.items()]


def caption_columns(
    captions: Sequence[str],
    words: Mapping[str, Sequence[str]] | None = None,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    absent: Mapping[str, str] | None = None,
    say: Callable[[Mapping[str, str]], str] | None = None,
    restate: bool = False,
    others: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Column]:
    """The columns that information about words needs.

    Args:
        captions: one an image.
        words: role -> the word of each image, such as {"colour": ["red", "blue"]}: the caption without it, and the
            word by itself.
        pairs: two roles each: the caption without both, and both by themselves. All pairs if None.
        absent: role -> what stands in a caption for a word that is left out, such as {"object": "thing"}.
        say: the text for one or two words by themselves, given as {role: word}; the words with a space between if
            None. A model was trained on some sort of text, and words by themselves may not be it.
        restate: let ``say`` say also what is left of a caption, from the other words of ``words``, instead of cutting
            words out of its text; for captions that are made of these words.
        others: captions to draw the null from; ``captions`` if None. Words are drawn from those of other images.
        seed: of the nulls.

    Returns:
        empty, caption, shuffled, then the roles. A role whose word is the same for all images has no ``swap``.

    Raises:
        InvalidRequest: lengths that do not fit, a word that is not in its caption, or an image for which there is no
            other caption.
    """
    words = dict(words or {})
    for role, given in words.items():
        if len(given) != len(captions) or not set(role).isdisjoint("-+: "):
            raise InvalidRequest(
                f"caption_columns: role {role!r} has {len(given)} words for {len(captions)} captions; expected one "
                "each, and a role without '-', '+', ':' and spaces."
            )
    wanted = list(combinations(words, 2)) if pairs is None else list(pairs)
    instead = absent or {}
    tell = say or (lambda given: " ".join(given.values()))
    for role in {r for both in wanted for r in both} - set(words):
        raise InvalidRequest(f"caption_columns: no words for role {role!r}; expected one of {', '.join(words)}.")

    def dropped(*roles: str) -> list[str]:
        if restate:
            return alone(*(r for r in words if r not in roles))
        return [drop_words(text, {words[r][i]: instead.get(r, "") for r in roles}) for i, text in enumerate(captions)]

    def alone(*roles: str) -> list[str]:
        return [tell({r: words[r][i] for r in roles}) for i in range(len(captions))]

    def swapped(role: str) -> list[str]:
        drawn = shuffled(words[role], seed=seed)
        if restate:
            return [tell({r: new if r == role else words[r][i] for r in words}) for i, new in enumerate(drawn)]
        parts = (text.split() for text in captions)
        return [
            " ".join(new if w == own else w for w in part)
            for part, own, new in zip(parts, words[role], drawn, strict=True)
        ]

    return [
        Column(EMPTY),
        Column(CAPTION, list(captions)),
        Column(SHUFFLED, shuffled(captions, others, seed)),
        *(Column(without(role), dropped(role)) for role in words),
        *(Column(swap(role), swapped(role)) for role, given in words.items() if len(set(given)) > 1),
        *(Column(without(a, b), dropped(a, b)) for a, b in wanted),
        *(Column(word(role), alone(role)) for role in words),
        *(Column(pair(a, b), alone(a, b)) for a, b in wanted),
    ]


def shuffled(captions: Sequence[str], others: Sequence[str] | None = None, seed: int = 0) -> list[str]:
    """For every image a caption that is not its own, drawn uniformly from the others."""
    rng = np.random.default_rng(seed)
    pool = list(captions if others is None else others)
    found = []
    for own in captions:
        left = [c for c in pool if c != own]
        if not left:
            raise InvalidRequest(
                f"caption_columns: no other caption than {own!r} to compare with; give others=[...] for the null."
            )
        found.append(left[int(rng.integers(len(left)))])
    return found
