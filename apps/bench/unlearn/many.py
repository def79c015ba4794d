"""``denoscope bench unlearn-many``: one, two, four, eight concepts at once, with the same dictionaries.

The concepts of a factor are taken in one random order, so that each larger set holds the smaller ones. For every number
of concepts K:

    joint        one SAeUron edit at each site with the features of all K, found on the unedited model
    sequential   K edits, one after another; the features of each are found on the model with those before it in place,
                 whose activations are recorded anew
    random       the joint edit's push in random directions of equal norm: the control

The setting is chosen for each K on validation images of the joint edit, and used for all three. Scores are those of
``probe.unlearning.protocol`` with several targets: UA over the images that ask for any of them, IRA over the labels
that are left, CRA over the other factor. Finished conditions are not repeated.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.bench.unlearn.prepare import Bench, UnlearnBench, learn
from apps.bench.unlearn.world import dealt_rows
from apps.errors import InvalidOption
from apps.measurement import Measurement
from apps.progress import bar, percent, table
from apps.stages import Say, Stages, key_hash
from apps.unlearning import edits as unlearning
from apps.unlearning.config import TEXT
from apps.unlearning.methods import Edits, method

if TYPE_CHECKING:
    from apps.unlearning.config import Features
    from probe.unlearning import ConceptScores, PromptGrid, UnlearnScores
    from sae import Dictionary

MODES = ("joint", "sequential", "random")
METHOD = "saeuron"
SHOWN = ("ua", "ira", "cra", "artifacts", "artifacts_retain", "ua_clean", "change_retain")
"""Scores of the table."""


@dataclass(frozen=True)
class ManyBench:
    """What is measured.

    Attributes:
        bench: work folder, world and sizes; its targets name the factors (one target of each is enough).
        counts: numbers of concepts, ascending.
        n_rescored: prompts that are recorded from an edited model to find the next concept's features.
        order_seed: of the order of the concepts.
    """

    bench: UnlearnBench
    counts: tuple[int, ...] = (1, 2, 4, 8)
    n_rescored: int = 192
    order_seed: int = 0

    def __post_init__(self) -> None:
        if not self.counts or list(self.counts) != sorted(set(self.counts)) or self.counts[0] < 1:
            raise InvalidOption(f"bench unlearn-many: counts {list(self.counts)}; expected ascending, from 1.")

    @property
    def factors(self) -> tuple[str, ...]:
        """The factors that are measured."""
        return tuple(dict.fromkeys(factor for factor, _ in self.bench.targets))

    def record(self) -> dict[str, Any]:
        """JSON values without folders."""
        b = self.bench
        sizes = {"n_seeds": b.n_seeds, "retain_seeds": b.retain_seeds, "n_recorded": b.n_recorded}
        own = {"counts": self.counts, "n_rescored": self.n_rescored, "order_seed": self.order_seed}
        return own | sizes | {"factors": self.factors, "place": b.place.record()}


def bench_unlearn_many(config: ManyBench, say: Say = print) -> Measurement:
    """Run everything that is not done yet in the work folder.

    Raises:
        InvalidOption: a factor has too few labels to leave one.
    """
    many = _Many(config, Bench(config.bench), say)
    for factor in config.factors:
        world, most = many.bench.world, config.counts[-1]
        if most > len(world.labels[factor]) or most >= len(world.test.targets(factor)):
            raise InvalidOption(f"bench unlearn-many: {most} {factor}s of a world leave no other.")
    learn(many.bench)
    rows, ratios = [], {}
    for factor in config.factors:
        for count in config.counts:
            labels = many.order(factor)[:count]
            for mode in ("no_edit", *MODES):
                scores = many.scores(mode, factor, labels)
                about = {"mode": mode, "count": count, "setting": many.setting(factor, labels).name}
                row = about | scores.row() | {"mean": float(np.mean([scores[m].value for m in ("ua", "ira", "cra")]))}
                rows.append(row)
                ratios |= {f"{factor}_{mode}_{count}_{m}": row[m] for m in ("ua", "ira", "cra", "artifacts", "mean")}
    return Measurement("bench.unlearn_many", rows, ratios, config.bench.place.device, config.record())


def n_images(config: ManyBench) -> int:
    """Images of a whole run, recordings included."""
    world = Bench(config.bench).world
    test = len(dealt_rows(world.test, config.bench.retain_seeds))
    tried = [len(config.bench.settings(method(METHOD), f, world.labels[f][0])) for f in config.factors]
    conditions = len(config.counts) * len(MODES) - (1 if config.counts[0] == 1 else 0)
    each = conditions * test + (config.counts[-1] - 1) * config.n_rescored
    choose = sum(n * sum(config.bench.validation) * len(config.counts) for n in tried if n > 1)
    return config.bench.n_recorded + test + len(config.factors) * each + choose


@dataclass
class _Many:
    config: ManyBench
    bench: Bench
    say: Say

    def __post_init__(self) -> None:
        world = self.bench.world
        self.test: PromptGrid = world.test.select(dealt_rows(world.test, self.config.bench.retain_seeds))
        n = len(self.config.counts) * (1 + len(MODES)) * len(self.config.factors)
        self.stages = Stages(self.bench.run, self.say, n)
        self._settings: dict[tuple[str, ...], Features] = {}
        self._sequences: dict[tuple[str, str], list[Edits]] = {}

    def order(self, factor: str) -> list[str]:
        """The concepts in the order in which they are unlearned."""
        labels = self.bench.world.labels[factor]
        return [labels[i] for i in np.random.default_rng(self.config.order_seed).permutation(len(labels))]

    @cached_property
    def before(self) -> np.ndarray:
        """The unedited images of the test prompts."""
        b = self.bench
        with bar("unedited") as progress:
            return unlearning.baseline_images(
                b.run, b.pipe, self.test, b.world.sampling, name="many-baseline", progress=progress
            )

    def setting(self, factor: str, labels: Sequence[str]) -> Features:
        """The setting that is best on validation images of the joint edit."""
        if (factor, *labels) not in self._settings:
            self._settings[factor, *labels] = self._chosen(factor, labels)
        return self._settings[factor, *labels]

    def _chosen(self, factor: str, labels: Sequence[str]) -> Features:
        from probe.unlearning import Predictions, balanced, score

        settings = self.bench.config.settings(method(METHOD), factor, labels[0])
        by_name = {setting.name: setting for setting in settings}
        grid = self.validation(factor, labels)
        key = self._key(factor, labels) | {"validation": unlearning.grid_record(grid)}
        key |= {"settings": [asdict(setting) for setting in settings]}

        def work() -> dict[str, Any]:
            found = {}
            with bar(f"choose a setting for {len(labels)}") as progress:
                for number, (name, setting) in enumerate(by_name.items()):
                    edits = self.joint(factor, labels, setting)
                    judged = Predictions.of(self.bench.world.judge(self._draw(grid, edits)), unlearning.DOMAINS)
                    scores = score(
                        factor, labels, grid.labels, judged, cross=_other(factor), prompts=grid.prompts,
                        seeds=grid.seeds, n_boot=0,
                    )  # fmt: skip
                    found[name] = balanced(scores)
                    progress((number + 1) * len(grid), len(by_name) * len(grid))
            return {"objectives": found}

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

    def scores(self, mode: str, factor: str, labels: Sequence[str]) -> UnlearnScores:
        """Scores of a condition on the test images; the condition runs if that is not done."""
        from probe.unlearning import Predictions, score
        from probe.unlearning.evaluate import pixel_change

        mode = "joint" if mode == "sequential" and len(labels) == 1 else mode
        key = self._key(factor, labels) | {"mode": mode, "test": unlearning.grid_record(self.test)}
        if mode != "no_edit":
            key["setting"] = asdict(self.setting(factor, labels))
        if mode == "sequential":
            key["n_rescored"] = self.config.n_rescored

        def work() -> dict[str, Any]:
            before = self.before
            images = before if mode == "no_edit" else self._draw(self.test, self.edits(mode, factor, labels))
            judged = Predictions.of(self.bench.world.judge(images), unlearning.DOMAINS)
            return {
                "judged": {name: list(values) for name, values in judged.labels.items()},
                "artifact": judged.artifact.tolist(),
                "change": pixel_change(before, images).tolist(),
            }

        name = f"many-{mode}-{factor}-{len(labels)}"
        record = self.stages.do(name, f"{mode}: {len(labels)} {factor}s", key, work)
        return score(
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

    def edits(self, mode: str, factor: str, labels: Sequence[str]) -> Edits:
        """The edit of a condition."""
        from probe.unlearning import random_controls

        setting = self.setting(factor, labels)
        if mode == "sequential":
            return self.sequence(factor, labels, setting)
        joint = self.joint(factor, labels, setting)
        return random_controls(joint) if mode == "random" else joint

    def joint(self, factor: str, labels: Sequence[str], setting: Features) -> Edits:
        """The features of all concepts in one edit at each site."""
        return self._edit(setting, labels, {used: self.bench.learned.scores(used, factor) for used in setting.uses})

    def sequence(self, factor: str, labels: Sequence[str], setting: Features) -> Edits:
        """Edit after edit; what was found for a smaller set with the same setting is kept."""
        found = self._sequences.setdefault((factor, setting.name), [])
        for number in range(len(found), len(labels)):
            done = sum(found, ())
            scores = self.rescored(factor, labels[:number], setting, done)
            found.append(self._edit(setting, [labels[number]], scores))
        return sum(found[: len(labels)], ())

    def rescored(self, factor: str, done: Sequence[str], setting: Features, edits: Edits) -> dict[str, ConceptScores]:
        """Concept scores of the model with edits in place; the unedited model's where there are none.

        Features of the text encoder keep their scores: captions are what they were.
        """
        from probe.capture import CapturePlan, collect
        from probe.interventions import intervene
        from sae import ConceptScores, score_concepts

        learned, run, world = self.bench.learned, self.bench.run, self.bench.world
        if not edits:
            return {used: learned.scores(used, factor) for used in setting.uses}
        key = {
            "model": self.bench.model_hash,
            "done": list(done),
            "setting": asdict(setting),
            "dictionaries": {used: self.bench.weights_hash(used) for used in setting.uses},
            "store": learned.recorded.hashes,
            "n": self.config.n_rescored,
        }
        folder = run.folder / "many" / f"{factor}-{len(done)}-{key_hash(key)[:12]}"
        dictionaries: dict[str, Dictionary] = {used: learned.dictionary(used) for used in setting.uses}
        seen = {used: d for used, d in dictionaries.items() if d.config.site not in TEXT.values()}
        if not all((folder / used / factor / "scores.json").is_file() for used in seen):
            prompts = world.recorded.first(self.config.n_rescored)
            plan = CapturePlan.for_pipeline(
                self.bench.pipe,
                list(dict.fromkeys(dictionary.config.site for dictionary in seen.values())),
                prompts.prompts,
                labels=prompts.labels,
                steps=world.sampling.steps,
                guidance=world.sampling.guidance,
                batch_size=world.sampling.batch_size,
                images=False,
            )
            with bar(f"record after {len(done)}") as progress, intervene(self.bench.pipe, edits):
                store = collect(self.bench.pipe, plan, folder / "store", progress=progress)
            for used, dictionary in seen.items():
                for scored, scores in score_concepts(dictionary, store, [factor]).items():
                    scores.save(folder / used / scored)
            shutil.rmtree(folder / "store")  # large, and of no further use
        return {
            used: ConceptScores.load(folder / used / factor) if used in seen else learned.scores(used, factor)
            for used in setting.uses
        }

    def _edit(self, setting: Features, labels: Sequence[str], scores: dict[str, ConceptScores]) -> Edits:
        from probe.unlearning import saeuron

        learned = self.bench.learned
        edits: Edits = ()
        for used in setting.uses:
            dictionary = learned.dictionary(used)
            edits += saeuron(
                scores[used],
                list(labels),
                dictionary=dictionary,
                site=dictionary.config.site,
                setting=setting.setting,
                timesteps=None if dictionary.config.site in TEXT.values() else learned.timesteps,
            )
        return edits

    def _draw(self, grid: PromptGrid, edits: Edits) -> np.ndarray:
        from probe.model import generate

        sampling = asdict(self.bench.world.sampling)
        return generate(self.bench.pipe, grid.prompts, grid.seeds, interventions=edits, **sampling)

    def _key(self, factor: str, labels: Sequence[str]) -> dict[str, Any]:
        names = self.bench.config.dictionary_names()
        return {
            "model": self.bench.model_hash,
            "factor": factor,
            "labels": list(labels),
            "dictionaries": {name: self.bench.weights_hash(name) for name in names},
            "store": self.bench.learned.recorded.hashes,
            "sampling": asdict(self.bench.world.sampling),
        }


def _other(factor: str) -> str:
    return unlearning.DOMAINS[1 - unlearning.DOMAINS.index(factor)]


def many_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The scores for people, in percent with intervals."""
    body = [
        [f"{row['count']} {row['factor']}{'s' if row['count'] > 1 else ''}, {row['mode']}"]
        + [percent(row, name) for name in SHOWN]
        + [f"{100 * row['mean']:.1f}"]
        for row in rows
    ]
    return table(["concepts", *(name.replace("_", " ") for name in SHOWN), "mean"], body)
