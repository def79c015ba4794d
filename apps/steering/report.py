"""What a sweep shows, for people: a sheet of images, the dose-response curves, and one page with both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from apps import report
from apps.images import labelled_grid
from apps.progress import percent
from apps.report import Picture

Rows = Sequence[Mapping[str, Any]]

_RULES = (
    "Saturation (upwards): the smallest strength whose target is not below the interval of the largest target, if that "
    "one is above the interval of the unedited model; downwards the same with signs turned.",
    "Artifact limit: the smallest strength on a side whose artifact rate exceeds the upper end of the unedited rate.",
    "Random: every row of the site is moved exactly as far, in random directions.",
    "Trend: Spearman's correlation of the target with the strength, mean over images; p from shuffled strengths.",
)


def sheet(
    shown: Sequence[tuple[str, Mapping[str, np.ndarray], Mapping[str, Sequence[str]]]],
    columns: Sequence[str],
    *,
    title: str,
    side: int,
) -> np.ndarray:
    """The same prompts and seeds in every column; below each row of the push the row of its control.

    Args:
        shown: (label, {"push", "random": images (n_columns, H, W, 3)}, read-outs shaped alike, or {}) for each prompt.
        columns: one name a strength.
        title: a line above.
        side: pixels of an image.

    Returns:
        uint8 (H, W, 3).
    """
    rows, labels, captions = [], [], []
    for label, images, texts in shown:
        for kind in ("push", "random"):
            rows.append(list(images[kind]))
            labels.append(label if kind == "push" else "random direction")
            captions.append(list(texts.get(kind, ())))
    return labelled_grid(rows, row_labels=labels, column_labels=columns, captions=captions, side=side, title=title)


def curves(rows: Rows, group: str, unit: str, marks: Sequence[tuple[float, str]] = ()) -> list[str]:
    """SVG charts of a group: the concept, and what it costs; without a judge the change of pixels alone."""
    push = [row for row in rows if row["group"] == group and row["push"] == "push"]
    random = [row for row in rows if row["group"] == group and row["push"] == "random"]
    x, x_label = [float(row["strength"]) for row in push], f"strength ({unit}), prompts {group}"

    def chart(lines: Sequence[tuple[str, Rows, str]], y_label: str, y_max: float | None) -> str:
        return report.line_chart(
            [(name, _values(source, measure)) for name, source, measure in lines],
            x,
            x_label=x_label,
            y_label=y_label,
            bands=[_band(source, measure) for _, source, measure in lines],
            y_max=y_max,
            marks=marks,
        )

    charts = []
    if "target" in push[0]:
        lines = [
            ("target", push, "target"),
            ("target, random", random, "target"),
            ("others, same", push, "same_factor"),
        ]
        charts.append(chart(lines, "judge's probability", 1.0))
    if "artifacts" in push[0]:
        names = [*(name for name in _measures(push[0]) if name.startswith("kept_")), "artifacts"]
        charts.append(chart([(name.replace("_", " "), push, name) for name in names], "share of images", 1.0))
    else:
        charts.append(chart([("push", push, "change"), ("random", random, "change")], "change of pixels", None))
    return charts


def page(
    title: str,
    lead: str,
    rows: Rows,
    charts: Mapping[str, Sequence[str]],
    shown: Sequence[tuple[str, Mapping[str, np.ndarray], Mapping[str, Sequence[str]]]],
    columns: Sequence[str],
    about: Sequence[tuple[str, str]],
) -> str:
    """The page: what was pushed, the curves of each group, the images, the table, and the rules."""
    cells = []
    for label, images, texts in shown:
        for kind in ("push", "random"):
            name = label if kind == "push" else "random direction"
            read = texts.get(kind) or [""] * len(columns)
            pictures = [
                Picture(image, alt=f"{name} at {column}: {text}", caption=text, marked=column == "unedited")
                for image, column, text in zip(images[kind], columns, read, strict=True)
            ]
            cells.append((name, pictures))
    header, body = table_of(rows)
    return report.page(
        title,
        [
            report.heading(title, lead),
            *(report.section(f"Response: prompts {group}", *parts) for group, parts in charts.items()),
            report.section("Same prompt, same seed", report.picture_grid(cells, columns)),
            report.section("Numbers", report.data_table(header, body, "95 % intervals")),
            report.section("How to read it", report.text(*_RULES), report.definitions(about)),
        ],
    )


def table_of(rows: Rows) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the numbers, in percent with intervals."""
    measures = [name for name in _measures(rows[0]) if name != "gain"]  # the control has no gain over itself
    header = ["push", "prompts", "strength", *(name.replace("_", " ") for name in measures)]
    body = []
    for row in rows:
        cells = [percent(row, m) for m in measures]
        body.append([str(row["push"]), str(row["group"]), f"{row['strength']:+g}", *cells])
    return header, body


def _measures(row: Mapping[str, Any]) -> list[str]:
    return [name for name in row if f"{name}_low" in row]


def _values(rows: Rows, name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def _band(rows: Rows, name: str) -> tuple[list[float], list[float]]:
    return [float(row[f"{name}_low"]) for row in rows], [float(row[f"{name}_high"]) for row in rows]
