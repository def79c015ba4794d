"""What the unlearning benchmark needs to know of a world: its concepts, its prompts, its judge, how its model draws.

Three sets of images, no two of which share a prompt or a seed:

    recorded     prompts whose activations dictionaries and directions are learned from; seeds from 0
    validation   prompts and seeds that settings are chosen on, for each target its own; seeds from 1,000,000
    test         every object in every style, with every seed; seeds from 2,000,000
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from apps.prompts import LabelledPrompts, balanced
from apps.unlearning.edits import Sampling
from apps.unlearning.prompt_grids import DOMAINS, scored_grid, validation_grid

if TYPE_CHECKING:
    from probe.interventions import Intervention
    from probe.model.pipeline import Pipeline
    from probe.unlearning import Judge, PromptGrid
    from probe.unlearning.attacks import AttackTask
    from probe.unlearning.audit import AuditTask


class World(Protocol):
    """A labelled world with two domains, ``object`` and ``style``.

    Attributes:
        name: of the world.
        labels: for each domain its labels, in order; every one is a target.
        sampling: how images are drawn.
        judge: reads the labels of uint8 images (N, H, W, 3).
        features: the judge's representation of images, (N, d).
        test: the test grid.
    """

    @property
    def name(self) -> str: ...
    @property
    def sampling(self) -> Sampling: ...
    @property
    def labels(self) -> Mapping[str, tuple[str, ...]]: ...
    @property
    def judge(self) -> Judge: ...
    @property
    def features(self) -> Callable[[np.ndarray], np.ndarray]: ...
    @property
    def test(self) -> PromptGrid: ...
    @property
    def recorded(self) -> LabelledPrompts:
        """Labelled prompts to learn from, balanced over the labels."""
        ...

    def validation(self, factor: str, label: str, n_target: int, n_retain: int) -> PromptGrid:
        """Prompts and seeds to choose a target's setting on."""
        ...

    def attack_task(
        self, pipe: Pipeline, edits: Sequence[Intervention], factor: str, label: str, asked: PromptGrid
    ) -> AttackTask:
        """What attacks are given: prompts that ask for the target, and images that show it."""
        ...

    def audit_task(self, pipe: Pipeline, edits: Sequence[Intervention], factor: str, label: str) -> AuditTask:
        """What an audit is given: prompts with and without the target, and images of both."""
        ...


@dataclass(frozen=True)
class CanvasWorld:
    """Canvas, or a part of it.

    Attributes:
        sampling: how images are drawn.
        n_recorded: prompts that are recorded; validation prompts are none of these.
        n_seeds: seeds of each object in each style.
        objects, styles: restrict the world; all if empty.
    """

    sampling: Sampling
    n_recorded: int
    n_seeds: int = 5
    objects: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    name: str = "canvas"

    @property
    def labels(self) -> Mapping[str, tuple[str, ...]]:
        """Objects and styles."""
        from probe.canvas import OBJECTS, STYLES

        return {"object": self.objects or OBJECTS, "style": self.styles or STYLES}

    @property
    def judge(self) -> Judge:
        """The shipped judge."""
        from apps.judging import shipped_judge

        return shipped_judge()

    @property
    def features(self) -> Callable[[np.ndarray], np.ndarray]:
        """The judge's pooled representation."""
        from apps.judging import shipped_judge

        return shipped_judge().features

    @property
    def test(self) -> PromptGrid:
        """Every object in every style with every seed."""
        return self._test

    @property
    def recorded(self) -> LabelledPrompts:
        """Prompts balanced over all factors."""
        return self._recorded

    @cached_property
    def _test(self) -> PromptGrid:
        return scored_grid(self.n_seeds, objects=self.objects, styles=self.styles)

    @cached_property
    def _recorded(self) -> LabelledPrompts:
        return balanced(self.n_recorded, exclude=set(self.test.prompts), within=self.labels)

    def validation(self, factor: str, label: str, n_target: int, n_retain: int) -> PromptGrid:
        """Balanced prompts with and without the target."""
        seen = set(self.test.prompts) | set(self.recorded.prompts)
        return validation_grid(factor, label, n_target=n_target, n_retain=n_retain, exclude=seen, within=self.labels)

    def attack_task(
        self, pipe: Pipeline, edits: Sequence[Intervention], factor: str, label: str, asked: PromptGrid
    ) -> AttackTask:
        """The prompts, and renders that show the target."""
        from probe.unlearning.attacks.canvas import canvas_task

        return canvas_task(
            pipe, edits, factor, label, prompts=asked.prompts, seeds=asked.seeds, **asdict(self.sampling)
        )

    def audit_task(self, pipe: Pipeline, edits: Sequence[Intervention], factor: str, label: str) -> AuditTask:
        """Captions and renders; half as many as ``denoscope audit`` takes by default, for time."""
        from probe.unlearning.audit_canvas import canvas_audit

        half = {"n": 20, "n_train": 12, "n_images": 8}
        return canvas_audit(pipe, edits, factor, label, **half, **asdict(self.sampling))


