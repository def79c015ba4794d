"""The frontier of forgetting and keeping, as an SVG: one panel a factor, one curve a method.

Every dot is a setting on validation images, averaged over targets, its curve in the order of what is kept; the ring is
the method on test images, each target at its chosen setting. The upper right corner is everything forgotten and
everything kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from apps.bench.unlearn.tables import Rows, kinds_in_order
from apps.unlearning.methods import method

# Colour-blind safe (Okabe and Ito 2008), a hue for each kind of method and a dash for each method of it.
_COLOURS = {"control": "#767676", "prompt": "#CC79A7", "direction": "#0072B2", "weights": "#D55E00", "sae": "#00785A"}
_DASHES = ("none", "7 3", "2 3", "9 3 2 3", "12 4", "4 4")
_PANEL, _LEFT, _TOP, _GAP, _LEGEND = 340, 62, 44, 74, 190
_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_TITLE = "Forgotten against kept: every setting on validation images, and each method on test images"


def frontier_svg(rows: Rows) -> str:
    """The figure from a measurement's rows (``bench_unlearn_tables``)."""
    shown = [row for row in rows if row["part"] in ("average", "setting")]
    factors = list(dict.fromkeys(row["factor"] for row in shown))
    names = kinds_in_order(shown)
    style = {name: _style(name, names) for name in names}
    width = _LEFT + len(factors) * (_PANEL + _GAP) + _LEGEND
    height = _TOP + _PANEL + 58
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="sans-serif" font-size="12"><title>{escape(_TITLE)}</title>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for i, factor in enumerate(factors):
        parts.append(_panel(factor, [row for row in shown if row["factor"] == factor], style, i))
    parts.append(_legend(names, style, _LEFT + len(factors) * (_PANEL + _GAP) - 30))
    return "\n".join([*parts, "</svg>", ""])


def _style(name: str, names: Sequence[str]) -> tuple[str, str]:
    kind = method(name).kind
    return _COLOURS[kind], _DASHES[[n for n in names if method(n).kind == kind].index(name) % len(_DASHES)]


def _panel(factor: str, rows: Rows, style: dict[str, tuple[str, str]], i: int) -> str:
    left = _LEFT + i * (_PANEL + _GAP)

    def at(kept: float, forgotten: float) -> tuple[float, float]:
        return round(left + kept * _PANEL, 1), round(_TOP + (1 - forgotten) * _PANEL, 1)

    bottom = _TOP + _PANEL
    parts = [f'<text x="{left}" y="{_TOP - 16}" font-size="15" font-weight="bold">{escape(factor)}s</text>']
    for tick in _TICKS:
        x, y = at(tick, tick)
        parts += [
            f'<path d="M{x} {_TOP}V{bottom}M{left} {y}H{left + _PANEL}" stroke="#e4e4e4" fill="none"/>',
            f'<text x="{x}" y="{bottom + 18}" text-anchor="middle" fill="#444">{tick:.0%}</text>',
            f'<text x="{left - 8}" y="{y + 4}" text-anchor="end" fill="#444">{tick:.0%}</text>',
        ]
    middle = _TOP + _PANEL / 2
    parts += [
        f'<text x="{left + _PANEL / 2}" y="{bottom + 40}" text-anchor="middle">kept: mean of IRA and CRA</text>',
        f'<text transform="translate({left - 46} {middle}) rotate(-90)" text-anchor="middle">'
        "forgotten: UA clean</text>",
    ]
    for name, (colour, dash) in style.items():
        own = [row for row in rows if row["method"] == name]
        tried = sorted((at(r["retained"], r["ua_clean"]) for r in own if r["part"] == "setting"), key=lambda p: p[0])
        if len(tried) > 1:
            line = " ".join(f"{x},{y}" for x, y in tried)
            parts.append(
                f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-dasharray="{dash}" opacity="0.75"/>'
            )
        parts += [f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>' for x, y in tried]
        for row in (row for row in own if row["part"] == "average"):
            x, y = at((row["ira"] + row["cra"]) / 2, row["ua_clean"])
            parts.append(_ring(x, y, colour, f"{name}, test images: {_told(row)}"))
    return "\n".join(parts)


def _ring(x: float, y: float, colour: str, told: str) -> str:
    return (
        f'<circle cx="{x}" cy="{y}" r="6" fill="#fff" fill-opacity="0.6" stroke="{colour}" stroke-width="2.5">'
        f"<title>{escape(told)}</title></circle>"
    )


def _told(row: Mapping[str, Any]) -> str:
    return f"UA clean {row['ua_clean']:.1%}, IRA {row['ira']:.1%}, CRA {row['cra']:.1%}"


def _legend(names: Sequence[str], style: dict[str, tuple[str, str]], left: float) -> str:
    parts = []
    for i, name in enumerate(names):
        y, (colour, dash) = _TOP + 12 + 20 * i, style[name]
        parts += [
            f'<path d="M{left} {y}h30" stroke="{colour}" stroke-dasharray="{dash}" stroke-width="2" fill="none"/>',
            _ring(left + 15, y, colour, name),
            f'<text x="{left + 38}" y="{y + 4}">{escape(name.replace("_", " "))}</text>',
        ]
    return "\n".join(parts)
