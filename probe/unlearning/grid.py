"""Prompt grids: every combination of labels that a benchmark draws, with several seeds each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from probe.errors import EmptyPrompts, InvalidRequest, InvalidTable, UnknownConcept


@dataclass(frozen=True)
class PromptGrid:
    """Images to generate.

    Attributes:
        prompts: N prompts.
        seeds: N seeds.
        labels: for each factor, the N prompted labels.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    labels: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(self.prompts))
        object.__setattr__(self, "seeds", tuple(int(seed) for seed in self.seeds))
        object.__setattr__(self, "labels", {factor: tuple(values) for factor, values in self.labels.items()})
        if not self.prompts:
            raise EmptyPrompts("grid: there are no prompts.")
        lengths = {"seeds": len(self.seeds)} | {factor: len(values) for factor, values in self.labels.items()}
        wrong = {name: n for name, n in lengths.items() if n != len(self.prompts)}
        if wrong:
            raise InvalidTable(f"grid: {len(self.prompts)} prompts, but lengths {wrong}; expected one value a prompt.")

    def __len__(self) -> int:
        return len(self.prompts)

    @classmethod
    def product(
        cls,
        caption: Callable[[Mapping[str, str]], str],
        factors: Mapping[str, Sequence[str]],
        seeds: Sequence[int],
        *,
        rotate: Mapping[str, Sequence[str]] | None = None,
    ) -> PromptGrid:
        """Every combination of ``factors``, each with every seed.

        Args:
            caption: makes the prompt of a combination.
            factors: the labels to cross, for example objects and styles.
            seeds: seeds of each combination.
            rotate: factors that must be in the caption but are not crossed; beside each crossed label their
                labels, and then their combinations, occur as equally often as the size allows.

        Raises:
            InvalidRequest: a factor has no labels, or no seed is given.
        """
        rotate = rotate or {}
        if not seeds or not factors or not all(len(v) for v in [*factors.values(), *rotate.values()]):
            raise InvalidRequest("grid: expected at least one seed and one label for each factor.")
        prompts: list[str] = []
        chosen: dict[str, list[str]] = {factor: [] for factor in [*factors, *rotate]}
        used: list[int] = []
        rest = _Rotation(rotate)
        for crossed in product(*factors.values()):
            for seed in seeds:
                labels = dict(zip(factors, crossed, strict=True))
                labels |= rest.next(list(labels.items()))
                prompts.append(caption(labels))
                used.append(int(seed))
                for factor, values in chosen.items():
                    values.append(labels[factor])
        return cls(tuple(prompts), tuple(used), {factor: tuple(values) for factor, values in chosen.items()})

    def select(self, rows: Sequence[int] | np.ndarray) -> PromptGrid:
        """The grid with these rows only."""
        indices = [int(row) for row in rows]
        return PromptGrid(
            tuple(self.prompts[i] for i in indices),
            tuple(self.seeds[i] for i in indices),
            {factor: tuple(values[i] for i in indices) for factor, values in self.labels.items()},
        )

    def targets(self, factor: str) -> tuple[str, ...]:
        """The labels of a factor, in order of first appearance.

        Raises:
            UnknownConcept: the grid has no such factor.
        """
        if factor not in self.labels:
            raise UnknownConcept(f"grid: no factor {factor!r}; expected one of {', '.join(self.labels)}.")
        return tuple(dict.fromkeys(self.labels[factor]))


class _Rotation:
    """Deals combinations of labels so that none is tied to a crossed label: each time the one used least so far.

    Shifting each factor by the position in the grid does not do this: two shifts can agree modulo a common divisor, and
    then a style meets only half of the backgrounds, always with the same colours.
    """

    def __init__(self, factors: Mapping[str, Sequence[str]]) -> None:
        self._combinations = [dict(zip(factors, labels, strict=True)) for labels in product(*factors.values())]
        rng = np.random.default_rng(0)
        self._order = [int(i) for i in rng.permutation(len(self._combinations))]
        self._used: Counter[tuple[object, ...]] = Counter()

    def next(self, beside: Sequence[tuple[str, str]]) -> dict[str, str]:
        """The combination for a cell with these crossed labels."""

        def wear(i: int) -> tuple[int, int, int, int]:
            labels = self._combinations[i].items()
            used = self._used
            single = sum(used[crossed, label] for crossed in beside for label in labels)
            return single, sum(used[crossed, i] for crossed in beside), used[(i,)], self._order[i]

        best = min(range(len(self._combinations)), key=wear)
        self._used[(best,)] += 1
        for crossed in beside:
            self._used[crossed, best] += 1
            self._used.update((crossed, label) for label in self._combinations[best].items())
        return self._combinations[best]
