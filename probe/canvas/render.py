"""Scenes to images: deterministic, order-independent, about two milliseconds an image.

``render`` samples the distance maps of an object (``shapes``) on a rotated and scaled grid with two samples
per pixel, lets a style (``styles``) paint them, and averages down to 64 x 64. Everything random about an
image (a small jitter of hue and brightness, the smooth noise that unsettles sketch and watercolor) comes
from the image's own seed.

``render_batch`` numbers the images of an endless data set: image i of a split is a function of (seed,
split, i) alone, so batches can be cut, shuffled and spread over processes without changing a byte.
"""

import colorsys
from collections.abc import Iterable
from dataclasses import dataclass
from math import cos, radians, sin
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from probe.canvas.shapes import HALF, OUTSIDE, SAMPLES_PER_UNIT, shape_maps
from probe.canvas.styles import PAINTERS, SIDE, SUPERSAMPLING, Array, Field
from probe.canvas.world import FACTORS, SPLITS, Scene, SceneError, Split, caption, sample_scene

_INK: dict[str, tuple[int, int, int]] = {
    "red": (218, 32, 36),
    "orange": (248, 132, 20),
    "yellow": (248, 214, 28),
    "green": (40, 160, 62),
    "cyan": (36, 200, 216),
    "blue": (36, 84, 228),
    "purple": (136, 52, 200),
    "pink": (252, 112, 184),
}
_PAPER: dict[str, tuple[int, int, int]] = {
    "white": (248, 248, 246),
    "gray": (146, 148, 152),
    "sand": (226, 200, 150),
    "dark": (30, 30, 38),
}
# Styles whose texture is coarse beside the shapes draw objects larger by this factor, on top of Scene.size:
# small objects stay recognisable.
_ENLARGED = {"mosaic": 1.06, "glass": 1.1, "pixel": 1.12}
_S = SIDE * SUPERSAMPLING


class Render(NamedTuple):
    """One image.

    Attributes:
        image: (64, 64, 3) uint8 RGB.
        mask: (64, 64) float32 in [0, 1], the object's soft coverage.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Numbered images with all that is known about them; row n belongs to the n-th index asked for.

    Attributes:
        images: (N, 64, 64, 3) uint8 RGB.
        masks: (N, 64, 64) uint8, the object's soft coverage times 255.
        labels: (N, 4) int64, indices into ``FACTORS`` in the order object, style, colour, background.
        captions: N captions.
        scenes: the N scenes, positions included.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    labels: NDArray[np.int64]
    captions: list[str]
    scenes: list[Scene]


def _jittered(rgb: tuple[int, int, int], hue_shift: float, gain: float) -> NDArray[np.float32]:
    """Shift the hue (in turns) and scale the value of an 8-bit colour; (3,) float32 in [0, 1]."""
    h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in rgb))
    return np.array(colorsys.hsv_to_rgb((h + hue_shift) % 1.0, s, min(1.0, v * gain)), dtype=np.float32)


def _smooth_noise(rng: np.random.Generator) -> NDArray[np.float32]:
    """(S, S) float32 noise: independent normals 10 pixels apart, interpolated, of about unit variance."""
    # Bicubic interpolation loses about a third of the standard deviation; 1.4 restores it.
    coarse = Image.fromarray(1.4 * rng.standard_normal((7, 7), dtype=np.float32))
    fine = coarse.resize((_S, _S), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(fine), -2.0, 2.0)


def _place(distances: Image.Image, scene: Scene) -> NDArray[np.float32]:
    """Sample a distance map on the scene's grid: (S, S) float32, image pixels."""
    a = radians(scene.angle)
    # From supersampled image coordinates to map coordinates: p -> R(-angle) (p / 2 - centre) / size.
    size = _drawn_size(scene)
    step = SAMPLES_PER_UNIT / size
    c, s = step * cos(a), step * sin(a)
    x0, y0 = SIDE / 2 + scene.x, SIDE / 2 + scene.y
    origin = HALF * SAMPLES_PER_UNIT
    n = SUPERSAMPLING
    affine = (c / n, s / n, origin - c * x0 - s * y0, -s / n, c / n, origin + s * x0 - c * y0)
    placed = distances.transform(
        (_S, _S), Image.Transform.AFFINE, affine, resample=Image.Resampling.BILINEAR, fillcolor=OUTSIDE
    )
    return np.asarray(placed) * np.float32(size)


