"""Rows of any measurement as tables for people. No Streamlit.

Rows are told apart by ``part`` or ``measure``. A value and its interval become one cell, what is the same in all rows
becomes a sentence, and columns that are empty are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]

_FACTORS = ("object", "style", "colour", "background")
COLUMNS = {
    "bench.directions": (
        "finder",
        "vectors",
        *(f"auc_{factor}" for factor in _FACTORS),
        *(f"gain_{factor}" for factor in _FACTORS),
        "off",
        "found",
        "found_shuffled",
        "evaluations",
        "products",
        "cpu_s",
    ),
}
"""Of a measurement with very wide rows: the columns that answer its question."""

MATRICES = {"bench.directions": ("finder", "gain", _FACTORS)}
"""Of a measurement whose rows answer the same for several factors: what names a row, the value, the factors."""

_HIDDEN = ("part", "measure", "headline")
"""Keys that arrange a file and say nothing of a row."""

NAMES = {
    "auc": "AUC",
    "off": "other changes",
    "ua": "UA",
    "ira": "IRA",
    "cra": "CRA",
    "iou": "IoU",
    "cpu_s": "CPU s",
    "cka": "CKA",
    "n": "images",
}


def parts(rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    """Rows by their ``part`` or ``measure``, in file order; "" where they have neither."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(str(row.get("part") or row.get("measure") or ""), []).append(row)
    return found


def table(rows: Rows, columns: Sequence[str] = ()) -> tuple[list[dict[str, str]], dict[str, str]]:
    """A table of some rows, and what they have in common.

    Args:
        rows: of one part.
        columns: keys to show, in order; all that have a value if empty.

    Returns:
        One record a row, title -> text, and title -> text of what is the same in all of several rows.
    """
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in _HIDDEN]
    ends = {end for key in keys for end in (bound(key, "low"), bound(key, "high")) if end in keys}
    wanted = [key for key in (columns or keys) if key not in ends and any(row.get(key) is not None for row in rows)]
    texts = {key: [cell(row, key) for row in rows] for key in wanted}
    common = {} if len(rows) < 2 or columns else {key: t[0] for key, t in texts.items() if len(set(t)) == 1}
    shown = [key for key in wanted if key not in common]
    return (
        [{name(key): texts[key][i] for key in shown} for i in range(len(rows))],
        {name(key): text for key, text in common.items()},
    )


def headline(rows: Rows) -> str | None:
    """The first key of some rows that has a value with an interval in each of them."""
    for key in rows[0] if rows else ():
        if all(_number(row.get(k)) is not None for row in rows for k in (key, bound(key, "low"), bound(key, "high"))):
            return key
    return None


def label(row: Mapping[str, Any], rows: Rows) -> str:
    """What tells a row from the others: its texts that are not the same everywhere."""
    texts = [(k, v) for k, v in row.items() if isinstance(v, str) and k not in _HIDDEN]
    own = [v for k, v in texts if any(r.get(k) != v for r in rows)]
    return " · ".join(dict.fromkeys(own))


def cell(row: Mapping[str, Any], key: str) -> str:
    """A value, with its interval where there is one: ``0.45 (0.41 to 0.49)``."""
    value = row.get(key)
    low, high = (_number(row.get(bound(key, end))) for end in ("low", "high"))
    text = number(value)
    return (
        text if _number(value) is None or low is None or high is None else f"{text} ({number(low)} to {number(high)})"
    )


def number(value: object) -> str:
    """A value as a reader wants it: three figures for a fraction, separators for a count, nothing for nothing."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        small = "0" if abs(value) < 5e-7 else "<0.001" if value > 0 else ">-0.001"
        return small if abs(value) < 5e-4 else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, list | tuple):
        return ", ".join(number(item) for item in value)
    return str(value)


def name(key: str) -> str:
    """A key for people: ``auc_object`` is "AUC object"."""
    first, _, rest = key.partition("_")
    if key in NAMES:
        return NAMES[key]
    return f"{NAMES[first]} {rest.replace('_', ' ')}" if first in NAMES and rest else key.replace("_", " ")


def bound(key: str, end: str) -> str:
    """Key of an end of a value's interval: ``iou_low``; ``gain_low_object`` for ``gain_object``; ``low`` for value."""
    first, _, rest = key.rpartition("_")
    if key == "value":
        return end
    return f"{first}_{end}_{rest}" if rest in _FACTORS and first in ("auc", "gain", "off") else f"{key}_{end}"


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
