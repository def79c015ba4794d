"""Prompt grids: every combination of labels that a benchmark draws, with several seeds each."""

from __future__ import annotations

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
            rotate: factors that must be in the caption but are not crossed; their labels follow a Latin
                square over the crossed factors and the seeds, so that each of them occurs equally often
                beside each crossed label.

        Raises:
            InvalidRequest: a factor has no labels, or no seed is given.
        """
        rotate = rotate or {}
        if not seeds or not factors or not all(len(v) for v in [*factors.values(), *rotate.values()]):
            raise InvalidRequest("grid: expected at least one seed and one label for each factor.")
        prompts: list[str] = []
        chosen: dict[str, list[str]] = {factor: [] for factor in [*factors, *rotate]}
        used: list[int] = []
        for place in product(*(range(len(values)) for values in factors.values())):
            for s, seed in enumerate(seeds):
                labels = {factor: factors[factor][i] for factor, i in zip(factors, place, strict=True)}
                for shift, (factor, values) in enumerate(rotate.items(), start=1):
                    labels[factor] = values[(sum(place) + shift * s + place[0] * (shift - 1)) % len(values)]
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
