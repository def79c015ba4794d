"""Silhouettes of the twelve objects as signed-distance maps.

Each object is drawn once, at ``_DRAW`` times the final resolution, with two pens: *body* (the silhouette)
and *detail* (coarse interior marks such as a door or an eye). Both drawings become signed-distance maps

    d(u, v) = distance in object units to the outline, negative inside,

sampled ``SAMPLES_PER_UNIT`` times per unit on the square [-HALF, HALF]^2. One object unit is one image
pixel at size 1. A renderer reads the map at rotated and scaled coordinates, so a shape is never drawn
again.
"""

from collections.abc import Callable, Sequence
from functools import cache
from math import cos, pi, sin
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

HALF = 40.0  # half the side of the map, in object units; distances beyond are taken as OUTSIDE
SAMPLES_PER_UNIT = 4
OUTSIDE = 20.0
_DRAW = 12  # pen resolution per unit: three times the map's, so that the threshold sees antialiased edges

_Points = Sequence[tuple[float, float]]


class ShapeMaps(NamedTuple):
    """Signed-distance maps of one object, as Pillow images of mode ``F`` (float32, object units).

    Attributes:
        body: distance to the silhouette, negative inside.
        detail: distance to the interior marks, negative inside them; all ``OUTSIDE`` if there are none.
    """

    body: Image.Image
    detail: Image.Image


class _Pen:
    """Draws filled primitives given in object units, origin at the centre, y downwards."""

    def __init__(self) -> None:
        side = int(2 * HALF * _DRAW)
        self.image = Image.new("L", (side, side), 0)
        self._draw = ImageDraw.Draw(self.image)

    def _to_canvas(self, points: _Points) -> list[tuple[float, float]]:
        return [((x + HALF) * _DRAW, (y + HALF) * _DRAW) for x, y in points]

    def polygon(self, points: _Points, ink: int = 255) -> None:
        self._draw.polygon(self._to_canvas(points), fill=ink)

    def box(self, x0: float, y0: float, x1: float, y1: float, ink: int = 255) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], ink)

    def ellipse(self, x: float, y: float, rx: float, ry: float | None = None, ink: int = 255) -> None:
        ry = rx if ry is None else ry
        self._draw.ellipse(self._to_canvas([(x - rx, y - ry), (x + rx, y + ry)]), fill=ink)

    def stroke(self, points: _Points, width: float) -> None:
        """A thick polyline with round joins and caps."""
        self._draw.line(self._to_canvas(points), fill=255, width=round(width * _DRAW))
        for x, y in points:
            self.ellipse(x, y, width / 2)


def _arc(x: float, y: float, r: float, start: float, stop: float, n: int = 24) -> list[tuple[float, float]]:
    """Points of a circular arc; angles in half turns, clockwise on screen from the right."""
    turns = [start + (stop - start) * i / n for i in range(n + 1)]
    return [(x + r * cos(pi * a), y + r * sin(pi * a)) for a in turns]


def _star(body: _Pen, detail: _Pen) -> None:
    radii = (24.0, 10.8)
    body.polygon([(radii[i % 2] * sin(pi * i / 5), 2 - radii[i % 2] * cos(pi * i / 5)) for i in range(10)])


def _heart(body: _Pen, detail: _Pen) -> None:
    turns = [2 * pi * i / 96 for i in range(96)]
    body.polygon(
        [(21 * sin(a) ** 3, -2 - 1.3 * (13 * cos(a) - 5 * cos(2 * a) - 2 * cos(3 * a) - cos(4 * a))) for a in turns]
    )


def _house(body: _Pen, detail: _Pen) -> None:
    body.box(-16, -3, 16, 20)
    body.polygon([(-23, -1), (0, -22), (23, -1)])
    body.box(9, -20, 15.5, -6)
    detail.box(-10.5, 5, -1.5, 20)
    detail.box(4, 4, 11.5, 11.5)


def _tree(body: _Pen, detail: _Pen) -> None:
    body.polygon([(-12, -7), (0, -23), (12, -7)])
    body.polygon([(-16, 4), (0, -15), (16, 4)])
    body.polygon([(-20, 15), (0, -6), (20, 15)])
    body.box(-4.5, 14, 4.5, 23)
    detail.box(-4.5, 15, 4.5, 23)


def _fish(body: _Pen, detail: _Pen) -> None:
    body.ellipse(-5, 0, 18, 13)
    body.polygon([(7, 0), (24, -14), (19.5, 0), (24, 14)])
    body.polygon([(-9, -10), (2, -18), (6, -8)])
    detail.ellipse(-14, -3, 3)
    detail.stroke([(x, y) for x, y in _arc(-16, 1, 12.5, -0.22, 0.22)], 2.6)


def _moon(body: _Pen, detail: _Pen) -> None:
    body.ellipse(-1, 0, 22)
    body.ellipse(10, -5, 17.5, ink=0)


