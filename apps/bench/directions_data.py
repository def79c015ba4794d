"""What ``denoscope bench directions`` is measured on: stores of renders, prompts, and the judge's eyes."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.bench.directions_scores import Outcome, Readings, Row
from apps.bench.directions_world import CONCEPTS
from apps.progress import bar

if TYPE_CHECKING:
    from activations_store import ActivationStore
    from apps.bench.directions import DirectionsConfig
    from probe.canvas import Judge
    from probe.interventions import Intervention
    from probe.model.pipeline import Pipeline


class Relabelled:
    """A store whose samples have other labels."""

    def __init__(self, store: ActivationStore, labels: Mapping[str, np.ndarray]) -> None:
        self._store, self._labels = store, labels

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def labels(self, factor: str) -> np.ndarray:
        """One value a sample."""
        return self._labels[factor]


class Drawing:
    """Draws the prompts with an edit and asks the judge."""

    def __init__(self, pipe: Pipeline, judge: Judge, prompts: Sequence[str], seeds: range, steps: int) -> None:
        self._pipe, self._judge, self._prompts, self._seeds, self._steps = pipe, judge, list(prompts), seeds, steps
        self.plain = self.outcome([()])

    def outcome(self, edits: Sequence[Sequence[Intervention]]) -> Outcome:
        """What the judge sees under one edit for all prompts, or an edit for each."""
        from probe.model import generate

        n = len(self._prompts) // len(edits)
        images = [
            generate(
                self._pipe, self._prompts[i * n : (i + 1) * n], self._seeds[i * n : (i + 1) * n], steps=self._steps,
                interventions=edit,
            )
            for i, edit in enumerate(edits)
        ]  # fmt: skip
        return Outcome.of(self._judge(np.concatenate(images)), CONCEPTS)

    def agreement(self) -> dict[str, float]:
        """Share of the prompts whose factor the judge sees in the images without an edit."""
        from probe.canvas import parse_caption

        asked = [parse_caption(prompt) for prompt in self._prompts]
        return {f: float(np.mean([a[f] == b for a, b in zip(asked, seen, strict=True)]))
                for f, seen in self.plain.labels.items()}  # fmt: skip


def prompts_of(config: DirectionsConfig) -> tuple[str, ...]:
    """Captions that show none of the concepts."""
    from apps.prompts import balanced
    from probe.canvas import FACTORS

    within = {factor: [v for v in FACTORS[factor] if v != value] for factor, value in CONCEPTS}
    return balanced(config.prompts, seed=config.seed + 3, within=within).prompts


def seeds_of(config: DirectionsConfig) -> range:
    """Of the prompts' images."""
    return range(7_000_000, 7_000_000 + config.prompts)


def collect_rows(pipe: Pipeline, config: DirectionsConfig, work: Path) -> Row:
    """Renders and the stores of both parts; a part that was stopped goes on."""
    from PIL import Image

    from probe.canvas import FACTORS, render_batch
    from probe.capture import ImagePlan, collect, read_images
    from probe.model import schedule

    levels = schedule(pipe, config.steps)[1]
    at = np.unique(np.linspace(1, len(levels) - 2, config.levels).round().astype(int))  # few steps have few levels
    first = 0
    for part, n in (("train", config.train), ("test", config.test)):
        folder = work / part / "renders"
        folder.mkdir(parents=True, exist_ok=True)
        batch = render_batch(range(first, first + n), split="train", seed=2_000 + config.seed)
        with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file_name", "prompt", *FACTORS])
            for i, (image, text, scene) in enumerate(zip(batch.images, batch.captions, batch.scenes, strict=True)):
                Image.fromarray(image).save(folder / f"{i:06d}.png")
                writer.writerow([f"{i:06d}.png", text, *(getattr(scene, factor) for factor in FACTORS)])
        plan = ImagePlan.for_pipeline(
            pipe, [config.site], read_images(folder), [levels[i] for i in at], first_seed=first, branches=("cond",),
            tokens=config.tokens, images=False,
        )  # fmt: skip
        with bar(f"collect {part}") as progress:
            collect(pipe, plan, work / part / "store", progress=progress)
        first += n
    return {"log_snr": [levels[i] for i in at]}


def open_part(folder: Path) -> ActivationStore:
    """The store of one part."""
    from activations_store import ActivationStore

    return ActivationStore.open(folder / "store")


def readings_of(store: ActivationStore, site: str) -> Readings:
    """Rows of a site, the mean over the stored cells of each sample."""
    from probe.canvas import FACTORS
    from probe.directions.rows import SiteRows

    rows = SiteRows(store, site, "cond", "mean")
    return Readings(
        np.stack([rows.gather(step)[1] for step in rows.chosen]).astype(np.float64),
        {factor: store.labels(factor)[rows.samples] for factor in FACTORS},
    )