def dealt_rows(test: PromptGrid, seeds_each: int) -> np.ndarray:
    """Rows of a test grid with only some seeds of every (object, style) cell, dealt in rotation.

    Cell (o, s), numbered in the order of the labels, gets the seeds o + s, o + s + 1, ... modulo their number. So every
    seed is used equally often, and within every object and every style too as far as their numbers divide.

    Args:
        test: a grid that has every cell with every seed.
        seeds_each: how many seeds of each cell are kept; all of them if there are no more.
    """
    seeds = sorted(set(test.seeds))
    number = {name: {label: i for i, label in enumerate(test.targets(name))} for name in DOMAINS}
    kept = []
    for row, seed in enumerate(test.seeds):
        first = sum(number[name][test.labels[name][row]] for name in DOMAINS)
        if (seeds.index(seed) - first) % len(seeds) < seeds_each:
            kept.append(row)
    return np.asarray(kept, np.int64)


class Compared(NamedTuple):
    """Test rows whose images are compared as two sets.

    Attributes:
        own: rows of the first set, dealt as by ``dealt_rows``.
        other: rows of the second, each of the same object and style as its partner, at a later seed.
        seed: number of the own row's seed. Every seed is in both sets equally often, so that what the images of a seed
            have in common cancels.
    """

    own: np.ndarray
    other: np.ndarray
    seed: np.ndarray


def compared_rows(test: PromptGrid, seeds_each: int) -> Compared:
    """Pairs of test rows: at most half of a cell's seeds are in each set."""
    seeds = sorted(set(test.seeds))
    n = len(seeds)
    each = min(seeds_each, n // 2)
    at = {(*cell, seed): row for row, (*cell, seed) in enumerate(zip(*_cells(test), test.seeds, strict=True))}
    pairs = []
    for row in dealt_rows(test, each):
        *cell, seed = (*(values[row] for values in _cells(test)), test.seeds[row])
        number = seeds.index(seed)
        pairs.append((row, at[(*cell, seeds[(number + each) % n])], number))
    own, other, number = np.asarray(pairs, np.int64).reshape(-1, 3).T
    return Compared(own, other, number)


def _cells(test: PromptGrid) -> list[tuple[str, ...]]:
    return [test.labels[name] for name in DOMAINS]


def rows_for(test: PromptGrid, factor: str, label: str, seeds_each: int) -> np.ndarray:
    """Rows that a target is scored on: all that ask for it, and of the rest the dealt ones."""
    asked = np.flatnonzero([value == label for value in test.labels[factor]])
    return np.union1d(asked, dealt_rows(test, seeds_each))


def chosen_targets(world: World, names: Sequence[str]) -> list[tuple[str, str]]:
    """(factor, label) of targets by name (``object:star``, or ``star`` where that is unambiguous); all if none.

    Raises:
        probe.errors.UnknownConcept: a name is none of the world's.
    """
    from probe.errors import UnknownConcept

    known = [(factor, label) for factor in DOMAINS for label in world.labels[factor]]
    found = []
    for name in names:
        matches = [t for t in known if name in (t[1], ":".join(t))]
        if len(matches) != 1:
            raise UnknownConcept(
                f"targets: {name!r} names {len(matches)} of the world's concepts; expected one of "
                f"{', '.join(':'.join(t) for t in known)}."
            )
        found += matches
    return list(dict.fromkeys(found)) or known
