"""The ten styles: each turns distances and two colours into an image.

Symbols, on the supersampled grid of side S = 128 (two samples per image pixel):

    d      signed distance to the silhouette in image pixels, negative inside
    k      coverage of the interior detail, in [0, 1]
    ink    the object's colour, RGB in [0, 1]
    paper  the background's colour, RGB in [0, 1]
    noise  smooth noise of about unit variance, with a correlation length of about 12 pixels

Regular patterns (tiles, dots, hatching, blocks, glass cells) have the same phase in every image: a small
autoencoder then learns them as a fixed texture. Strokes are about 2 pixels wide or more and periods 7 or
more, but for the hot core of a neon tube (1.2 pixels) and the blocks of ``pixel`` (4 pixels). None has
independent noise per pixel.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SIDE = 64
SUPERSAMPLING = 2
_S = SIDE * SUPERSAMPLING

Array = NDArray[np.floating[Any]]  # float32 throughout; numpy's stubs lose that on the way


class Field(NamedTuple):
    """What a style sees of a scene (symbols as in the module docstring).

    Attributes:
        d: (S, S) float32, pixels.
        k: (S, S) float32 in [0, 1]; zero outside the silhouette.
        ink: (3,) float32 in [0, 1].
        paper: (3,) float32 in [0, 1].
        noise: (S, S) float32.
    """

    d: Array
    k: Array
    ink: Array
    paper: Array
    noise: Array


class Painting(NamedTuple):
    """A painted field: ``rgb`` (S, S, 3) float32, nominally in [0, 1]; ``mask`` (S, S) float32 in [0, 1]."""

    rgb: Array
    mask: Array


_WHITE = np.ones(3, dtype=np.float32)
_BLACK = np.full(3, 0.04, dtype=np.float32)


def _cover(d: Array) -> Array:
    """Antialiased coverage of {d < 0}: a ramp of 0.8 pixels."""
    return np.clip(0.5 - d * 1.25, 0.0, 1.0)


def _ramp(x: Array, start: float, stop: float) -> Array:
    """Smooth step from 0 at ``start`` to 1 at ``stop``."""
    t = np.clip((x - start) / (stop - start), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _plain(colour: Array) -> Array:
    return np.broadcast_to(colour, (_S, _S, 3))


def _over(below: Array, colour: Array, alpha: Array) -> Array:
    """Paint ``colour`` ((3,) or (S, S, 3)) over an image with coverage ``alpha`` (S, S)."""
    return below + (colour - below) * alpha[..., None]


def _mix(a: Array, b: Array, share: float) -> Array:
    return a + (b - a) * np.float32(share)


def _contrast(colour: Array, amount: float) -> Array:
    """A shade of ``colour`` that stays visible: lighter if it is dark, darker if it is light."""
    return _mix(colour, _WHITE, amount) if float(colour.mean()) < 0.35 else colour * np.float32(1.0 - amount)


@cache
def _grid() -> tuple[Array, Array]:
    """Pixel coordinates (x, y) of the supersampled grid, each (S, S) float32."""
    axis = (np.arange(_S, dtype=np.float32) + 0.5) / SUPERSAMPLING
    x, y = np.meshgrid(axis, axis)
    return x, y


@cache
def _tiles() -> tuple[Array, Array]:
    """Square tiles, period 8 pixels: (coverage of the grout, 2 pixels wide; brightness of each tile)."""
    x, y = _grid()
    to_edge = np.minimum(4.0 - np.abs(x % 8 - 4.0), 4.0 - np.abs(y % 8 - 4.0))
    checker = (x // 8 + y // 8) % 2
    return _cover(to_edge - 1.0), (0.90 + 0.16 * checker).astype(np.float32)


@cache
def _lattice() -> Array:
    """Distance in pixels to the nearest point of a hexagonal lattice: spacing 8 along rows, rows 7 apart."""
    x, y = _grid()
    row = np.floor(y / 7.0)
    dx = (x + 4.0 * (row % 2)) % 8 - 4.0
    return np.hypot(dx, y % 7.0 - 3.5)


@cache
def _stripes() -> Array:
    """Coverage of diagonal lines: period 7 pixels, width 3."""
    x, y = _grid()
    phase = ((x + y) * np.float32(0.5**0.5)) % 7
    return _cover(np.abs(phase - 3.5) - 1.5)


@cache
def _panes() -> tuple[Array, Array]:
    """Voronoi cells about 12 pixels wide: (distance to the nearest border, brightness of each cell)."""
    x, y = _grid()
    # A constant seed: the window has the same leads in every image.
    rng = np.random.default_rng(20)
    rows, cols = np.meshgrid(np.arange(-1, 7), np.arange(-1, 7), indexing="ij")
    px = (cols * 12.4 + 6.2 * (rows % 2) + rng.uniform(-2.6, 2.6, rows.shape)).ravel()
    py = (rows * 11.6 + rng.uniform(-2.6, 2.6, rows.shape)).ravel()
    distance = np.hypot(x[..., None] - px, y[..., None] - py)
    order = np.argsort(distance, axis=-1)[..., :2]
    first, second = np.moveaxis(np.take_along_axis(distance, order, axis=-1), -1, 0)
    one, two = order[..., 0], order[..., 1]
    apart = np.hypot(px[one] - px[two], py[one] - py[two])
    border = (second**2 - first**2) / (2.0 * apart)
    shade = rng.uniform(0.72, 1.12, px.shape)[one]
    return border.astype(np.float32), shade.astype(np.float32)


def flat(f: Field) -> Painting:
    """Even colour, dark marks and a dark outline."""
    body = _cover(f.d)
    rgb = _over(_plain(f.paper), f.ink, body)
    rgb = _over(rgb, f.ink * np.float32(0.35), f.k)
    return Painting(_over(rgb, f.ink * np.float32(0.35), _cover(np.abs(f.d + 0.8) - 1.0)), body)


def sketch(f: Field) -> Painting:
    """A thick, slightly unsteady coloured outline around a light wash."""
    d = f.d + 0.45 * f.noise
    body = _cover(d)
    rgb = _over(_plain(f.paper), _mix(f.paper, f.ink, 0.22), body)
    rgb = _over(rgb, f.ink, f.k * 0.9)
    return Painting(_over(rgb, f.ink, _cover(np.abs(d + 1.3) - (1.6 + 0.25 * f.noise))), body)


def mosaic(f: Field) -> Painting:
    """Square tiles, alternately light and dark; grout in a shade of what it separates; a dark outline."""
    grout, shade = _tiles()
    body = _cover(f.d)
    rgb = _over(_plain(f.paper) * shade[..., None], _contrast(f.paper, 0.42), grout)
    tiles = _over(_plain(f.ink), f.ink * np.float32(0.35), f.k) * shade[..., None]
    rgb = _over(rgb, _over(tiles, f.ink * np.float32(0.55), grout), body)
    return Painting(_over(rgb, f.ink * np.float32(0.3), _cover(np.abs(f.d) - 1.0)), body)


def dots(f: Field) -> Painting:
    """Printed dots: strong ones on a pale body with a thin outline, faint ones on the background."""
    body = _cover(f.d)
    big, small = _cover(_lattice() - 2.7), _cover(_lattice() - 1.8)
    rgb = _over(_plain(f.paper), _contrast(f.paper, 0.28), small)
    rgb = _over(rgb, _mix(f.ink, _WHITE, 0.62), body)
    rgb = _over(rgb, f.ink, big * body)
    rgb = _over(rgb, f.ink * np.float32(0.5), f.k)
    return Painting(_over(rgb, f.ink, _cover(np.abs(f.d + 0.8) - 1.0)), body)


def watercolor(f: Field) -> Painting:
    """A mottled translucent wash with soft edges, a darker rim where pigment pools, and mottled paper."""
    d = f.d + 0.5 * f.noise
    body = 1.0 - _ramp(d, -1.2, 1.8)
    pool = np.exp(-np.square((d + 2.0) / 1.6))
    wash = body * np.clip(0.62 + 0.17 * f.noise + 0.36 * pool, 0.4, 1.0)
    paper = f.paper * (0.97 + 0.025 * f.noise[::-1, ::-1, None])
    # Thin washes vanish on dark paper: there the pigment is opaque white mixed in, as in gouache.
    pigment = _mix(f.ink, _WHITE, 0.22) if float(f.paper.mean()) < 0.35 else f.ink
    rgb = _over(paper, pigment, wash)
    return Painting(_over(rgb, f.ink * np.float32(0.45), f.k * 0.7 * body), body)


def hatch(f: Field) -> Painting:
    """Diagonal lines of colour inside an outline; the background shows between them."""
    body = _cover(f.d)
    lines = np.maximum(_stripes() * body, _cover(np.abs(f.d + 0.9) - 1.1))
    rgb = _over(_plain(f.paper), f.ink, lines)
    return Painting(_over(rgb, f.ink * np.float32(0.6), f.k), body)


def neon(f: Field) -> Painting:
    """A glowing tube with a hot core on a dark plate that follows the silhouette; the wall stays as it is."""
    body = _cover(f.d)
    plate = 1.0 - _ramp(f.d, 2.5, 7.0)
    to_tube = np.abs(f.d + 1.2)
    glow = 0.55 * np.exp(-np.square(to_tube / 4.5))
    rgb = _over(_plain(f.paper), _BLACK, 0.93 * plate)
    bright = _mix(f.ink, _WHITE, 0.12)
    rgb = _over(rgb, bright, glow * plate)
    rgb = _over(rgb, bright, np.maximum(_cover(to_tube - 1.8), 0.85 * f.k))
    return Painting(_over(rgb, _mix(f.ink, _WHITE, 0.75), _cover(to_tube - 0.6)), body)


def clay(f: Field) -> Painting:
    """A rounded solid lit from the upper left, with a soft shadow to the lower right."""
    body = _cover(f.d)
    depth = np.clip(-f.d / 8.0, 0.0, 1.0)
    height = 7.0 * np.sqrt(depth * (2.0 - depth)) - 1.2 * f.k
    gy, gx = np.gradient(height, np.float32(1.0 / SUPERSAMPLING))
    # Lambert shading with normal (-gx, -gy, 1) and light from (-0.5, -0.6, 0.62).
    light = (0.5 * gx + 0.6 * gy + 0.62) / np.sqrt(1.0 + gx * gx + gy * gy)
    shade = 0.50 + 0.72 * np.clip(light, -0.1, 1.0)
    gloss = 0.65 * _ramp(light, 0.84, 0.99)
    shadow = np.zeros_like(f.d)
    shadow[8:, 8:] = 0.55 * (1.0 - _ramp(f.d[:-8, :-8], -3.0, 4.0))
    solid = f.ink * (shade * (1.0 - 0.5 * f.k))[..., None]
    rgb = _over(_plain(f.paper), _BLACK, shadow)
    return Painting(_over(rgb, _over(solid, _WHITE, gloss), body), body)


def glass(f: Field) -> Painting:
    """Stained glass: irregular panes with pale centres and dark leads; a black lead around the object."""
    border, shade = _panes()
    body, lead = _cover(f.d), _cover(border - 1.0)
    # Black glass transmits nothing: lift it, so that its panes and leads stay visible.
    paper = np.maximum(f.paper, np.float32(0.22))
    panes = _over(_over(_plain(paper), f.ink, body), f.ink * np.float32(0.4), f.k) * shade[..., None]
    panes = _over(panes, _WHITE, 0.2 * _ramp(border, 1.5, 5.0))
    leads = _over(_plain(paper * np.float32(0.4)), f.ink * np.float32(0.32), body)
    return Painting(_over(_over(panes, leads, lead), _BLACK, _cover(np.abs(f.d) - 1.3)), body)


def _blocks(x: Array) -> Array:
    """Mean of ``x`` over blocks of 4 x 4 pixels, (16, 16)."""
    n = _S // 16
    return x.reshape(16, n, 16, n).mean(axis=(1, 3))


def pixel(f: Field) -> Painting:
    """Square blocks of 4 pixels: a body, lighter on top and darker below, on a faint checkerboard."""
    body = (_blocks(_cover(f.d)) > 0.45).astype(np.float32)
    mark = (_blocks(f.k) > 0.4).astype(np.float32) * body
    padded = np.pad(body, 1)
    top, bottom = body * (1.0 - padded[:-2, 1:-1]), body * (1.0 - padded[2:, 1:-1])
    checker = np.indices((16, 16)).sum(axis=0) % 2
    rgb = np.broadcast_to(f.paper, (16, 16, 3))
    rgb = _over(rgb, _contrast(f.paper, 0.14), checker.astype(np.float32))
    rgb = _over(rgb, f.ink, body)
    rgb = _over(rgb, f.ink * np.float32(0.6), bottom)
    rgb = _over(rgb, _mix(f.ink, _WHITE, 0.45), top)
    rgb = _over(rgb, f.ink * np.float32(0.35), mark)
    n = _S // 16
    return Painting(rgb.repeat(n, axis=0).repeat(n, axis=1), body.repeat(n, axis=0).repeat(n, axis=1))


PAINTERS: dict[str, Callable[[Field], Painting]] = {
    "flat": flat,
    "sketch": sketch,
    "mosaic": mosaic,
    "dots": dots,
    "watercolor": watercolor,
    "hatch": hatch,
    "neon": neon,
    "clay": clay,
    "glass": glass,
    "pixel": pixel,
}
