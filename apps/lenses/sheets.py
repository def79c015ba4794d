"""What ``denoscope lens`` shows and keeps: sheets as PNG, and the numbers behind them as JSON of the same name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from apps.errors import InvalidOption
from apps.images import heat_colours, labelled_grid, overlay, read_image, resize, save_png, signed_colours
from apps.measurement import write_json

if TYPE_CHECKING:
    from probe.model.pipeline import Pipeline

DOTS = np.array(
    [[230, 40, 40], [30, 120, 230], [250, 190, 20], [40, 170, 70], [170, 60, 200], [20, 190, 200]], np.uint8
)


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


def save(out: Path, sheet: np.ndarray, record: Mapping[str, Any]) -> None:
    """Write OUT as PNG and the record beside it as JSON."""
    save_png(out, sheet)
    write_json(out.with_suffix(".json"), record)
    print(f"{out}, {out.with_suffix('.json')}")


def word_sheet(
    images: np.ndarray, heat: np.ndarray, words: Sequence[Sequence[str]], labels: Sequence[str]
) -> np.ndarray:
    """A row a sample: the image, then a map over it for each word, one scale a word.

    Args:
        images: uint8 (n, H, W, 3).
        heat: (n, words, h, w), zero or more.
        words: for each sample.
        labels: of the rows.
    """
    scale = np.maximum(heat.max((0, 2, 3)), 1e-12)
    rows = [[image, *(overlay(image, h, scale=s) for h, s in zip(one, scale, strict=True))]
            for image, one in zip(images, heat, strict=True)]  # fmt: skip
    return labelled_grid(rows, row_labels=labels, captions=[["", *some] for some in words])


def segment_sheet(images: np.ndarray, segments: Sequence[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """A row an image: the image, and its segments in colours that mean nothing."""
    rows: list[list[np.ndarray | None]] = []
    for image, found in zip(images, segments, strict=True):
        hue = (found * 0.381966) % 1.0
        shown = heat_colours(0.15 + 0.8 * hue)
        rows.append([image, resize(shown.repeat(max(1, 64 // len(shown)), 0).repeat(max(1, 64 // len(shown)), 1), 128)])
    return labelled_grid(rows, row_labels=labels, column_labels=["image", "segments"])


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
    values: np.ndarray, row_labels: Sequence[str], column_labels: Sequence[str], *, title: str, signed: bool = False
) -> np.ndarray:
    """Numbers as coloured cells on one scale: from 0 to the largest, or around 0 if signed; NaN stays empty."""
    top = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1.0
    colour = signed_colours if signed else heat_colours
    cells = [
        [
            None if np.isnan(v) else np.broadcast_to(colour(np.asarray(v / (top or 1.0))), (48, 48, 3)).copy()
            for v in row
        ]
        for row in values
    ]
    texts = [["" if np.isnan(v) else f"{v:.2f}" for v in row] for row in values]
    return labelled_grid(
        cells, row_labels=row_labels, column_labels=column_labels, captions=texts, side=48, gap=4, title=title
    )


def stacked(sheets: Sequence[np.ndarray]) -> np.ndarray:
    """Sheets below each other, on white."""
    width = max(sheet.shape[1] for sheet in sheets)
    return np.concatenate([np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in sheets])
