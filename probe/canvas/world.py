"""The factors of the canvas world, its captions and its held-out combinations.

A canvas image shows one *object* in one *style* and one *colour* on one *background*. These four factors
are named in the caption; position, size and angle are nuisances that the caption never mentions.

Two families of pairs are kept out of training, so that composition can be tested. With o, s, c the indices
of an object, a style and a colour in ``OBJECTS``, ``STYLES`` and ``COLOURS``:

    o = 7 s + 3 (mod 12)    HELD_OUT_OBJECT_STYLE, 10 pairs, one for each style
    o = 5 c + 1 (mod 12)    HELD_OUT_OBJECT_COLOUR, 8 pairs, one for each colour

7 and 5 are coprime to 12, so no object occurs twice within a family. A combination is held out if it
contains a pair of either family. Written out:

    flat tree, sketch cat, mosaic moon, dots star, watercolor key, hatch house, neon umbrella, clay fish,
    glass boat, pixel cup;
    red heart, orange cup, yellow boat, green fish, cyan umbrella, blue house, purple key, pink star.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import isfinite
from typing import Literal, get_args

import numpy as np

OBJECTS = (
    "star",
    "heart",
    "house",
    "tree",
    "fish",
    "moon",
    "cup",
    "key",
    "mushroom",
    "umbrella",
    "cat",
    "boat",
)
STYLES = ("flat", "sketch", "mosaic", "dots", "watercolor", "hatch", "neon", "clay", "glass", "pixel")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
BACKGROUNDS = ("white", "gray", "sand", "dark")

FACTORS: dict[str, tuple[str, ...]] = {
    "object": OBJECTS,
    "style": STYLES,
    "colour": COLOURS,
    "background": BACKGROUNDS,
}

HELD_OUT_OBJECT_STYLE = frozenset((OBJECTS[(7 * s + 3) % 12], style) for s, style in enumerate(STYLES))
HELD_OUT_OBJECT_COLOUR = frozenset((OBJECTS[(5 * c + 1) % 12], colour) for c, colour in enumerate(COLOURS))

Split = Literal["train", "held_out", "all"]
SPLITS: tuple[Split, ...] = get_args(Split)

# Ranges that sample_scene draws the nuisances from.
MAX_SHIFT = 6.0  # pixels
SIZE_RANGE = (0.85, 1.1)
MAX_ANGLE = 10.0  # degrees

# What a Scene accepts: wider than the sampled ranges, so that out-of-range probes can be drawn.
_LIMITS = {"x": (-32.0, 32.0), "y": (-32.0, 32.0), "size": (0.25, 2.0), "angle": (-180.0, 180.0)}


class SceneError(ValueError):
    """A scene, a caption or a request for one that the canvas world does not contain."""


def _check_name(factor: str, name: object, where: str) -> None:
    if factor not in FACTORS:
        raise SceneError(f"{where}: unknown factor {factor!r}; expected one of {', '.join(FACTORS)}")
    if name not in FACTORS[factor]:
        raise SceneError(f"{where}: unknown {factor} {name!r}; expected one of {', '.join(FACTORS[factor])}")


@dataclass(frozen=True)
class Scene:
    """Everything that determines an image, up to the seed of its jitter.

    Attributes:
        object: a member of ``OBJECTS``.
        style: a member of ``STYLES``.
        colour: a member of ``COLOURS``.
        background: a member of ``BACKGROUNDS``.
        x: shift of the object from the image's centre to the right, in pixels, within [-32, 32].
        y: the same downwards.
        size: scale factor within [0.25, 2]; at 1 an object spans about 42 of the 64 pixels.
        angle: rotation in degrees, clockwise on screen, within [-180, 180].

    Raises:
        SceneError: if a name is unknown or a number is out of range.
    """

    object: str
    style: str
    colour: str
    background: str
    x: float = 0.0
    y: float = 0.0
    size: float = 1.0
    angle: float = 0.0

    def __post_init__(self) -> None:
        for factor in FACTORS:
            _check_name(factor, getattr(self, factor), "Scene")
        for field, (low, high) in _LIMITS.items():
            value = getattr(self, field)
            if not isfinite(value) or not low <= value <= high:
                raise SceneError(f"Scene: {field} must lie in [{low:g}, {high:g}], got {value!r}")


def caption(scene: Scene | Mapping[str, str]) -> str:
    """The caption of a scene, or of a mapping with the four factor names as keys.

    Example:
        ``"a red star on dark background in mosaic style"``

    Raises:
        SceneError: if a factor is missing or a name is unknown.
    """
    names: dict[str, str] = {}
    for factor in FACTORS:
        if isinstance(scene, Scene):
            names[factor] = getattr(scene, factor)
        elif factor in scene:
            names[factor] = scene[factor]
        else:
            raise SceneError(f"caption: factor {factor!r} is missing; got {', '.join(scene) or 'none'}")
        _check_name(factor, names[factor], "caption")
    return "a {colour} {object} on {background} background in {style} style".format_map(names)


_CAPTION = re.compile(r"a (?P<colour>\w+) (?P<object>\w+) on (?P<background>\w+) background in (?P<style>\w+) style")


def parse_caption(text: str) -> dict[str, str]:
    """The inverse of ``caption``: factor names, keyed and ordered as ``FACTORS``.

    Raises:
        SceneError: if the text has another form, or names something unknown.
    """
    match = _CAPTION.fullmatch(text)
    if match is None:
        raise SceneError(
            f"parse_caption: cannot read {text!r}; expected 'a COLOUR OBJECT on BACKGROUND background in STYLE style'"
        )
    names = {factor: match[factor] for factor in FACTORS}
    for factor, name in names.items():
        _check_name(factor, name, "parse_caption")
    return names


def is_held_out(object: str, style: str, colour: str) -> bool:
    """Whether a combination contains a held-out pair and so never occurs in the ``train`` split.

    Raises:
        SceneError: if a name is unknown.
    """
    for factor, name in (("object", object), ("style", style), ("colour", colour)):
        _check_name(factor, name, "is_held_out")
    return (object, style) in HELD_OUT_OBJECT_STYLE or (object, colour) in HELD_OUT_OBJECT_COLOUR


@lru_cache(maxsize=256)
def _allowed(split: Split, fixed: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str, str, str], ...]:
    """All combinations of a split with some factors fixed, in the order of ``FACTORS``."""
    if split not in SPLITS:
        raise SceneError(f"sample_scene: unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    for factor, name in fixed:
        _check_name(factor, name, "sample_scene")
    given = dict(fixed)
    choices = [(given[factor],) if factor in given else names for factor, names in FACTORS.items()]
    return tuple(
        (o, s, c, b)
        for o, s, c, b in product(*choices)
        if split == "all" or is_held_out(o, s, c) == (split == "held_out")
    )


def sample_scene(rng: np.random.Generator, *, split: Split = "all", **fixed: str) -> Scene:
    """Draw a scene: uniform over the allowed combinations, nuisances uniform over their ranges.

    Args:
        rng: advanced by five draws, whatever the arguments.
        split: ``train`` excludes held-out combinations, ``held_out`` has nothing else, ``all`` has both.
        **fixed: factor values to keep, such as ``style="mosaic"``.

    Raises:
        SceneError: if a factor, a name or the split is unknown, or nothing in the split has these values.
    """
    combos = _allowed(split, tuple(sorted(fixed.items())))
    if not combos:
        raise SceneError(f"sample_scene: split {split!r} has no combination with {fixed}")
    o, s, c, b = combos[int(rng.random() * len(combos))]
    x, y, size, angle = rng.random(4).tolist()
    return Scene(
        object=o,
        style=s,
        colour=c,
        background=b,
        x=MAX_SHIFT * (2 * x - 1),
        y=MAX_SHIFT * (2 * y - 1),
        size=SIZE_RANGE[0] + (SIZE_RANGE[1] - SIZE_RANGE[0]) * size,
        angle=MAX_ANGLE * (2 * angle - 1),
    )
