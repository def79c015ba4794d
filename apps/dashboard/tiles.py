"""Heat maps over pictures as small JPEG files, all on one colour scale.

A tile shows a sample's image under the map of one feature at one step. A value's colour depends only on the
value and the scale of the feature, so tiles of different samples and steps can be compared; zero is
transparent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image
from plotly.colors import sample_colorscale, unlabel_rgb

from apps.images import heat_colours, resize

COLOUR_MAPS = ("heat", "viridis", "cividis", "ice")
"""All rise evenly in lightness; cividis is made for readers who confuse red and green."""

VIEWS = {"overlay": "Overlay", "map": "Map only", "image": "Image only"}
"""Value in a link -> name shown."""

SIDE = 256  # pixels; what a card of the gallery shows on a usual screen


@dataclass(frozen=True)
class Look:
    """How maps are drawn.

    Attributes:
        view: a key of ``VIEWS``.
        colours: one of ``COLOUR_MAPS``.
        opacity: of the map where it reaches the scale, in [0, 1].
        smooth: interpolate between cells.
    """

    view: str = "overlay"
    colours: str = "heat"
    opacity: float = 0.8
    smooth: bool = True


def tile(image: np.ndarray | None, heat: np.ndarray, *, scale: float, look: Look, side: int = SIDE) -> np.ndarray:
    """One picture.

    Args:
        image: (H, W, 3) uint8, or None where the bundle has no picture.
        heat: (h, w) float >= 0 over the whole area of the image.
        scale: value of the last colour; 0 for a feature that never fires.
        look: how to draw.
        side: longer side of the result in pixels.

    Returns:
        (H', W', 3) uint8.
    """
    if image is not None and look.view == "image":
        return resize(image, side)
    height, width = heat.shape if image is None else image.shape[:2]
    shape = (round(width * side / max(height, width)), round(height * side / max(height, width)))
    method = Image.Resampling.BICUBIC if look.smooth else Image.Resampling.NEAREST
    cells = Image.fromarray(np.nan_to_num(np.asarray(heat, np.float32)))
    level = np.clip(np.asarray(cells.resize(shape, method)) / (scale or 1.0), 0.0, 1.0)
    colours = colour_table(look.colours)[np.rint(level * 255).astype(np.intp)]
    if image is None or look.view == "map":
        return colours
    base = resize(image, side).astype(np.float32)
    # Square root: a map's weak parts stay visible over the image. The image turns grey under the map, so that its own
    # colour is not read as heat.
    alpha = (look.opacity * np.sqrt(level))[..., None]
    under = base + (base.mean(-1, keepdims=True) - base) * alpha
    return np.rint(under + (colours - under) * alpha).astype(np.uint8)


def tiles(
    images: Sequence[np.ndarray | None], maps: np.ndarray, *, scale: float, look: Look, side: int = SIDE
) -> list[bytes]:
    """JPEG files of (N, h, w) maps over N images, on one scale."""
    return [
        jpeg(tile(image, heat, scale=scale, look=look, side=side)) for image, heat in zip(images, maps, strict=True)
    ]


def strip(image: np.ndarray | None, maps: np.ndarray, *, scale: float, look: Look, side: int = 112) -> list[bytes]:
    """JPEG files of one sample's (n_steps, h, w) maps, in sampling order."""
    return tiles([image] * len(maps), maps, scale=scale, look=look, side=side)


def colour_bar(colours: str, *, width: int = 512, height: int = 14) -> bytes:
    """The colours from 0 to the scale, left to right, as a JPEG file."""
    ramp = np.linspace(0, 255, width).round().astype(np.intp)
    return jpeg(np.repeat(colour_table(colours)[ramp][None], height, axis=0))


def jpeg(image: np.ndarray, *, quality: int = 88) -> bytes:
    """A JPEG file of (H, W, 3) uint8; an order of magnitude smaller and faster than PNG at this size."""
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def png(image: np.ndarray) -> bytes:
    """A PNG file of (H, W, 3) uint8: for sheets with text, which JPEG smears."""
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def colour_table(name: str) -> np.ndarray:
    """(256, 3) uint8 colours of values 0 to 1; a name that is not in ``COLOUR_MAPS`` raises KeyError."""
    return _TABLES[name]()


def _heat() -> np.ndarray:
    return heat_colours(np.linspace(0, 1, 256))


def _plotly(name: str) -> Callable[[], np.ndarray]:
    @lru_cache(maxsize=1)
    def table() -> np.ndarray:
        colours = sample_colorscale(name, np.linspace(0, 1, 256).tolist())
        return np.rint([unlabel_rgb(colour) for colour in colours]).astype(np.uint8)

    return table


_TABLES: dict[str, Callable[[], np.ndarray]] = {
    "heat": _heat,
    "viridis": _plotly("Viridis"),
    "cividis": _plotly("Cividis"),
    "ice": _plotly("ice"),
}
