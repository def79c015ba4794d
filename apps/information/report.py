"""``denoscope info``: results as a measurement file, a sheet of maps and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apps.images import labelled_grid, overlay, save_png
from apps.information.request import Answer
from apps.information.subject import Subject
from apps.measurement import Measurement
from apps.progress import table
from apps.report import Picture, data_table, heading, page, picture_grid, section, text, write_page

TITLES = {
    "mi": "Mutual information",
    "cmi": "Information of a word given the rest of its caption",
    "pid": "What two words tell alone, in common, and only together",
    "nll": "Negative log-likelihood",
    "classify": "Labels by denoising error",
}


def save(
    out: Path, what: str, found: Answer, subject: Subject, config: Mapping[str, Any], *, shown: int, device: str
) -> list[str]:
    """Write the files; returns the lines for people."""
    Measurement(f"info.{what}", found.rows, {}, device=device, config=config).write(out / f"{what}.json")
    header, body = _table(found.rows)
    lines = [table(header, body), f"\n{out / f'{what}.json'}"]
    if found.maps:
        rows = map_rows(found, subject, shown)
        save_png(out / f"{what}.png", sheet(rows))
        write_page(out / f"{what}.html", _page(what, header, body, rows))
        lines += [str(out / f"{what}.png"), str(out / f"{what}.html")]
    return lines


def map_rows(found: Answer, subject: Subject, shown: int) -> list[tuple[str, list[tuple[str, np.ndarray]]]]:
    """Rows of pictures: the image, its mask if there is one, and every method's map of one word.

    The scale of a map is its own 99th percentile: units differ between methods, and strengths between images.
    """
    rows = []
    for role, maps in found.maps.items():
        for i in range(min(shown, len(subject.images))):
            pictures = [("image", subject.images[i])]
            if subject.masks is not None:
                pictures.append(("mask", np.repeat(subject.masks[i][..., None], 3, 2)))
            for name, m in maps.items():
                scale = max(float(np.quantile(m[i], 0.99)), 1e-12)
                pictures.append((name, overlay(subject.images[i], m[i], scale=scale)))
            rows.append((subject.words[role][i], pictures))
    return rows


def sheet(rows: Sequence[tuple[str, Sequence[tuple[str, np.ndarray]]]], side: int = 112) -> np.ndarray:
    """All rows as one picture, (H, W, 3) uint8."""
    return labelled_grid(
        [[image for _, image in pictures] for _, pictures in rows],
        row_labels=[label for label, _ in rows],
        column_labels=[_short(name) for name, _ in rows[0][1]],
        side=side,
    )


def _short(name: str) -> str:
    return name.replace(" difference", "").replace("gradient", "grad.").replace("attention", "att.")


def _page(what: str, header: list[str], body: list[list[str]], rows: Any) -> str:
    grid = [
        (label, [Picture(image, f"{name} of {label}", name) for name, image in pictures]) for label, pictures in rows
    ]
    return page(
        TITLES[what],
        [
            heading(TITLES[what], "What a diffusion model's denoiser knows with the words and does not know without."),
            section("Numbers, in nats", data_table(header, body)),
            section(
                "Maps",
                text(
                    "The scale of a map is its own 99th percentile: compare shapes, not strengths. "
                    "The null is the same map for another image's word."
                ),
                picture_grid(grid, pixelated=True),
            ),
        ],
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return [k.replace("_", " ") for k in keys], [[_cell(row.get(k)) for k in keys] for row in rows]


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
