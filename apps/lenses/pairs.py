"""Pairs of images and the points that correspond in them: drawn by canvas, where the truth is known, or from a file.

PCK is the share of points whose match lies within a tenth of the size of the second object. Canvas draws one object of
one style twice, at other places, sizes, angles, colours and backgrounds; its own placement carries points of the first
to the second. In a file the size is the longer side of the box around the pair's points in the second image.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apps.errors import InvalidFile, InvalidOption
from apps.lenses.sheets import given_images

if TYPE_CHECKING:
    from probe.model.pipeline import Pipeline

POINTS = 24
"""Points at most of a pair that canvas draws."""
SEARCH = (32, 32)
ALPHA = 0.1
COLUMNS = ("first", "second", "x1", "y1", "x2", "y2")


@dataclass(frozen=True, eq=False)
class Pairs:
    """Images in pairs.

    Attributes:
        images: uint8 (n, H, W, 3).
        numbers: of the two images of each pair.
        points, truth: (m, 2) points of the first image of each pair and their matches in the second, in [0, 1].
        sizes: (pairs,) size of the object in the second image, in [0, 1].
    """

    images: np.ndarray
    numbers: list[tuple[int, int]]
    points: list[np.ndarray]
    truth: list[np.ndarray]
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def share(self, found: Sequence[np.ndarray], chosen: Sequence[int]) -> np.ndarray:
        """(chosen,) PCK of matches, (m, 2) for each of the chosen pairs."""
        from probe.lenses import pck

        both = zip(chosen, found, strict=True)
        return np.array([pck(match, self.truth[i], self.sizes[i], ALPHA).mean() for i, match in both])

    def matched(self, maps: np.ndarray, chosen: Sequence[int]) -> list[np.ndarray]:
        """Where the nearest descriptors, (n, channels, h, w) for all images, put the points of the chosen pairs."""
        from probe.lenses import correspond

        found: list[np.ndarray] = []
        for i in chosen:
            first, second = self.numbers[i]
            found.append(correspond(maps[first], maps[second], self.points[i], grid=SEARCH).points)
        return found


def drawn_pairs(n: int, seed: int | Sequence[int]) -> Pairs:
    """Pairs that canvas draws; the second object stands at the mirrored place, so that the same place is no answer."""
    from probe.canvas import carry_points, render, sample_scene

    rng = np.random.default_rng(seed)
    images, points, truth, sizes = [], [], [], []
    for _ in range(n):
        one = sample_scene(rng, split="train")
        two = sample_scene(rng, split="all", object=one.object, style=one.style)
        two = replace(two, x=-one.x, y=-one.y)
        drawn = [render(scene, int(rng.integers(2**31))) for scene in (one, two)]
        side = len(drawn[0].image)
        on = np.argwhere(drawn[0].mask > 0.9)[:, ::-1].astype(np.float64) + 0.5
        on = on[rng.permutation(len(on))]
        moved = carry_points(on, one, two)
        inside = ((moved > 0) & (moved < side)).all(1)
        points.append(on[inside][:POINTS] / side)
        truth.append(moved[inside][:POINTS] / side)
        box = np.argwhere(drawn[1].mask > 0.5)
        sizes.append((box.max(0) - box.min(0) + 1).max() / side)
        images += [part.image for part in drawn]
    return Pairs(np.stack(images), [(2 * i, 2 * i + 1) for i in range(n)], points, truth, np.asarray(sizes))


def given_pairs(source: str, pipe: Pipeline, seed: int) -> Pairs:
    """What ``--pairs`` means: ``canvas:N``, or a CSV file with a line a point and the columns of ``COLUMNS``; images
    are named relative to the file, and x and y count in shares of the image after it was cropped to a square.

    Raises:
        InvalidOption: fewer than four pairs, or a pair with fewer than two points.
        InvalidFile, FileNotFoundError: the file or an image cannot be read.
    """
    if source.startswith("canvas:"):
        count = source.removeprefix("canvas:")
        if not count.isdecimal() or int(count) < 4:
            raise InvalidOption(f"--pairs {source}: expected canvas:N with N of 4 or more, or a CSV file.")
        return drawn_pairs(int(count), seed)
    found = _read(Path(source))
    few = [pair for pair, rows in found.items() if len(rows) < 2]
    if len(found) < 4 or few:
        named = f"; {few[0][0]} and {few[0][1]} have one point" if few else ""
        raise InvalidOption(f"--pairs {source}: {len(found)} pairs; expected 4 or more, of 2 points or more{named}.")
    names = sorted({name for pair in found for name in pair})
    images, _ = given_images([str(Path(source).parent / name) for name in names], pipe, "", seed)
    numbers = [(names.index(first), names.index(second)) for first, second in found]
    points, truth = ([np.array(rows)[:, part] for rows in found.values()] for part in (slice(0, 2), slice(2, 4)))
    return Pairs(images, numbers, points, truth, np.array([np.ptp(match, axis=0).max() for match in truth]))


def _read(path: Path) -> dict[tuple[str, str], list[list[float]]]:
    """The points (x1, y1, x2, y2) of each pair of names."""
    found: dict[tuple[str, str], list[list[float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if set(COLUMNS) - set(reader.fieldnames or ()):
            raise InvalidFile(f"{str(path)!r}: found the columns {reader.fieldnames}; expected {', '.join(COLUMNS)}.")
        for row in reader:
            try:
                numbers = [float(row[name]) for name in COLUMNS[2:]]
            except (TypeError, ValueError):
                numbers = [-1.0]
            if not all(0 <= number <= 1 for number in numbers):
                raise InvalidFile(f"{str(path)!r} line {reader.line_num}: expected x and y from 0 to 1.")
            found.setdefault((row["first"], row["second"]), []).append(numbers)
    return found