def _cup(body: _Pen, detail: _Pen) -> None:
    body.ellipse(13, 1, 11)
    body.ellipse(13, 1, 5.5, ink=0)
    body.polygon([(-20, -15), (12, -15), (9.5, 16), (-17.5, 16)])
    body.ellipse(-4, 16, 13.5, 4.5)
    body.ellipse(-4, -15, 16, 5)
    detail.ellipse(-4, -14.5, 12.6, 3)


def _key(body: _Pen, detail: _Pen) -> None:
    body.ellipse(-12, -2, 12.5)
    body.box(-2, -5.5, 24, 1.5)
    body.box(17.5, 0, 24, 12)
    body.box(7.5, 0, 13.5, 9)
    body.ellipse(-12, -2, 5.5, ink=0)


def _mushroom(body: _Pen, detail: _Pen) -> None:
    body.ellipse(0, 2, 22, 23)
    body.box(-40, 2, 40, 40, ink=0)
    body.ellipse(0, 2, 22, 4)
    body.polygon([(-6.5, 2), (6.5, 2), (9, 21), (-9, 21)])
    detail.ellipse(-11, -5, 4.2)
    detail.ellipse(1, -13, 4.4)
    detail.ellipse(11.5, -4, 3.8)


def _umbrella(body: _Pen, detail: _Pen) -> None:
    body.ellipse(0, 2, 23, 21)
    body.box(-40, 2, 40, 40, ink=0)
    detail.ellipse(0, 2, 8, 21)
    for x in (-15.4, 0.0, 15.4):
        body.ellipse(x, 2.2, 7.7, 4.5, ink=0)
        detail.ellipse(x, 2.2, 7.7, 4.5, ink=0)
    detail.box(-40, 2, 40, 40, ink=0)
    body.stroke([(0, -22), (0, -15)], 3.6)
    body.stroke([(0, -4), (0, 17), *_arc(-5.5, 17, 5.5, 0, 1)], 4.2)


def _cat(body: _Pen, detail: _Pen) -> None:
    body.ellipse(0, 4, 20.5, 17)
    body.polygon([(-20, 4), (-20.5, -21), (-4, -9)])
    body.polygon([(20, 4), (20.5, -21), (4, -9)])
    detail.ellipse(-8, 0, 3, 4)
    detail.ellipse(8, 0, 3, 4)
    detail.polygon([(-4, 8), (4, 8), (0, 13)])


def _boat(body: _Pen, detail: _Pen) -> None:
    body.polygon([(-24, 8), (24, 8), (15, 20), (-15, 20)])
    body.box(-1.8, -22, 1.8, 10)
    body.polygon([(1.5, -22), (20, 3), (1.5, 3)])
    body.polygon([(-5, -15), (-5, 3), (-19, 3)])
    detail.polygon([(-24, 8), (24, 8), (21, 12), (-21, 12)])


_DRAWINGS: dict[str, Callable[[_Pen, _Pen], None]] = {
    "star": _star,
    "heart": _heart,
    "house": _house,
    "tree": _tree,
    "fish": _fish,
    "moon": _moon,
    "cup": _cup,
    "key": _key,
    "mushroom": _mushroom,
    "umbrella": _umbrella,
    "cat": _cat,
    "boat": _boat,
}


def _signed_distance(pen: _Pen) -> Image.Image:
    """Distance map of a drawing: float32, object units, negative inside.

    A sample covered by a share c has the outline c - 1/2 samples beyond its centre. Counting that in keeps
    slanted edges straight; thresholding would leave a staircase, which shaded styles show as ridges.
    """
    c = np.asarray(pen.image.reduce(_DRAW // SAMPLES_PER_UNIT), dtype=np.float32) / np.float32(255)
    if not c.any():
        return Image.fromarray(np.full(c.shape, OUTSIDE, dtype=np.float32))
    outer, inner = _beyond(c), _beyond(1 - c)
    d = np.where(c == 0, outer, np.where(c == 1, -inner, 0.5 - c))
    d = ndimage.gaussian_filter(d, 1.0) / SAMPLES_PER_UNIT
    return Image.fromarray(np.minimum(d, OUTSIDE).astype(np.float32))


def _beyond(cover: np.ndarray) -> np.ndarray:
    """Distance in samples from each empty sample's centre to the outline of what ``cover`` fills."""
    distances = np.empty(cover.shape)
    nearest = np.empty((2, *cover.shape), dtype=np.int32)
    ndimage.distance_transform_edt(cover == 0, return_indices=True, distances=distances, indices=nearest)
    return distances - (cover[nearest[0], nearest[1]] - 0.5)


@cache
def shape_maps(name: str) -> ShapeMaps:
    """The distance maps of one object, drawn on first use (about 30 ms) and kept.

    Args:
        name: a member of ``world.OBJECTS``.

    Returns:
        Two mode-``F`` images with sides of ``2 * HALF * SAMPLES_PER_UNIT`` samples.
    """
    body, detail = _Pen(), _Pen()
    _DRAWINGS[name](body, detail)
    return ShapeMaps(_signed_distance(body), _signed_distance(detail))
