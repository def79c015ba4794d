"""The conditions of ``denoscope bench unlearn-many``: their settings, images and scores; what is done is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.bench.unlearn.config import ManyBench
from apps.bench.unlearn.many_edits import SetEdits
from apps.bench.unlearn.many_figure import many_sheet
from apps.bench.unlearn.prepare import Bench
from apps.bench.unlearn.world import dealt_rows
from apps.images import read_image, save_png
from apps.measurement import Interval, bootstrap_mean
from apps.progress import bar
from apps.stages import Say, Stages
from apps.unlearning import prompt_grids
from apps.unlearning.methods import Edits, method
from apps.unlearning.unedited import unedited_images

if TYPE_CHECKING:
    from apps.unlearning.candidates import Features
    from probe.unlearning import PromptGrid, UnlearnScores

MODES = ("joint", "sequential")
CONTROL = "random"
METHOD = "saeuron"


@dataclass
class Conditions:
    """The conditions of a benchmark, each worked out once.

    Attributes:
        config: what is measured.
        bench: its work folder, with what is learned there.
        say: takes lines for people.
    """

    config: ManyBench
    bench: Bench
    say: Say

    def __post_init__(self) -> None:
        world = self.bench.world
        self.test: PromptGrid = world.test.select(dealt_rows(world.test, self.config.bench.retain_seeds))
        n = (len(self.config.counts) * (1 + len(MODES)) + 2) * len(self.config.factors)  # and setting, and control
        self.stages = Stages(self.bench.run, self.say, n)
        self.sets = SetEdits(self.bench, self.config.n_rescored)
        self._settings: dict[str, Features] = {}

    def order(self, factor: str) -> list[str]:
        """The concepts in the order in which they are unlearned."""
        labels = self.bench.world.labels[factor]
        return [labels[i] for i in np.random.default_rng(self.config.order_seed).permutation(len(labels))]

    @cached_property
    def before(self) -> np.ndarray:
        """The unedited images of the test prompts."""
        b = self.bench
        with bar("unedited") as progress:
            return unedited_images(b.run, b.pipe, self.test, b.world.sampling, progress=progress)

    def setting(self, factor: str) -> Features:
        """The setting that is best on validation images of the joint edit of the largest set."""
        if factor not in self._settings:
            self._settings[factor] = self._chosen(factor)
        return self._settings[factor]

    def _chosen(self, factor: str) -> Features:
        from probe.unlearning import search

        labels = self.order(factor)[: self.config.counts[-1]]
        settings = self.bench.config.settings(method(METHOD), factor, labels[0])
        by_name = {setting.name: setting for setting in settings}
        grid = self.validation(factor, labels)
        key = self._key(factor, labels) | {"validation": prompt_grids.grid_record(grid)}
        key |= {"settings": [asdict(setting) for setting in settings]}

        def work() -> dict[str, Any]:
            edits = {name: self.sets.joint(factor, labels, setting) for name, setting in by_name.items()}
            with bar(f"choose a setting for {len(labels)}") as progress:
                found = search(
                    self.bench.pipe, self.bench.world.judge, grid, (factor, labels), edits,
                    domains=prompt_grids.DOMAINS, progress=progress, **asdict(self.bench.world.sampling),
                )  # fmt: skip
            return {"objectives": {one.name: one.objective for one in found}}

        if len(by_name) == 1:
            return settings[0]
        record = self.stages.do(f"many-setting-{factor}-{len(labels)}", f"setting for {labels}", key, work)
        return by_name[max(record["objectives"], key=record["objectives"].__getitem__)]

    def validation(self, factor: str, labels: Sequence[str]) -> PromptGrid:
        """Validation prompts that ask for the concepts, shared evenly, and that ask for none of them."""
        from probe.unlearning import PromptGrid

        n_target, n_retain = self.config.bench.validation
        world = self.bench.world
        of_all = len(world.test.targets(factor))
        more = -(-n_retain * of_all // (of_all - len(labels)))  # so many that enough ask for none
        prompts, seeds = [], []
        columns: dict[str, list[str]] = {}
        for number, label in enumerate(labels):
            grid = world.validation(factor, label, max(1, n_target // len(labels)), 2 * more if number == 0 else 1)
            rows = [i for i, value in enumerate(grid.labels[factor]) if value == label]
            if number == 0:
                rows += [i for i, value in enumerate(grid.labels[factor]) if value not in labels][:n_retain]
            chosen = grid.select(rows)
            prompts += chosen.prompts
            seeds += chosen.seeds
            for name, values in chosen.labels.items():
                columns.setdefault(name, []).extend(values)
        return PromptGrid(tuple(prompts), tuple(seeds), {name: tuple(values) for name, values in columns.items()})

    def scores(self, mode: str, factor: str, labels: Sequence[str]) -> tuple[UnlearnScores, Interval]:
        """Scores of a condition on the test images, and what is shown instead; it runs if that is not done.

        The second is the share of the images that ask for an unlearned concept in which the judge sees another
        unlearned one.
        """
        from probe.unlearning import Predictions, score
        from probe.unlearning.evaluate import pixel_change

        mode = self.done_as(mode, len(labels))
        key = self._key(factor, labels) | {"mode": mode, "test": prompt_grids.grid_record(self.test)}
        if mode != "no_edit":
            key["setting"] = asdict(self.setting(factor))
        if mode == "sequential":
            key["n_rescored"] = self.config.n_rescored

        shown = self.shown(mode, factor, len(labels))

        def work() -> dict[str, Any]:
            before = self.before
            images = before if mode == "no_edit" else self._draw(self.test, self.edits(mode, factor, labels))
            for i, path in shown.items():
                save_png(path, images[i])
            judged = Predictions.of(self.bench.world.judge(images), prompt_grids.DOMAINS)
            return {
                "judged": {name: list(values) for name, values in judged.labels.items()},
                "artifact": judged.artifact.tolist(),
                "change": pixel_change(before, images).tolist(),
            }

        name = f"many-{mode}-{factor}-{len(labels)}"
        title = f"{mode}: {len(labels)} {factor}s"
        record = self.stages.do(name, title, key, work, outputs=list(shown.values()))
        scores = score(
            factor,
            labels,
            self.test.labels,
            Predictions(record["judged"], np.asarray(record["artifact"], bool)),
            cross=_other(factor),
            prompts=self.test.prompts,
            seeds=self.test.seeds,
            change=np.asarray(record["change"], float),
            n_boot=self.config.bench.n_boot,
        )
        return scores, shown_instead(labels, self.test.labels[factor], record["judged"][factor])

    def shown(self, mode: str, factor: str, count: int) -> dict[int, Path]:
        """Test rows whose images of a condition are kept, and where.

        One for every label, in the order in which they are unlearned, spread over the other factor.
        """
        test, folder = self.test, self.folder(mode, factor, count)
        rows = [[i for i, label in enumerate(test.labels[factor]) if label == one] for one in self.order(factor)]
        return {i: folder / f"{i:06d}.png" for i in (own[n % len(own)] for n, own in enumerate(rows))}

    def folder(self, mode: str, factor: str, count: int) -> Path:
        """Where the shown images of a condition lie."""
        return self.bench.run.new("unlearn", f"many-{self.done_as(mode, count)}-{factor}-{count}")

    @staticmethod
    def done_as(mode: str, count: int) -> str:
        """The way that a condition is done: one concept after none is that concept alone."""
        return "joint" if mode == "sequential" and count == 1 else mode

    def sheet(self, factor: str) -> np.ndarray:
        """The shown images of the largest set, and of the smallest."""
        counts = self.config.counts
        conditions = {"no edit": ("no_edit", counts[-1]), f"joint, {counts[0]}": ("joint", counts[0])}
        conditions |= {f"{mode}, {counts[-1]}": (mode, counts[-1]) for mode in (*MODES, CONTROL)}
        images = {
            name: [read_image(path) for path in self.shown(mode, factor, count).values()]
            for name, (mode, count) in conditions.items()
        }
        return many_sheet(factor, self.order(factor), counts[-1], images)

    def edits(self, mode: str, factor: str, labels: Sequence[str]) -> Edits:
        """The edit of a condition."""
        from probe.unlearning import random_controls

        setting = self.setting(factor)
        if mode == "sequential":
            return self.sets.sequence(factor, labels, setting)
        joint = self.sets.joint(factor, labels, setting)
        return random_controls(joint) if mode == CONTROL else joint

    def _draw(self, grid: PromptGrid, edits: Edits) -> np.ndarray:
        from probe.model import generate

        sampling = asdict(self.bench.world.sampling)
        return generate(self.bench.pipe, grid.prompts, grid.seeds, interventions=edits, **sampling)

    def _key(self, factor: str, labels: Sequence[str]) -> dict[str, Any]:
        settings = self.bench.config.settings(method(METHOD), factor, labels[0])
        names = dict.fromkeys(used for setting in settings for used in setting.uses)  # of this factor alone
        return {
            "model": self.bench.model_hash,
            "factor": factor,
            "labels": list(labels),
            "dictionaries": {name: self.bench.weights_hash(name) for name in names},
            "store": self.bench.learned.recorded.hashes,
            "sampling": asdict(self.bench.world.sampling),
        }


def shown_instead(labels: Sequence[str], prompted: Sequence[str], judged: Sequence[str]) -> Interval:
    """Share of the images that ask for one of the labels and show another of them; the interval resamples labels."""
    asked = [(want, seen) for want, seen in zip(prompted, judged, strict=True) if want in labels]
    found = [float(seen in labels and seen != want) for want, seen in asked]
    return bootstrap_mean(found, [want for want, _ in asked] if len(labels) > 1 else None)


def _other(factor: str) -> str:
    return prompt_grids.DOMAINS[1 - prompt_grids.DOMAINS.index(factor)]
