"""What is drawn to choose a setting, and what is drawn to score it: canvas's prompts with seeds and labels.

Three disjoint sets of prompts and seeds: the store's (concept scores), the validation grid's (hyper-parameters) and the
scored grid's (results). A setting is chosen on validation alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.prompts import balanced

if TYPE_CHECKING:
    from probe.unlearning import PromptGrid

DOMAINS = ("object", "style")
SCORED_SEED, VALIDATION_SEED = 2_000_000, 1_000_000
"""First seeds of the two grids; stores count from 0."""


def scored_grid(n_seeds: int, *, objects: Sequence[str] = (), styles: Sequence[str] = ()) -> PromptGrid:
    """Every object in every style with every seed; colours and backgrounds follow a Latin square.

    Args:
        n_seeds: seeds of each combination.
        objects, styles: restrict the grid; all if empty.
    """
    from probe.canvas import BACKGROUNDS, COLOURS, OBJECTS, STYLES, caption
    from probe.unlearning import PromptGrid

    return PromptGrid.product(
        caption,
        {"object": tuple(objects) or OBJECTS, "style": tuple(styles) or STYLES},
        range(SCORED_SEED, SCORED_SEED + n_seeds),
        rotate={"colour": COLOURS, "background": BACKGROUNDS},
    )


def validation_grid(
    factor: str,
    label: str,
    *,
    n_target: int,
    n_retain: int,
    exclude: Collection[str],
    within: Mapping[str, Sequence[str]] | None = None,
) -> PromptGrid:
    """Balanced prompts with and without a target, each with its own seed, none of them in ``exclude``."""
    from probe.canvas import FACTORS
    from probe.unlearning import PromptGrid

    values = {name: tuple((within or {}).get(name) or FACTORS[name]) for name in DOMAINS}
    others = tuple(value for value in values[factor] if value != label)
    parts = [
        balanced(n_target, split="all", exclude=exclude, within=values | {factor: (label,)}),
        balanced(n_retain, split="all", exclude=exclude, seed=1, within=values | {factor: others}),
    ]
    prompts = parts[0].prompts + parts[1].prompts
    labels = {name: parts[0].labels[name] + parts[1].labels[name] for name in FACTORS}
    return PromptGrid(prompts, tuple(range(VALIDATION_SEED, VALIDATION_SEED + len(prompts))), labels)


def shown_rows(grid: PromptGrid, factor: str, label: str, n: int) -> list[int]:
    """Rows of a grid for people: n of the target and n of the rest, spread over the labels, one seed."""
    first = [i for i, seed in enumerate(grid.seeds) if seed == grid.seeds[0]]
    target = [i for i in first if grid.labels[factor][i] == label]
    rest = [i for i in first if grid.labels[factor][i] != label]
    order = np.random.default_rng(0).permutation(len(rest))
    retained: list[int] = []
    used: dict[str, set[str]] = {name: set() for name in DOMAINS}
    for relaxed in (False, True):
        for j in order:
            i = rest[j]
            fresh = all(grid.labels[name][i] not in used[name] for name in DOMAINS)
            if i not in retained and len(retained) < n and (fresh or relaxed):
                retained.append(i)
                for name in DOMAINS:
                    used[name].add(grid.labels[name][i])
    return target[:n] + sorted(retained)


def grid_record(grid: PromptGrid) -> dict[str, Any]:
    """A grid as JSON values."""
    return {
        "prompts": list(grid.prompts),
        "seeds": list(grid.seeds),
        "labels": {k: list(v) for k, v in grid.labels.items()},
    }
