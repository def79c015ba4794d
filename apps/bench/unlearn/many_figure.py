"""Several concepts at once, as pictures: scores against the number of concepts, and what is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from apps.images import labelled_grid

PANELS = {"ua": "UA", "instead": "another of them instead", "ira": "IRA", "cra": "CRA", "artifacts": "artifacts"}
# Colour-blind safe (Okabe and Ito 2008); dashes tell the lines apart without colours, and where they coincide.
_STYLES = {
    "joint": ("#00785A", "none"),
    "sequential": ("#D55E00", "8 4"),
    "random": ("#767676", "2 3"),
    "no_edit": ("#222222", "1 5"),
}
_SIDE, _LEFT, _TOP, _GAP, _ROW, _LEGEND = 150, 66, 56, 34, 66, 130
_TICKS = (0.0, 0.5, 1.0)
_CELL = 80
_TITLE = "Scores of several concepts at once, against their number, with 95 % intervals"

Rows = Sequence[Mapping[str, Any]]


def many_svg(rows: Rows) -> str:
    """One row of panels a factor, one panel a score, one line a way to edit."""
    factors = list(dict.fromkeys(row["factor"] for row in rows))
    width = _LEFT + len(PANELS) * (_SIDE + _GAP) + _LEGEND
    height = _TOP + len(factors) * (_SIDE + _ROW)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="sans-serif" font-size="12"><title>{escape(_TITLE)}</title>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for i, factor in enumerate(factors):
        own = [row for row in rows if row["factor"] == factor]
        for j, score in enumerate(PANELS):
            parts.append(_panel(own, score, _LEFT + j * (_SIDE + _GAP), _TOP + i * (_SIDE + _ROW), factor))
    for i, (mode, (colour, dash)) in enumerate(_STYLES.items()):
        x, y = width - _LEGEND, _TOP + 10 + 20 * i
        parts.append(
            f'<path d="M{x} {y}h28" stroke="{colour}" stroke-dasharray="{dash}" stroke-width="2"/>'
            f'<text x="{x + 36}" y="{y + 4}">{escape(mode.replace("_", " "))}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def _panel(rows: Rows, score: str, left: int, top: int, factor: str) -> str:
    counts = sorted({row["count"] for row in rows})
    bottom = top + _SIDE

    def at(count: int, value: float, shift: float = 0.0) -> tuple[float, float]:
        """Numbers of concepts stand at equal distances: they double."""
        x = left + _SIDE * (counts.index(count) + 0.5) / len(counts)
        return round(x + shift, 1), round(bottom - value * _SIDE, 1)

    parts = [f'<text x="{left}" y="{top - 12}" font-weight="bold">{escape(factor)}s: {PANELS[score]}</text>']
    for tick in _TICKS:
        y = at(counts[0], tick)[1]
        parts.append(
            f'<path d="M{left} {y}h{_SIDE}" stroke="#e4e4e4"/>'
            f'<text x="{left - 6}" y="{y + 4}" text-anchor="end" fill="#444">{tick:.0%}</text>'
        )
    for count in counts:
        parts.append(f'<text x="{at(count, 0)[0]}" y="{bottom + 18}" text-anchor="middle" fill="#444">{count}</text>')
    parts.append(f'<text x="{left + _SIDE / 2}" y="{bottom + 36}" text-anchor="middle">concepts at once</text>')
    for number, (mode, (colour, dash)) in enumerate(_STYLES.items()):
        shift = 4.0 * (number - 1.5)  # intervals stand beside each other
        own = sorted((row for row in rows if row["mode"] == mode), key=lambda row: row["count"])
        points = [at(row["count"], row[score], shift) for row in own]
        line = " ".join(f"{x},{y}" for x, y in points)
        if not points:
            continue
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-dasharray="{dash}" stroke-width="2"/>'
        )
        for row, (x, y) in zip(own, points, strict=True):
            low, high = (at(row["count"], row[f"{score}{end}"])[1] for end in ("_low", "_high"))
            parts.append(
                f'<path d="M{x} {low}V{high}" stroke="{colour}"/><circle cx="{x}" cy="{y}" r="3" fill="{colour}">'
                f"<title>{escape(mode)}, {row['count']}: {row[score]:.1%}</title></circle>"
            )
    return "\n".join(parts)


def many_sheet(
    factor: str, labels: Sequence[str], n_unlearned: int, shown: Mapping[str, Sequence[np.ndarray]]
) -> np.ndarray:
    """Pictures of every label of a factor by each edit; (H, W, 3) uint8.

    Args:
        factor: of the labels.
        labels: one for each picture, those that are unlearned first.
        n_unlearned: how many are.
        shown: for each edit, one picture a label, uint8.
    """
    return labelled_grid(
        list(shown.values()),
        row_labels=[name.replace("_", " ") for name in shown],
        column_labels=list(labels),
        side=_CELL,
        title=f"Asked for each {factor}; the first {n_unlearned} are unlearned. Same prompts, same noise in a column.",
    )