def _drawn_size(scene: Scene) -> float:
    return scene.size * _ENLARGED.get(scene.style, 1.0)


def carry_points(points: NDArray[np.float64], source: Scene, target: Scene) -> NDArray[np.float64]:
    """Where points of one scene's object are in another scene's, by the renderer's own placement.

    Args:
        points: (n, 2) pixel coordinates (x, y) in the source image; the centre of the first pixel is (0.5, 0.5).
        source, target: scenes of the same object.

    Returns:
        (n, 2) in the target image; they may lie outside it.

    Raises:
        SceneError: the scenes show different objects.
    """
    if source.object != target.object:
        raise SceneError(f"carry_points: a {source.object} has no points of a {target.object}.")
    turn = radians(target.angle - source.angle)
    grow = _drawn_size(target) / _drawn_size(source)
    rotation = grow * np.array([[cos(turn), -sin(turn)], [sin(turn), cos(turn)]])
    centre = np.full(2, SIDE / 2)
    shifted = np.asarray(points, np.float64) - centre - (source.x, source.y)
    return shifted @ rotation.T + centre + (target.x, target.y)


def _halve(x: Array) -> Array:
    """Average (S, S, ...) over the 2 x 2 samples of each pixel, (64, 64, ...)."""
    return (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) * np.float32(0.25)


def render(scene: Scene, seed: int) -> Render:
    """Draw one scene.

    Args:
        scene: what to draw and where.
        seed: non-negative integer; seeds the colour jitter and the smooth noise, nothing else.

    Returns:
        The image and its mask. The same scene and seed give the same bytes in every process.

    Raises:
        SceneError: if ``seed`` is negative.
    """
    if seed < 0:
        raise SceneError(f"render: seed must be a non-negative integer, got {seed}")
    rng = np.random.default_rng(seed)
    hue, gain, light = rng.uniform(-1.0, 1.0, 3)
    maps = shape_maps(scene.object)
    d = _place(maps.body, scene)
    # The marks are clipped to the silhouette, so that styles may paint them last.
    k = np.clip(0.5 - 1.25 * np.maximum(_place(maps.detail, scene), d), 0.0, 1.0)
    field = Field(
        d=d,
        k=k,
        ink=_jittered(_INK[scene.colour], 0.010 * hue, 1.0 + 0.05 * gain),
        paper=_jittered(_PAPER[scene.background], 0.0, 1.0 + 0.03 * light),
        noise=_smooth_noise(rng),
    )
    rgb, mask = PAINTERS[scene.style](field)
    rgb, mask = _halve(rgb), _halve(mask)
    image = (np.clip(rgb, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return Render(image, np.asarray(mask, dtype=np.float32))


def render_batch(indices: Iterable[int], *, split: Split = "train", seed: int = 0) -> Batch:
    """Draw images of the numbered data set of a split.

    Args:
        indices: non-negative image numbers, in any order and with repeats if wanted.
        split: ``train`` (no held-out pair), ``held_out`` (at least one) or ``all``.
        seed: non-negative; each seed is another data set.

    Returns:
        One row for each index; a row depends on (seed, split, index) only.

    Raises:
        SceneError: if an index or the seed is negative, or the split is unknown.
    """
    numbers = [int(i) for i in indices]
    if split not in SPLITS:
        raise SceneError(f"render_batch: unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    if seed < 0 or min(numbers, default=0) < 0:
        raise SceneError(f"render_batch: seed and indices must be non-negative, got seed {seed}, indices {numbers[:8]}")
    images = np.empty((len(numbers), SIDE, SIDE, 3), dtype=np.uint8)
    masks = np.empty((len(numbers), SIDE, SIDE), dtype=np.uint8)
    labels = np.empty((len(numbers), len(FACTORS)), dtype=np.int64)
    scenes: list[Scene] = []
    for row, index in enumerate(numbers):
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        scene = sample_scene(rng, split=split)
        drawn = render(scene, int(rng.integers(2**62)))
        images[row] = drawn.image
        masks[row] = np.rint(drawn.mask * 255.0)
        labels[row] = [names.index(getattr(scene, factor)) for factor, names in FACTORS.items()]
        scenes.append(scene)
    return Batch(images, masks, labels, [caption(scene) for scene in scenes], scenes)
