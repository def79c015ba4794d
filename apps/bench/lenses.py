"""Do the lenses see what is there? Canvas, where masks, keypoints and composition are known.

Renders are given to the model at a few noise levels, and drawings are made where a lens reads a generation. Whatever a
lens leaves open (threshold, site, level) is chosen on one half of the samples and measured on the other; beside every
score stands what chance, or an answer without the model, would have. Each part is kept in the work folder when it is
done, and an interrupted bench goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.measurement import Measurement
from apps.progress import table
from apps.runs import Run
from apps.stages import Say, Stages

if TYPE_CHECKING:
    from probe.canvas import Batch, Judge
    from probe.model.pipeline import Pipeline

Row = dict[str, Any]
SIDE = 16
"""Cells of a side at which maps meet masks: the grid of canvas's latents."""


@dataclass(frozen=True)
class LensesConfig:
    """What is measured."""

    renders: int = 144  # with masks, for localisation and segmentation
    pairs: int = 96  # of one object drawn twice, for correspondence
    labelled: int = 288  # renders for the probe grid
    prompts: int = 64  # drawn from every layer of the text encoder
    traced: int = 8  # samples of causal tracing
    inverted: int = 16  # renders that are inverted, and generations whose drift is measured
    log_snr: tuple[float, ...] = (4.0, 2.0, 0.0, -2.0)  # noise levels of given images
    seed: int = 311  # a data set of renders that nothing was trained on


QUICK = LensesConfig(renders=16, pairs=8, labelled=48, prompts=4, traced=2, inverted=2, log_snr=(2.0,))


@dataclass(frozen=True, eq=False)
class LensWorld:
    """The samples that the parts share."""

    pipe: Pipeline
    judge: Judge
    config: LensesConfig

    @cached_property
    def renders(self) -> Batch:
        """Renders with masks."""
        from probe.canvas import render_batch

        return render_batch(range(self.config.renders), seed=self.config.seed)

    @cached_property
    def masks(self) -> np.ndarray:
        """(renders, SIDE * SIDE) bool: cells of which the object covers at least half."""
        masks = self.renders.masks.astype(np.float32) / 255
        n, cell = len(masks), masks.shape[1] // SIDE
        return masks.reshape(n, SIDE, cell, SIDE, cell).mean((2, 4)).reshape(n, -1) >= 0.5

    @property
    def chosen(self) -> np.ndarray:
        """(renders,) bool: the half that choices are made on."""
        return np.arange(self.config.renders) < self.config.renders // 2


def bench_lenses(
    pipe: Pipeline, judge: Judge, config: LensesConfig, work: Path, say: Say, *, device: str = "cpu"
) -> Measurement:
    """Run every part that is not done yet in ``work``."""
    from apps.bench.lenses_causes import composition_rows, drift_rows, inversion_rows, probe_rows, trace_rows
    from apps.bench.lenses_places import correspondence_rows, localisation_rows
    from probe.model import fingerprint

    world = LensWorld(pipe, judge, config)
    parts = {
        "localisation": localisation_rows,
        "correspondence": correspondence_rows,
        "probe grid": probe_rows,
        "text lens": composition_rows,
        "tracing": trace_rows,
        "drift": drift_rows,
        "inversion": inversion_rows,
    }
    stages = Stages(Run(work), say, len(parts))
    key = asdict(config) | {"model": fingerprint(pipe)}
    rows: list[Row] = []
    for name, measure in parts.items():
        done = stages.do(name.replace(" ", "-"), name, key, lambda measure=measure: {"rows": measure(world)})
        rows += [{"part": name} | row for row in done["rows"]]
    about = {"seconds": stages.seconds, **asdict(config), "model": fingerprint(pipe)}
    return Measurement("bench.lenses", rows, ratios(rows), device=device, config=about)


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The named numbers: every row's value and interval under ``part_what``."""
    named: dict[str, float | None] = {}
    for row in rows:
        if row.get("headline"):
            name = str(row["headline"])
            named |= {name: row["value"], f"{name}_low": row.get("low"), f"{name}_high": row.get("high")}
    return named


def lenses_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The headline rows for people."""
    body = []
    for row in rows:
        if row.get("headline"):
            low, high = row.get("low"), row.get("high")
            interval = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
            value = "n/a" if row["value"] is None else f"{row['value']:.3f}"
            body.append([f"{row['part']}: {row['what']}", value, interval, str(row.get("n", ""))])
    return table(["", "value", "95 % interval", "n"], body)
