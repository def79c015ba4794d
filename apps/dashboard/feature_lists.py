"""Lists of features that people keep: ordered, with notes, and scores of raters who saw no labels (blind.py).

Edits take all lists of a run and return all lists; ``list_files.change`` applies one to the file. No Streamlit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from apps.errors import InvalidOption

SCORES = {1: "no pattern", 2: "weak", 3: "several things", 4: "mostly one thing", 5: "one clear thing"}
"""Score of interpretability -> what it means."""
MOST_LISTS, MOST_ITEMS, MOST_TEXT, MOST_NAME, MOST_RATERS = 100, 500, 1000, 60, 100
_ITEMS_PER_CONTROL = 4


@dataclass(frozen=True)
class Score:
    """What a rater thinks of one task."""

    score: int
    says: str = ""


@dataclass(frozen=True)
class Item:
    """A feature in a list.

    Attributes:
        dictionary: its name in the run.
        feature: its number.
        bundle: first characters of the hash of the bundle that it was seen in.
        note: free text.
        scores: rater -> score.
    """

    dictionary: str
    feature: int
    bundle: str = ""
    note: str = ""
    scores: Mapping[str, Score] = field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        """Mean score; None without raters."""
        return float(np.mean([s.score for s in self.scores.values()])) if self.scores else None


@dataclass(frozen=True)
class FeatureList:
    """A list: its name, its items in order, and for each rater the scores of the controls by number."""

    name: str
    items: tuple[Item, ...] = ()
    controls: Mapping[str, Mapping[int, Score]] = field(default_factory=dict)

    @property
    def n_controls(self) -> int:
        """Controls between the items, one for every four and at least one."""
        return -(-len(self.items) // _ITEMS_PER_CONTROL)

    @property
    def raters(self) -> list[str]:
        """Who scored anything."""
        return sorted({name for item in self.items for name in item.scores} | set(self.controls))

    def holds(self, dictionary: str, feature: int) -> bool:
        """Whether a feature is in it."""
        return any((i.dictionary, i.feature) == (dictionary, feature) for i in self.items)


Lists = dict[str, FeatureList]


def added(lists: Lists, name: str, item: Item) -> Lists:
    """The item at the end of a list, which is made if it is new; a feature that is there already stays where it is."""
    name = name.strip()
    if not 1 <= len(name) <= MOST_NAME or not name.isprintable():
        raise InvalidOption(f"list: the name {name[:MOST_NAME]!r} cannot be used; expected 1 to {MOST_NAME} letters.")
    own = lists.get(name, FeatureList(name))
    if own.holds(item.dictionary, item.feature):
        return lists
    if len(own.items) >= MOST_ITEMS or len(lists | {name: own}) > MOST_LISTS:
        raise InvalidOption(f"list: {name!r} is full; {MOST_ITEMS} features in {MOST_LISTS} lists at most.")
    return lists | {name: replace(own, items=(*own.items, item))}


def moved(lists: Lists, name: str, item: Item, by: int) -> Lists:
    """An item some places further down; it stops at the ends."""
    items, at = _found(lists, name, item)
    there = min(max(at + by, 0), len(items) - 1)
    items.insert(there, items.pop(at))
    return lists | {name: replace(lists[name], items=tuple(items))}


def removed(lists: Lists, name: str, item: Item) -> Lists:
    """A list without an item; its scores go with it."""
    items, at = _found(lists, name, item)
    return lists | {name: replace(lists[name], items=(*items[:at], *items[at + 1 :]))}


def noted(lists: Lists, name: str, item: Item, note: str) -> Lists:
    """An item with another note."""
    items, at = _found(lists, name, item)
    items[at] = replace(items[at], note=note.strip()[:MOST_TEXT])
    return lists | {name: replace(lists[name], items=tuple(items))}


def scored(lists: Lists, name: str, task: Item | int, rater: str, score: Score) -> Lists:
    """A rater's score of an item, or of the control of this number."""
    rater = rater.strip()
    if not 1 <= len(rater) <= MOST_NAME or not rater.isprintable():
        raise InvalidOption(f"list: the rater {rater[:MOST_NAME]!r} cannot be used; expected 1 to {MOST_NAME} letters.")
    if name in lists and rater not in lists[name].raters and len(lists[name].raters) >= MOST_RATERS:
        raise InvalidOption(f"list: {name!r} has {MOST_RATERS} raters already.")
    score = Score(int(score.score), score.says.strip()[:MOST_TEXT])
    if score.score not in SCORES:
        raise InvalidOption(f"list: score {score.score} cannot be used; expected 1 to {max(SCORES)}.")
    if isinstance(task, int):
        own = lists[name]
        return lists | {
            name: replace(own, controls={**own.controls, rater: {**own.controls.get(rater, {}), task: score}})
        }
    items, at = _found(lists, name, task)
    items[at] = replace(items[at], scores={**items[at].scores, rater: score})
    return lists | {name: replace(lists[name], items=tuple(items))}


def without(lists: Lists, name: str) -> Lists:
    """All other lists."""
    return {key: one for key, one in lists.items() if key != name}


def _found(lists: Lists, name: str, item: Item) -> tuple[list[Item], int]:
    """A list's items and the place of one; another session may have taken it away."""
    items = list(lists[name].items) if name in lists else []
    for at, other in enumerate(items):
        if (other.dictionary, other.feature) == (item.dictionary, item.feature):
            return items, at
    raise InvalidOption(f"list: feature {item.feature} of {item.dictionary} is no longer in {name!r}; reload the page.")
