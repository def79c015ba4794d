"""Pictures from arrays: colour maps, heat-map overlays, labelled grids, data URIs. No global state.

Images are uint8 (height, width, 3), maps are float (height, width). A value's colour depends on
the value and the scale that is passed in, never on the other values of the same picture, so pictures with one
scale can be compared.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from apps.errors import InvalidFile, InvalidOption

_MAX_PIXELS = 64_000_000  # larger files are refused before they are decoded
_LEVELS = 256


def heat_colours(values: np.ndarray) -> np.ndarray:
    """Colours for values in [0, 1]: (...,) to (..., 3) uint8, dark violet to pale yellow.

    Lightness rises linearly in OKLab (Ottosson 2020), so equal steps of the value are equal steps to the eye.
    Values outside are clipped.
    """
    return _look_up(_heat_table(), values)


def signed_colours(values: np.ndarray) -> np.ndarray:
    """Colours for values in [-1, 1]: (...,) to (..., 3) uint8, blue over near-white (zero) to red."""
    return _look_up(_signed_table(), (np.asarray(values, np.float64) + 1) / 2)


def overlay(
    image: np.ndarray,
    heat: np.ndarray,
    *,
    scale: float,
    side: int = 128,
    opacity: float = 0.85,
    smooth: bool = True,
) -> np.ndarray:
    """Lay a heat map over an image.

    Args:
        image: (H, W, 3) uint8.
        heat: (h, w) values >= 0 over the image's whole area.
        scale: the value that gets the last colour, > 0; one scale for all pictures that are compared.
        side: longer side of the result, in pixels.
        opacity: opacity at the scale and above; zero is transparent, between it grows like a square root.
        smooth: interpolate between cells instead of showing them as blocks.

    Returns:
        (H', W', 3) uint8.
    """
    if not scale > 0:
        raise InvalidOption(f"overlay: scale must be positive, got {scale!r}.")
    base = resize(image, side)
    shape = (base.shape[1], base.shape[0])
    method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    cells = Image.fromarray(np.nan_to_num(np.asarray(heat, np.float32)))
    level = np.clip(np.asarray(cells.resize(shape, method)) / scale, 0.0, 1.0)
    alpha = (opacity * np.sqrt(level))[..., None]
    # The picture loses its own colour where the map is strong, so that this colour is not read as heat.
    grey = base.mean(-1, keepdims=True)
    under = base * (1 - alpha) + grey * alpha
    return _to_uint8(under * (1 - alpha) + heat_colours(level) * alpha)


def resize(image: np.ndarray, side: int) -> np.ndarray:
    """Scale so that the longer side has ``side`` pixels; blocks stay sharp at whole multiples."""
    height, width = image.shape[:2]
    longer = max(height, width)
    shape = (max(1, round(width * side / longer)), max(1, round(height * side / longer)))
    if shape == (width, height):
        return image
    method = Image.Resampling.NEAREST if side % longer == 0 and longer <= 64 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize(shape, method))


def change_map(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Mean absolute difference over the colour channels, (H, W) float32 in [0, 1]."""
    return np.abs(before.astype(np.float32) - after.astype(np.float32)).mean(-1) / 255


