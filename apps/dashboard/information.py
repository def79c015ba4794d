"""What ``denoscope info`` wrote, arranged for a page: maps over sites and steps, and what speaks against a number.

Every value is in nats and has a 95 % interval and a null, the same estimate with the labels (or the words) of others.
A cell is marked where one of these does not hold:

    null        the interval's lower end is above the null's upper end
    bounds      the interval reaches what a linear probe proves at least (Fano), and starts below the labels' entropy
    forms       standard and orthogonal form, which err differently, are within ``APART`` of the larger
    window      no more than ``BEYOND`` of the value lies outside of the noise levels that were measured

What the two forms say about an estimate is in probe/information/learned.py. No Streamlit: rows in, arrays out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Row = Mapping[str, Any]
FORMS = ("standard", "orthogonal")
APART = 0.25  # of the larger form; by less they differ after enough training
BEYOND = 0.05  # of the value
_NOISE = 0.02  # nats: what the integral itself may be off by
WORDS = ("info.mi", "info.cmi", "info.pid", "info.nll", "info.classify")
SITE = "info.site"


class Grid(NamedTuple):
    """Values over sites and steps.

    Attributes:
        sites: in file order.
        steps: ascending.
        log_snr: of the steps.
        values: (n_sites, n_steps) nats; NaN where nothing was measured.
        doubts: (site index, step index, text) of cells that are marked.
    """

    sites: tuple[str, ...]
    steps: tuple[int, ...]
    log_snr: tuple[float, ...]
    values: np.ndarray
    doubts: list[tuple[int, int, str]]


def told(rows: Sequence[Row]) -> list[str]:
    """What the activations were asked about, in file order."""
    return list(dict.fromkeys(str(row["told"]) for row in rows))


def site_grid(rows: Sequence[Row], what: str, form: str) -> Grid:
    """The map of one label (or of the prompts) in one form."""
    own = [row for row in rows if row["told"] == what]
    sites = tuple(dict.fromkeys(str(row["site"]) for row in own))
    levels = {int(row["step"]): _number(row["log_snr"]) for row in own}
    steps = tuple(sorted(levels))
    values, doubtful = np.full((len(sites), len(steps)), np.nan), []
    for row in own:
        at = sites.index(str(row["site"])), steps.index(int(row["step"]))
        values[at] = _number(row.get(form))
        if found := doubts(row, form):
            doubtful.append((*at, "; ".join(found)))
    return Grid(sites, steps, tuple(levels[step] for step in steps), values, doubtful)


def site_curve(rows: Sequence[Row], what: str, site: str, key: str, steps: Sequence[int]) -> list[float]:
    """A key of a site's rows at some steps; NaN where there is none."""
    found = {int(row["step"]): row for row in rows if row["told"] == what and row["site"] == site}
    return [_number(found.get(step, {}).get(key)) for step in steps]


def doubts(row: Row, form: str = "standard") -> list[str]:
    """What speaks against a row of ``info site``; empty for a cell that passes every check."""
    value, low, high = (_number(row.get(f"{form}{end}")) for end in ("", "_low", "_high"))
    null, least, most = (_number(row.get(key)) for key in (f"null_{form}_high", "at_least", "at_most"))
    found = []
    if not low > null:  # a null that was not measured is passed by nothing
        found.append("not above its null")
    if high < least:
        found.append(f"below {least:.2f}, which a linear probe of the same rows proves")
    if low > most + _NOISE:
        found.append(f"above {most:.2f}, the entropy of the labels")
    forms = [_number(row.get(name)) for name in FORMS]
    if max(forms) > _NOISE and abs(forms[0] - forms[1]) > APART * max(forms):
        why = "rows known by heart" if forms[0] < forms[1] else "trained too briefly, or too few rows"
        found.append(f"the forms are apart, {forms[0]:.2f} and {forms[1]:.2f}: {why}")
    return found + _beyond(row, value)


def word_doubts(row: Row) -> list[str]:
    """What speaks against a row of ``info mi`` and its like; a part of a decomposition has no null of its own."""
    value, low, null = (_number(row.get(key)) for key in ("value", "low", "null_high"))
    found = []
    if np.isnan(null) and not np.isnan(_number(row.get("null"))):
        null = _number(row["null"])  # chance of a classification has no interval
    if "null" in row and np.isnan(null):
        found.append("no null was measured")
    elif not np.isnan(null) and not low > null:
        found.append("not above its null")
    elif "null" not in row and "bits_per_dimension" not in row and low <= 0:  # a likelihood has no zero that means much
        found.append("its interval reaches 0")
    return found + _beyond(row, value)


def estimated(rows: Sequence[Row]) -> list[Row]:
    """The rows that have an interval."""
    keys = ("value", "low", "high")
    return [row for row in rows if not any(np.isnan(_number(row.get(key))) for key in keys)]


def counted(doubtful: Sequence[tuple[int, int, str]], n: int) -> str:
    """A sentence on the marked cells."""
    if not doubtful:
        return f"All {n} cells pass every check."
    kinds: dict[str, int] = {}
    for *_, text in doubtful:
        for part in text.split("; "):
            name = part.split(",")[0].split(":")[0]
            name = name if not name.startswith(("below", "above")) else f"{name.split()[0]} a bound"
            kinds[name] = kinds.get(name, 0) + 1
    return f"{len(doubtful)} of {n} cells are marked: " + ", ".join(f"{n} {name}" for name, n in kinds.items()) + "."


def _beyond(row: Row, value: float) -> list[str]:
    missing = _number(row.get("missing"))
    if missing > max(_NOISE, BEYOND * abs(value)):
        return [f"{missing:.2g} nats lie beyond the noise levels that were measured"]
    return []


def _number(value: object) -> float:
    """A float; NaN for what is no number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")
