"""The numbers of a sweep: rows by group of prompts, push and strength, and the ratios that follow from them.

Prompts that ask for the concept (its name is one of their words) show what a push takes away, the others what it brings
in; the two are told apart in every row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from apps.steering.response import Columns, Resampled, artifact_limit, response_row, saturation, trend
from apps.steering.sweep import PUSH, RANDOM, UNEDITED, Sweep

ASKING, WITHOUT, ALL = "asking for it", "without it", "all"
SIDES = {WITHOUT: (1, "up"), ASKING: (-1, "down")}
"""Where a push has something to bring in, and where something to take away."""


def groups_of(prompts: Sequence[str], target: tuple[str, str] | None) -> dict[str, np.ndarray]:
    """Rows of the prompts that ask for the concept and of those that do not; all where there is no concept."""
    if target is None:
        return {ALL: np.arange(len(prompts))}
    asks = np.array([target[1] in prompt.replace(",", " ").split() for prompt in prompts])
    found = {WITHOUT: np.flatnonzero(~asks), ASKING: np.flatnonzero(asks)}
    return {name: rows for name, rows in found.items() if len(rows)}


def shown_rows(prompts: Sequence[str], groups: Mapping[str, np.ndarray], n: int) -> list[int]:
    """Rows for the sheet: the first image of n prompts of each group."""
    shown: list[int] = []
    for rows in groups.values():
        first = {prompts[i]: int(i) for i in reversed(rows)}
        shown += sorted(first.values())[:n]
    return shown


def response_rows(
    measured: Mapping[tuple[str, float], Columns],
    sweep: Sweep,
    groups: Mapping[str, np.ndarray],
    strengths: Sequence[float],
) -> list[dict[str, Any]]:
    """One row a group, push and strength; the unedited model stands at strength 0 of both pushes."""
    rows = []
    for group, members in groups.items():
        resampled = Resampled([sweep.prompts[i] for i in members], [sweep.seeds[i] for i in members])
        for kind in (PUSH, RANDOM):
            for strength in strengths:
                found = measured[(kind, strength) if strength else (UNEDITED, 0.0)]
                against = measured[(RANDOM, strength) if strength else (UNEDITED, 0.0)] if kind == PUSH else None
                row = response_row(found, against, resampled, members)
                rows.append({"push": kind, "group": group, "strength": strength} | row)
    return rows


def summary(
    rows: Sequence[Mapping[str, Any]],
    measured: Mapping[tuple[str, float], Columns],
    groups: Mapping[str, np.ndarray],
    strengths: Sequence[float],
    target: tuple[str, str] | None,
) -> dict[str, float | None]:
    """The named numbers: trends, and for each side saturation, artifact limit and what is seen at saturation."""
    if target is None:
        return {}
    found: dict[str, float | None] = {}
    for kind in (PUSH, RANDOM):
        keys = [(kind, s) if s else (UNEDITED, 0.0) for s in strengths]
        rho, p = trend(np.stack([measured[key]["target"] for key in keys], 1), strengths)
        found |= {f"{kind}_trend": rho, f"{kind}_trend_p": p}
    for group in groups:
        sign, name = SIDES[group]
        own = [row for row in rows if row["group"] == group and row["push"] == PUSH]
        control = [row for row in rows if row["group"] == group and row["push"] == RANDOM]
        enough = saturation(own, sign)
        found |= {f"{name}_saturation": enough, f"{name}_artifact_limit": artifact_limit(own, sign)}
        unedited = next(row for row in own if row["strength"] == 0)
        found |= {f"{name}_target_unedited": unedited["target"], f"{name}_artifacts_unedited": unedited["artifacts"]}
        if enough is None:
            continue
        at, beside = (next(row for row in side if row["strength"] == enough) for side in (own, control))
        names = ["target", "same_factor", "artifacts", "change", *(key for key in own[0] if key.startswith("kept_"))]
        found |= {f"{name}_{key}": at[key] for key in names}
        found[f"{name}_target_random"] = beside["target"]
    return found
