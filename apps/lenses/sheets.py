"""What ``denoscope lens`` shows and keeps: sheets as PNG, and the numbers behind them as JSON of the same name."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from apps.errors import InvalidOption
from apps.images import heat_colours, labelled_grid, overlay, read_image, resize, save_png, signed_colours
from apps.measurement import write_json

if TYPE_CHECKING:
    from probe.model.pipeline import Pipeline

SIDE = 192
"""Pixels of an image of a sheet: three for each of canvas's."""
DOTS = np.array(
    [[230, 40, 40], [30, 120, 230], [250, 190, 20], [40, 170, 70], [170, 60, 200], [20, 190, 200]], np.uint8
)

SEGMENTS = np.concatenate([np.full((1, 3), 235, np.uint8), DOTS])
"""The largest segment is pale."""


def given_images(sources: Sequence[str], pipe: Pipeline, caption: str, seed: int) -> tuple[np.ndarray, list[str]]:
    """Images of the model's size, uint8 (n, side, side, 3), and their captions.

    Args:
        sources: ``canvas:N`` alone, or image files; they are cropped to a square and scaled.
        pipe: the model.
        caption: of image files.
        seed: of the renders.

    Raises:
        InvalidOption: ``canvas:N`` with something else, or N that is no number.
        FileNotFoundError, InvalidFile: a file cannot be read.
    """
    from probe.capture.noising import condition, image_size

    if sources[0].startswith("canvas:"):
        count = sources[0].removeprefix("canvas:")
        if len(sources) > 1 or not count.isdecimal() or int(count) < 1:
            raise InvalidOption(f"--images {' '.join(sources)}: expected canvas:N, such as canvas:4, or image files.")
        from probe.canvas import render_batch

        batch = render_batch(range(int(count)), seed=seed)
        return batch.images, batch.captions
    side = image_size(pipe, condition(pipe, [caption], 1.0).sample_shape)
    fitted = [ImageOps.fit(Image.fromarray(read_image(path)), (side, side)) for path in sources]
    return np.stack([np.asarray(image) for image in fitted]), [caption] * len(fitted)


def drawn_grid(options: argparse.Namespace) -> tuple[list[str], list[int]]:
    """Every prompt with every seed."""
    pairs = [(prompt, seed) for prompt in options.prompt for seed in options.seeds]
    return [prompt for prompt, _ in pairs], [seed for _, seed in pairs]


def save(out: Path, sheet: np.ndarray, record: Mapping[str, Any]) -> None:
    """Write OUT as PNG and the record beside it as JSON."""
    save_png(out, sheet)
    write_json(out.with_suffix(".json"), record)
    print(f"{out}, {out.with_suffix('.json')}")


def word_sheet(
    images: np.ndarray, heat: np.ndarray, words: Sequence[Sequence[str]], captions: Sequence[str]
) -> np.ndarray:
    """A row a sample: the image, then a map over it for each word, one scale a word; below each its smallest and
    largest value.

    Args:
        images: uint8 (n, H, W, 3).
        heat: (n, words, h, w), zero or more.
        words: for each sample.
        captions: of the images.
    """
    scale = np.maximum(heat.max((0, 2, 3)), 1e-12)
    rows = [[image, *(overlay(image, h, scale=s, side=SIDE) for h, s in zip(one, scale, strict=True))]
            for image, one in zip(images, heat, strict=True)]  # fmt: skip
    texts = [
        [wrapped(caption), *(f"{word}\n{_span(h)}" for word, h in zip(some, one, strict=True))]
        for caption, some, one in zip(captions, words, heat, strict=True)
    ]
    return stacked([labelled_grid(rows, captions=texts, side=SIDE), colour_bar("0", "largest of the word")])


def part_sheet(
    images: np.ndarray,
    heat: np.ndarray,
    words: Sequence[Sequence[str]],
    captions: Sequence[str],
    parts: Sequence[str],
) -> np.ndarray:
    """A row a sample and word: the image, then the word's map at each part, one scale a word.

    Args:
        images: uint8 (n, H, W, 3).
        heat: (parts, n, words, h, w), zero or more.
        words: for each sample.
        captions: of the images.
        parts: names of the layers, steps or heads.
    """
    scale = np.maximum(heat.max((0, 1, 3, 4)), 1e-12)
    rows: list[list[np.ndarray]] = []
    texts: list[list[str]] = []
    for i, image in enumerate(images):
        for w, word in enumerate(words[i]):
            rows.append([image, *(overlay(image, part[i, w], scale=scale[w]) for part in heat)])
            names = (f"{name}\n{_span(part[i, w])}" for name, part in zip(parts, heat, strict=True))
            texts.append([f"{word}\n{wrapped(captions[i])}", *names])
    return stacked([labelled_grid(rows, captions=texts), colour_bar("0", "largest of the word")])


