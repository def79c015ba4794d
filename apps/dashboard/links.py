"""What a link may say, and what is done with it when it says something else.

The address carries what the reader sees: ``f`` the feature, ``ft_step`` the step, ``unit`` the time axis
and so on. Values come from anyone who sends a link, so each is checked against what exists; a wrong one is
answered with a sentence and the nearest valid view, never silently replaced and never used as part of a
path.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

FEATURE, STEP, EXAMPLE = "f", "ft_step", "ft_example"
VIEW, COLOURS, OPACITY, UNIT, BUNDLE, RUN = "ft_map", "ft_colours", "ft_opacity", "unit", "sae", "run"
RESULT, UNLEARNED, EDIT, SWEEP, DIRECTION = "me_file", "un_file", "un_edit", "st_file", "dr"
COMPARED, OTHER, LOCKED = "cp_with", "cp_f", "cp_step"
INFO, TOLD, PLACE, CELL = "if_file", "if_told", "if_site", "if_step"
LIST, LIST_MODE, LIST_PAGE = "ls", "ls_mode", "ls_page"
INSPECT, SAMPLE, CELLS, SORT, DENSE = "in_from", "in_sample", "in_cells", "in_sort", "in_dense"
AT, BRANCH, SHOWN, LOOK, AGAINST, SECOND = "in_step", "in_branch", "in_f", "in_map", "in_with", "in_b"
PROMPT, SEED, GUIDANCE = "in_prompt", "in_seed", "in_guidance"
_LISTED = 8  # names that are told
_SHOWN = 40  # characters of a wrong value that are repeated to the reader


class Parsed(NamedTuple):
    """A value from a link.

    Attributes:
        value: what to show.
        problem: a sentence for the reader when the link asked for something else, or None.
    """

    value: int
    problem: str | None


def whole_number(text: str | None, *, what: str, low: int, high: int, default: int) -> Parsed:
    """A number in [low, high] from a link.

    Args:
        text: the value in the address, or None if there is none.
        what: its name in the sentence, such as ``feature``.
        low: smallest valid value.
        high: largest valid value.
        default: shown if there is no value or a wrong one.
    """
    if text is None:
        return Parsed(default, None)
    clean = text.strip()
    if clean.isascii() and clean.isdigit() and len(clean) <= 12 and low <= int(clean) <= high:
        return Parsed(int(clean), None)
    return Parsed(
        default, f"The link asks for {what} {quoted(text)}; this run has {what}s {low} to {high}. Showing {default}."
    )


def one_of(text: str | None, *, what: str, choices: Collection[str], default: str) -> tuple[str, str | None]:
    """One of some names from a link, and a sentence if it is none of them."""
    if text is None or text in choices:
        return (default if text is None else text), None
    names = list(choices)
    there_is = ", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else "")
    return default, f"The link asks for {what} {quoted(text)}; there is {there_is}. Showing {default}."


def quoted(text: str) -> str:
    """Foreign text, shortened and on one line, in quotes."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return f"'{clean[:_SHOWN]}…'" if len(clean) > _SHOWN else f"'{clean}'"
