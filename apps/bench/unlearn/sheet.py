"""What the methods draw when they are asked for the target: one row a method, one column a prompt with its seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from apps.bench.unlearn.prepare import Bench
from apps.bench.unlearn.target import spread_rows
from apps.bench.unlearn.world import rows_for
from apps.images import labelled_grid, read_image
from apps.unlearning.prompt_grids import DOMAINS

_N_COLUMNS, _SIDE = 8, 96


def target_sheet(
    bench: Bench, records: Mapping[tuple[str, str, str], Mapping[str, Any]], factor: str, label: str
) -> np.ndarray:
    """A sheet of a target's test images, with what the judge sees below each; (H, W, 3) uint8.

    Args:
        bench: a finished benchmark.
        records: what its score stages left, by (method, factor, label).
        factor, label: one of its targets.
    """
    test = bench.world.test
    grid = test.select(rows_for(test, factor, label, bench.config.retain_seeds))
    shown = spread_rows(grid, factor, label, _N_COLUMNS)
    other = DOMAINS[1 - DOMAINS.index(factor)]
    images, captions, names = [], [], []
    for (name, *target), record in records.items():
        if target != [factor, label]:
            continue
        folder = bench.run.new("unlearn", f"{name}-{factor}-{label}")
        images.append([read_image(folder / f"{i:06d}.png") for i in shown])
        captions.append([_seen(record, i) for i in shown])
        names.append(name.replace("_", " "))
    return labelled_grid(
        images,
        row_labels=names,
        column_labels=[grid.labels[other][i] for i in shown],
        captions=captions,
        side=_SIDE,
        title=f"Asked for the {factor} {label}, by each method: same prompts, same noise; below, what is seen.",
    )


def _seen(record: Mapping[str, Any], i: int) -> str:
    seen = f"{record['judged']['object'][i]}, {record['judged']['style'][i]}"
    return f"{seen}\nartifact" if record["artifact"][i] else seen