def segment_sheet(images: np.ndarray, segments: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
    """An image a column; below it its segments, in colours that mean nothing, over the image without its colours."""
    cells: list[np.ndarray] = []
    for image, found in zip(images, segments, strict=True):
        base = resize(image, SIDE)
        blocks = Image.fromarray(found.astype(np.int32)).resize(base.shape[1::-1], Image.Resampling.NEAREST)
        number = np.asarray(blocks) % len(SEGMENTS)
        cells.append((0.45 * base.mean(-1, keepdims=True) + 0.55 * SEGMENTS[number]).astype(np.uint8))
    texts = [[wrapped(caption) for caption in captions], [f"{int(s.max()) + 1} segments" for s in segments]]
    return labelled_grid([list(images), cells], captions=texts, side=SIDE)


def dotted(image: np.ndarray, points: np.ndarray, side: int = 256) -> np.ndarray:
    """An image with numbered-by-colour dots at points (n, 2) in [0, 1]."""
    shown = resize(image, side).copy()
    y, x = np.mgrid[: shown.shape[0], : shown.shape[1]]
    for number, (px, py) in enumerate(points):
        distance = np.hypot(x + 0.5 - px * shown.shape[1], y + 0.5 - py * shown.shape[0])
        shown[distance < side / 36] = 255
        shown[distance < side / 50] = DOTS[number % len(DOTS)]
    return shown


def number_table(
    values: np.ndarray,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    title: str,
    signed: bool = False,
    top: float | None = None,
) -> np.ndarray:
    """Numbers as coloured cells; NaN stays empty.

    Args:
        values: (rows, columns).
        row_labels, column_labels, title: of the table.
        signed: colours around zero, else from zero up.
        top: value of the last colour, for tables that are compared; the largest if None.
    """
    top = largest(values) if top is None else top
    colour = signed_colours if signed else heat_colours
    cells = [
        [None if np.isnan(v) else np.broadcast_to(colour(np.asarray(v / top)), (48, 48, 3)).copy() for v in row]
        for row in values
    ]
    texts = [["" if np.isnan(v) else f"{v:.2f}" for v in row] for row in values]
    table = labelled_grid(
        cells, row_labels=row_labels, column_labels=column_labels, captions=texts, side=48, gap=4, title=title
    )
    return stacked([table, colour_bar(f"{-top if signed else 0:.2g}", f"{top:.2g}", signed=signed)])


def largest(*tables: np.ndarray) -> float:
    """The largest absolute value that is a number; 1 if there is none above zero."""
    found = [float(np.nanmax(np.abs(t))) for t in tables if np.isfinite(t).any()]
    return max(found, default=0.0) or 1.0


def stacked(sheets: Sequence[np.ndarray]) -> np.ndarray:
    """Sheets below each other, on white."""
    width = max(sheet.shape[1] for sheet in sheets)
    return np.concatenate([np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in sheets])


def colour_bar(low: str, high: str, *, signed: bool = False) -> np.ndarray:
    """The colours of a scale between the words for its ends."""
    levels = np.linspace(-1.0 if signed else 0.0, 1.0, 160)
    ramp = (signed_colours if signed else heat_colours)(levels)[None].repeat(10, 0)
    font = ImageFont.load_default(11)
    left = int(font.getlength(low)) + 12
    bar = Image.new("RGB", (left + 166 + int(font.getlength(high)) + 6, 22), (255, 255, 255))
    bar.paste(Image.fromarray(ramp), (left, 6))
    draw = ImageDraw.Draw(bar)
    draw.text((6, 11), low, fill=(90, 90, 98), font=font, anchor="lm")
    draw.text((left + 166, 11), high, fill=(90, 90, 98), font=font, anchor="lm")
    return np.asarray(bar)


def wrapped(text: str) -> str:
    """In lines that fit below an image."""
    return fill(text, 24)


def _span(values: np.ndarray) -> str:
    return f"{values.min():.2g} to {values.max():.2g}"
