"""Do words that say the same share their information, and words that need each other not?

Every pair is decomposed given the rest of the caption of its image:

    duplicate      "red" and "red"                   a red red star ...
    synonym        "neon style" and "in neon style"  a neon style red star on dark background in neon style
    independent    "star" and "red"                  a red star ...
    clause         "dark" and "on background"        ... on dark background
    style clause   "neon" and "in style"             ... in neon style

Partial information decomposition with the MMI redundancy, in both forms. Words that say the same have all of their
information in common: R / I12 is 1, and S / I12 is 0. Independent factors have nothing in common by any account, but
MMI calls the smaller of the two redundant and pays it back as synergy (the "two-bit copy"), so that ``common``, which
is I1 + I2 - I12 as a share of min(I1, I2), stands beside it: 0 for independent words, 1 for duplicates, below 0 for
halves of a clause, which say little unless they are together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from probe.information.intervals import interval

if TYPE_CHECKING:
    from probe.information import Column, NodeTable

WHOLE = "a {colour} {object} on {background} background in {style} style"
NO_STYLE = "a {colour} {object} on {background} background"
NO_BACKGROUND = "a {colour} {object} in {style} style"
PAIRS: dict[str, tuple[str, str, str, str]] = {  # what is known, the first word said, the second, both
    "duplicate": (
        "a {object} on {background} background in {style} style",
        WHOLE,
        WHOLE,
        "a {colour} {colour} {object} on {background} background in {style} style",
    ),
    "synonym": (
        NO_STYLE,
        "a {style} style {colour} {object} on {background} background",
        WHOLE,
        "a {style} style {colour} {object} on {background} background in {style} style",
    ),
    "independent": (
        "a thing on {background} background in {style} style",
        "a {object} on {background} background in {style} style",
        "a {colour} thing on {background} background in {style} style",
        WHOLE,
    ),
    "clause": (
        NO_BACKGROUND,
        "a {background} {colour} {object} in {style} style",
        "a {colour} {object} on background in {style} style",
        WHOLE,
    ),
    "style clause": (
        NO_STYLE,
        "a {style} {colour} {object} on {background} background",
        "a {colour} {object} on {background} background in style",
        WHOLE,
    ),
}
TEXTS = tuple(dict.fromkeys(text for texts in PAIRS.values() for text in texts))


def pair_columns(names: Sequence[Mapping[str, str]]) -> list[Column]:
    """A column a text, with each image's own words."""
    from probe.information import Column

    return [Column(text, [text.format_map(given) for given in names]) for text in TEXTS]


def pair_rows(table: NodeTable) -> list[dict[str, Any]]:
    """One row a pair and form, with intervals over images and nodes."""
    from probe.information import pid

    rows = []
    for name, columns in PAIRS.items():
        for form in ("standard", "orthogonal"):
            found = pid(table, "first", "second", columns=columns, form=form)
            parts = {"first": found.first, "second": found.second, "both": found.both}
            row: dict[str, Any] = {"part": "pairs", "pair": name, "form": form, "n": table.n_images}
            row |= {k: part.mean for k, part in parts.items()}
            row |= {k: float(v) for k, v in found.image._asdict().items()}
            terms = [part.terms for part in parts.values()]
            for key in ("redundant", "synergistic", "common"):
                share = interval(terms, lambda v, k=key: _shares(v)[k], n=400, shared_nodes=table.nodes.shared)
                row |= {key: share.value, f"{key}_low": share.low, f"{key}_high": share.high}
            rows.append(row)
    return rows


def _shares(sums: Sequence[Any]) -> dict[str, float]:
    first, second, both = (float(part.mean()) for part in sums)
    r = min(first, second)
    return {
        "redundant": r / both,
        "synergistic": (both - first - second + r) / both,
        "common": (first + second - both) / r,
    }