def labelled_grid(
    rows: Sequence[Sequence[np.ndarray | None]],
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    side: int = 128,
    gap: int = 6,
    title: str = "",
) -> np.ndarray:
    """A sheet of images with labels at its edges.

    Args:
        rows: images row by row; None leaves a cell empty. Rows may differ in length.
        row_labels: one a row, or none.
        column_labels: one a column, or none.
        captions: texts under the cells, shaped like ``rows``, or none; ``\\n`` begins a new line.
        side: longer side of a cell's image.
        gap: pixels between cells.
        title: a line above everything.

    Returns:
        (H, W, 3) uint8.
    """
    if not rows or not any(len(row) for row in rows):
        raise InvalidOption("labelled_grid: there are no images.")
    font, small = _font(14), _font(11)
    n_columns = max(len(row) for row in rows)
    lines = max((text.count("\n") + 1 for row in captions for text in row if text), default=0)
    below = lines * 14 + (2 if lines else 0)
    left = max((int(font.getlength(text)) for text in row_labels), default=0) + (2 * gap if row_labels else gap)
    top = gap + (24 if title else 0) + (20 if column_labels else 0)
    width = max(left + n_columns * (side + gap), int(font.getlength(title)) + 2 * gap)
    sheet = Image.new("RGB", (width, top + len(rows) * (side + below + gap)), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((gap, gap), title, fill=(20, 20, 24), font=font)
    for column, text in enumerate(column_labels):
        x = left + column * (side + gap) + side / 2
        draw.text((x, top - 4), text, fill=(20, 20, 24), font=font, anchor="mb")
    for i, row in enumerate(rows):
        y = top + i * (side + below + gap)
        if i < len(row_labels):
            draw.text((left - gap, y + side / 2), row_labels[i], fill=(20, 20, 24), font=font, anchor="rm")
        for column, image in enumerate(row):
            x = left + column * (side + gap)
            if image is not None:
                sheet.paste(Image.fromarray(resize(image, side)), (x, y))
            if i < len(captions) and column < len(captions[i]):
                for n, line in enumerate(captions[i][column].split("\n")):
                    draw.text(
                        (x + side / 2, y + side + 2 + 14 * n),
                        line,
                        fill=(90, 90, 98),
                        font=small,
                        anchor="mt",
                    )
    return np.asarray(sheet)


def data_uri(image: np.ndarray, *, kind: str = "png", quality: int = 88) -> str:
    """The image as a ``data:`` URI; ``kind`` is png or jpeg."""
    if kind not in ("png", "jpeg"):
        raise InvalidOption(f"data_uri: kind {kind!r}; expected png or jpeg.")
    buffer = BytesIO()
    if kind == "png":
        Image.fromarray(image).save(buffer, "PNG", optimize=True)
    else:
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def read_image(path: str | Path) -> np.ndarray:
    """An image file as (H, W, 3) uint8.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidFile: it is no image, or has more than 64 million pixels.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise InvalidFile(f"image {str(path)!r}: {image.width} x {image.height} pixels are too many.")
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise InvalidFile(f"image {str(path)!r} cannot be read: {error}") from error


def save_png(path: str | Path, image: np.ndarray) -> None:
    """Write a PNG so that the final name never holds a part of one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    Image.fromarray(image).save(temporary, format="PNG", optimize=True)
    temporary.replace(path)


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _look_up(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    level = np.clip(np.nan_to_num(np.asarray(values, np.float64)), 0.0, 1.0)
    return table[np.rint(level * (_LEVELS - 1)).astype(np.intp)]


@lru_cache(maxsize=1)
def _heat_table() -> np.ndarray:
    u = np.linspace(0, 1, _LEVELS)
    hue = np.deg2rad(300 + 160 * u)  # violet, red, orange, yellow
    chroma = 0.05 + 0.16 * np.sin(np.pi * np.clip(0.1 + 0.8 * u, 0, 1))
    return _oklab_to_rgb(0.16 + 0.78 * u, chroma * np.cos(hue), chroma * np.sin(hue))


@lru_cache(maxsize=1)
def _signed_table() -> np.ndarray:
    v = np.linspace(-1, 1, _LEVELS)
    hue = np.deg2rad(np.where(v < 0, 255.0, 28.0))
    chroma = 0.19 * np.abs(v)
    return _oklab_to_rgb(0.97 - 0.47 * np.abs(v), chroma * np.cos(hue), chroma * np.sin(hue))


def _oklab_to_rgb(lightness: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """OKLab to 8-bit sRGB (Ottosson 2020, "A perceptual color space for image processing"), clipped."""
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.stack(
        [
            4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
        ],
        axis=-1,
    ).clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return _to_uint8(srgb * 255)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)
