"""A self-contained HTML page: text, tables, charts and images in one file that loads nothing from anywhere.

Every text passes through ``html.escape``; images are data URIs; charts are inline SVG; there is no script, unless the
page asks for one that is written into it (Plotly's). A content security policy in the page forbids the browser to fetch
anything, so a mistake here would show as a gap and never as a request.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from apps.errors import InvalidOption
from apps.images import data_uri, heat_colours

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_SCRIPTS = "; script-src 'unsafe-inline'"
_STYLE = """
:root { --ink: #1b1d22; --soft: #5f6470; --line: #d9dce3; --page: #fbfbfd; --card: #ffffff; --accent: #a3195b;
  --good: #0f7b4f; --bad: #b3261e; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e9ee; --soft: #a0a5b2; --line: #33363f; --page: #131419;
  --card: #1b1d23; --accent: #ff7ab5; --good: #5fd6a2; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; margin: 0 0 .4rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .4rem 0 .8rem; max-width: 60rem; }
.lead { font-size: 1.1rem; color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.25rem 1.4rem;
  margin: 1.4rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
table.data th, table.data td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
table.data th:first-child, table.data td:first-child { text-align: left; }
table.data th { color: var(--soft); font-weight: 600; font-size: .85rem; }
td small, figcaption, .soft { color: var(--soft); font-size: .8rem; }
table.grid td, table.grid th { padding: 3px; text-align: center; vertical-align: top; font-weight: 500;
  font-size: .8rem; color: var(--soft); line-height: 1.25; }
table.grid th.row { text-align: right; vertical-align: middle; padding-right: .7rem; color: var(--ink); max-width:
11rem; } table.grid img { display: block; width: 104px; height: 104px; border-radius: 6px; } table.grid td.mark img {
outline: 3px solid var(--accent); outline-offset: -1px; } table.grid td div { width: 104px; margin: 2px auto 0;
overflow-wrap: anywhere; } img.smooth { image-rendering: auto; } img.pixel { image-rendering: pixelated; } .tiles {
display: flex; flex-wrap: wrap; gap: .9rem; margin: .8rem 0; } .tile { border: 1px solid var(--line); border-radius:
10px; padding: .6rem 1rem; min-width: 9rem; } .tile b { display: block; font-size: 1.5rem; line-height: 1.2; }
.tile.good b { color: var(--good); } .tile.bad b { color: var(--bad); } .bar { height: 12px; border-radius: 6px;
max-width: 22rem; } .ends { display: flex; justify-content: space-between; max-width: 22rem; color: var(--soft);
font-size: .8rem; } pre { background: var(--page); border: 1px solid var(--line); border-radius: 8px; padding: .8rem
1rem; overflow-x: auto;
  font-size: .85rem; }
svg { max-width: 100%; height: auto; } svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
details summary { cursor: pointer; color: var(--soft); }
"""


@dataclass(frozen=True)
class Picture:
    """One cell of a grid.

    Attributes:
        image: uint8 (H, W, 3).
        alt: what it shows, for those who cannot see it.
        caption: text below; ``\\n`` begins a new line.
        marked: framed in the accent colour.
    """

    image: np.ndarray
    alt: str
    caption: str = ""
    marked: bool = False


def page(title: str, parts: Iterable[str], *, scripts: bool = False) -> str:
    """The whole document.

    Args:
        title: of the page.
        parts: HTML that the functions below made.
        scripts: whether scripts that are part of the page may run.
    """
    policy = _POLICY + _SCRIPTS if scripts else _POLICY
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def heading(title: str, lead: str) -> str:
    """The page's title and what it says in one sentence."""
    return f'<header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p></header>'


def section(title: str, *parts: str) -> str:
    """A card with a title."""
    return f"<section><h2>{escape(title)}</h2>" + "\n".join(parts) + "</section>"


def sub(title: str) -> str:
    """A title within a section."""
    return f"<h3>{escape(title)}</h3>"


def text(*paragraphs: str) -> str:
    """Paragraphs."""
    return "".join(f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs)


def tiles(items: Sequence[tuple[str, str, bool | None]]) -> str:
    """Numbers in large type: (value, what it is, whether it is good; None for neither)."""
    kinds = {True: " good", False: " bad", None: ""}
    cells = [
        f'<div class="tile{kinds[good]}"><b>{escape(value)}</b><span class="soft">{escape(label)}</span></div>'
        for value, label, good in items
    ]
    return f'<div class="tiles">{"".join(cells)}</div>'


def data_table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """A table of texts, first column left, the others right; a cell's second line is small."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{_two_lines(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    below = f"<p class='soft'>{escape(caption)}</p>" if caption else ""
    table = f'<table class="data"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>{below}'


def picture_grid(
    rows: Sequence[tuple[str, Sequence[Picture | None]]], columns: Sequence[str] = (), *, pixelated: bool = False
) -> str:
    """Images in rows with labels; None leaves a cell empty."""
    kind = "pixel" if pixelated else "smooth"
    head = ""
    if columns:
        cells = "".join(f'<th scope="col">{escape(label)}</th>' for label in columns)
        head = f"<thead><tr><td></td>{cells}</tr></thead>"
    body = []
    for label, pictures in rows:
        cells = []
        for picture in pictures:
            if picture is None:
                cells.append("<td></td>")
                continue
            below = "<br>".join(escape(line) for line in picture.caption.split("\n")) if picture.caption else ""
            cells.append(
                f"<td{' class=mark' if picture.marked else ''}>"
                f'<img class="{kind}" alt="{escape(picture.alt)}" src="{data_uri(picture.image)}">'
                + (f"<div>{below}</div>" if below else "")
                + "</td>"
            )
        body.append(f'<tr><th class="row" scope="row">{escape(label)}</th>{"".join(cells)}</tr>')
    return f'<div class="scroll"><table class="grid">{head}<tbody>{"".join(body)}</tbody></table></div>'


def colour_bar(scale: float, unit: str) -> str:
    """The heat colours with their ends."""
    stops = ", ".join("rgb({}, {}, {})".format(*heat_colours(np.array(u)).tolist()) for u in np.linspace(0, 1, 9))
    return (
        f'<div class="bar" role="img" aria-label="colours from 0 to {scale:.3g}" '
        f'style="background: linear-gradient(to right, {stops})"></div>'
        f'<div class="ends"><span>0</span><span>{escape(unit)}</span><span>{scale:.3g}</span></div>'
    )


def line_chart(
    series: Sequence[tuple[str, Sequence[float]]],
    x: Sequence[float],
    *,
    x_label: str,
    y_label: str,
    bands: Sequence[tuple[Sequence[float], Sequence[float]] | None] = (),
    y_max: float | None = None,
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """Lines over a common axis, from 0 upwards, with optional bands of uncertainty.

    Args:
        series: (name, values) of each line.
        x: ascending positions.
        x_label, y_label: what the axes are.
        bands: for each line (low, high) or None.
        y_max: top of the axis; the largest value if None.
        marks: (position, name) of dashed lines across the chart.
    """
    if len(x) < 2 or any(len(values) != len(x) for _, values in series):
        raise InvalidOption("line_chart: every line needs one value for each of at least two positions.")
    width, height, left, bottom, top, right = 560, 230, 52, 38, 12, 130
    highest = y_max if y_max is not None else max(max(values) for _, values in series) or 1.0
    low, high = x[0], x[-1]

    def at(px: float, py: float) -> str:
        u = left + (px - low) / (high - low) * (width - left - right)
        v = height - bottom - min(max(py, 0.0), highest) / highest * (height - bottom - top)
        return f"{u:.1f},{v:.1f}"

    colours = ("#c2186b", "#7a8190", "#1769c2", "#0f7b4f", "#b8860b")
    shapes = []
    for share in (0.0, 0.5, 1.0):
        y = at(low, share * highest).split(",")[1]
        shapes.append(f'<line x1="{left}" x2="{width - right}" y1="{y}" y2="{y}" stroke="currentColor" opacity=".15"/>')
        shapes.append(f'<text x="{left - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{share * highest:.3g}</text>')
    for position in (low, (low + high) / 2, high):
        px = at(position, 0).split(",")[0]
        shapes.append(f'<text x="{px}" y="{height - bottom + 16}" text-anchor="middle">{position:.4g}</text>')
    for i, (position, name) in enumerate(marks):
        px, v = at(position, 0).split(",")[0], top + 10 + 14 * i
        shapes.append(f'<line x1="{px}" x2="{px}" y1="{top}" y2="{height - bottom}" stroke="currentColor" '
                      'stroke-dasharray="4 4" opacity=".6"/>')  # fmt: skip
        shapes.append(f'<text x="{px}" dx="4" y="{v}">{escape(name)}</text>')
    for i, (name, values) in enumerate(series):
        colour, band = colours[i % len(colours)], bands[i] if i < len(bands) else None
        if band is not None:
            edge = [at(a, b) for a, b in zip(x, band[1], strict=True)]
            edge += [at(a, b) for a, b in zip(reversed(x), reversed(band[0]), strict=True)]
            shapes.append(f'<polygon points="{" ".join(edge)}" fill="{colour}" opacity=".15"/>')
        points = " ".join(at(a, b) for a, b in zip(x, values, strict=True))
        shapes.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.2"/>')
        v = 22 + 18 * i
        shapes.append(f'<line x1="{width - right + 12}" x2="{width - right + 30}" y1="{v}" y2="{v}" stroke="{colour}" '
                      'stroke-width="3"/>')  # fmt: skip
        shapes.append(f'<text x="{width - right + 36}" y="{v + 4}">{escape(name)}</text>')
    middle = (left + width - right) / 2
    shapes.append(f'<text x="{middle}" y="{height - 4}" text-anchor="middle">{escape(x_label)}</text>')
    shapes.append(f'<text x="14" y="{top - 2}" dy="8">{escape(y_label)}</text>')
    described = escape(f"{y_label} over {x_label}: {', '.join(name for name, _ in series)}")
    box = f'viewBox="0 0 {width} {height}" width="{width}"'
    return f'<svg {box} role="img" aria-label="{described}">{"".join(shapes)}</svg>'


def definitions(items: Sequence[tuple[str, str]]) -> str:
    """Names and values."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in items) + "</dl>"


def code(lines: str) -> str:
    """Text as it would be typed."""
    return f"<pre>{escape(lines)}</pre>"


def folded(summary: str, *parts: str) -> str:
    """Parts that are hidden until they are asked for."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts)}</details>"


def write_page(path: str | Path, html: str) -> None:
    """Write the file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(html, encoding="utf-8")
    temporary.replace(path)


def _two_lines(cell: str) -> str:
    first, newline, rest = cell.partition("\n")
    return escape(first) + (f"<br><small>{escape(rest)}</small>" if newline else "")
