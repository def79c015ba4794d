"""Prompts for a collection: a file, or ``canvas:N``, N labelled captions with all factor values equally
often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import TYPE_CHECKING

import numpy as np

from apps.errors import InvalidOption

if TYPE_CHECKING:
    from probe.capture import PromptSet

MAX_CANVAS_PROMPTS = 1_000_000


@dataclass(frozen=True)
class LabelledPrompts:
    """Canvas captions with their factor values.

    Attributes:
        prompts: N captions.
        labels: for each factor, N values.
    """

    prompts: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def first(self, n: int) -> LabelledPrompts:
        """The first n of them."""
        return LabelledPrompts(self.prompts[:n], {name: values[:n] for name, values in self.labels.items()})


def balanced(
    n: int,
    *,
    seed: int = 0,
    split: str = "train",
    exclude: Collection[str] = (),
    within: Mapping[str, Sequence[str]] | None = None,
) -> LabelledPrompts:
    """Captions drawn so that values, and then pairs of values, occur as equally often as n allows.

    Each prompt is a combination whose values and pairs have been used least so far, so every prefix is
    balanced.

    Args:
        n: number of prompts.
        seed: breaks ties.
        split: ``train`` leaves out the combinations that canvas never trained on; ``held_out`` has those
            only.
        exclude: captions that must not occur.
        within: for some factors, the values to draw from; all values of the others.
    """
    from probe.canvas.world import FACTORS, SPLITS, caption, is_held_out

    if split not in SPLITS:
        raise InvalidOption(f"prompts: split {split!r}; expected one of {', '.join(SPLITS)}.")
    fixed = dict(within or {})
    unknown = set(fixed) - set(FACTORS)
    if unknown:
        raise InvalidOption(
            f"prompts: there is no factor {', '.join(sorted(unknown))}; canvas has {', '.join(FACTORS)}."
        )
    for factor, values in fixed.items():
        wrong = [value for value in values if value not in FACTORS[factor]]
        if wrong:
            known = ", ".join(FACTORS[factor])
            raise InvalidOption(f"prompts: canvas has no {factor} {', '.join(map(repr, wrong))}; it has {known}.")
    combos = [
        combo
        for combo in product(*(tuple(fixed.get(factor, values)) for factor, values in FACTORS.items()))
        if split == "all" or is_held_out(combo[0], combo[1], combo[2]) == (split == "held_out")
    ]
    if exclude:
        combos = [combo for combo in combos if caption(dict(zip(FACTORS, combo, strict=True))) not in exclude]
    if not combos:
        raise InvalidOption(f"prompts: split {split!r} has no combination left with {fixed}.")
    # Column j of `keys` numbers what combo i uses: single values first, then pairs of values.
    parts = [(i,) for i in range(len(FACTORS))] + list(combinations(range(len(FACTORS)), 2))
    keys = np.empty((len(combos), len(parts)), np.int64)
    total = 0
    for j, part in enumerate(parts):
        found, keys[:, j] = np.unique([" ".join(c[i] for i in part) for c in combos], return_inverse=True)
        keys[:, j] += total
        total += len(found)
    weight = np.array([64.0 if len(part) == 1 else 8.0 for part in parts])
    used, used_combo = np.zeros(total), np.zeros(len(combos))
    rng = np.random.default_rng(seed)
    chosen = []
    for _ in range(min(n, len(combos))):
        cost = used[keys] @ weight + 1e6 * used_combo + rng.random(len(combos))
        best = int(cost.argmin())
        chosen.append(combos[best])
        used[keys[best]] += 1
        used_combo[best] += 1
    chosen = [chosen[i % len(chosen)] for i in range(n)]  # a balanced sequence repeated stays balanced
    return LabelledPrompts(
        prompts=tuple(caption(dict(zip(FACTORS, combo, strict=True))) for combo in chosen),
        labels={factor: tuple(combo[i] for combo in chosen) for i, factor in enumerate(FACTORS)},
    )


def prompts_from(text: str, *, seed: int = 0) -> PromptSet:
    """What ``--prompts`` means: ``canvas:N`` or a file of ``probe.capture.read_prompts``."""
    from probe.capture import PromptSet, read_prompts

    name, colon, count = text.partition(":")
    if name == "canvas" and colon:
        if not count.isdecimal() or not 1 <= int(count) <= MAX_CANVAS_PROMPTS:
            raise InvalidOption(
                f"--prompts {text}: expected canvas:N with N from 1 to {MAX_CANVAS_PROMPTS}, as canvas:200."
            )
        made = balanced(int(count), seed=seed)
        return PromptSet(prompts=made.prompts, labels=made.labels)
    return read_prompts(text)


def counts(labels: Mapping[str, Sequence[str]]) -> str:
    """How often the values of each factor occur, as a line for people."""
    lines = []
    for factor, values in labels.items():
        found = Counter(values)
        low, high = min(found.values()), max(found.values())
        spread = f"{low}" if low == high else f"{low} to {high}"
        lines.append(f"{len(found)} values of {factor} ({spread} prompts each)")
    return ", ".join(lines)
