"""Charts as Plotly figures, from arrays. No Streamlit, no state: the same arguments give the same figure.

Every axis says what it shows and in which unit. Colours are mid-tones that read on white and on the dark
background; text, grid and font come from the page's theme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from apps.dashboard.timeaxis import TimeAxis

PALETTE = ("#5b5bd6", "#0d9488", "#c2740c", "#d6336c", "#2b7fd0", "#5a8f29", "#9b51c9", "#8a6d5a")
MUTED = "#8a8a99"
SEQUENTIAL = [[0.0, "rgba(91,91,214,0.05)"], [1.0, "rgba(91,91,214,1)"]]
"""From almost nothing to the house colour; transparent at zero, so it works on both backgrounds."""
CONFIG = {"displayModeBar": False}
"""Plotly's own tool bar stays away; Streamlit's has full screen."""


def over_time(
    axis: TimeAxis,
    lines: Mapping[str, Sequence[float] | np.ndarray],
    *,
    y_title: str,
    marked: int | None = None,
    y_range: tuple[float, float] | None = None,
    height: int = 260,
) -> go.Figure:
    """Lines over denoising time.

    Args:
        axis: positions of the steps.
        lines: name -> one value a step; NaN leaves a gap.
        y_title: what the values are, with their unit.
        marked: index of a step to mark, or None.
        y_range: fixed limits, or None for the data's own from zero.
        height: pixels.
    """
    figure = go.Figure()
    hover = [axis.label(i) for i in range(len(axis.steps))]
    for (name, values), colour in zip(lines.items(), _cycle(len(lines)), strict=True):
        figure.add_scatter(
            x=list(axis.values),
            y=_list(values),
            name=name,
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"size": 5},
            text=hover,
            hovertemplate="%{y:.3g}<br>%{text}<extra>" + _plain(name) + "</extra>",
        )
    if marked is not None:
        figure.add_vline(x=axis.values[marked], line={"color": MUTED, "width": 1, "dash": "dot"})
    _axes(figure, axis.title, y_title, height, legend=len(lines) > 1)
    figure.update_xaxes(autorange="reversed" if axis.reversed else True)
    figure.update_yaxes(range=list(y_range) if y_range else None, rangemode="tozero")
    return figure


def concept_bars(
    concepts: Sequence[str], score: Sequence[float] | np.ndarray, auc: Sequence[float] | np.ndarray
) -> go.Figure:
    """Score and AUC of one feature for each concept, side by side, largest score at the top.

    Args:
        concepts: one a row.
        score: concept scores, in percentage points of the code.
        auc: AUC of the pooled activation, in [0, 1].
    """
    order = np.argsort(-np.asarray(score, float), kind="stable")
    names = [_plain(concepts[i]) for i in order]
    figure = make_subplots(cols=2, shared_yaxes=True, column_widths=[0.62, 0.38], horizontal_spacing=0.05)
    hover = "%{y}: %{x:.3g}<extra></extra>"
    figure.add_bar(
        x=[float(score[i]) for i in order],
        y=names,
        orientation="h",
        marker={"color": PALETTE[0]},
        hovertemplate=hover,
        row=1,
        col=1,
    )
    figure.add_scatter(
        x=[float(auc[i]) for i in order],
        y=names,
        mode="markers",
        marker={"color": PALETTE[1], "size": 9},
        hovertemplate=hover,
        row=1,
        col=2,
    )
    _axes(figure, "", "", 70 + 25 * len(concepts))
    figure.update_yaxes(type="category", autorange="reversed", showgrid=True)
    figure.update_xaxes(title={"text": "concept score, % points"}, zeroline=True, row=1, col=1)
    figure.update_xaxes(title={"text": "AUC"}, range=[-0.03, 1.03], tickvals=[0, 0.5, 1], row=1, col=2)
    figure.add_vline(x=0.5, line={"color": MUTED, "width": 1, "dash": "dot"}, row=1, col=2)  # pyright: ignore[reportArgumentType]
    figure.update_layout(bargap=0.3)
    return figure


def concept_heatmap(
    axis: TimeAxis, concepts: Sequence[str], values: np.ndarray, *, colour_title: str, marked: int | None = None
) -> go.Figure:
    """Concepts x denoising time, as colour.

    Args:
        axis: positions of the steps.
        concepts: one a row, first at the top.
        values: (n_concepts, n_steps) >= 0.
        colour_title: what the colour is.
        marked: index of a step to mark, or None.
    """
    values = np.asarray(values, float)
    top = float(np.nanmax(values)) if np.isfinite(values).any() else 0.0
    figure = go.Figure(
        go.Heatmap(
            x=[axis.short(i) for i in range(len(axis.steps))],
            y=[_plain(name) for name in concepts],
            z=values.tolist(),
            zmin=0.0,
            zmax=top or 1.0,
            colorscale=SEQUENTIAL,
            xgap=1,
            ygap=1,
            colorbar={"title": {"text": colour_title, "side": "right"}, "thickness": 10, "outlinewidth": 0},
            hovertemplate="%{y} at " + axis.unit + " %{x}: %{z:.3g}<extra></extra>",
        )
    )
    if marked is not None:
        figure.add_vline(x=marked, line={"color": MUTED, "width": 1, "dash": "dot"})
    _axes(figure, axis.title, "", 80 + 22 * len(concepts))
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    return figure


def density_histogram(density: np.ndarray, *, dense_above: float, height: int = 260) -> go.Figure:
    """How many features fire how often, on a logarithmic axis; dead features are counted beside it.

    Args:
        density: (d_sae,) share of rows in which a feature is on.
        dense_above: density from which a feature counts as dense.
        height: pixels.
    """
    alive = np.log10(density[density > 0])
    figure = go.Figure(
        go.Histogram(
            x=alive.tolist(),
            nbinsx=40,
            marker={"color": PALETTE[0]},
            hovertemplate="log10 density %{x}: %{y} features<extra></extra>",
        )
    )
    figure.add_vline(
        x=float(np.log10(dense_above)),
        line={"color": MUTED, "width": 1, "dash": "dot"},
        annotation={
            "text": f"dense above {dense_above:.0%}",
            "font": {"size": 11},
            "y": 1.0,
            "yanchor": "bottom",
            "xanchor": "center",
        },
    )
    _axes(figure, "density: share of rows in which the feature is on", "features", height)
    figure.update_layout(margin={"t": 26})
    low = int(np.floor(alive.min())) if alive.size else -5
    figure.update_xaxes(tickvals=list(range(low, 1)), ticktext=[_power(p) for p in range(low, 1)], range=[low, 0.05])
    figure.update_layout(bargap=0.08)
    return figure


def intervals(rows: Sequence[Mapping[str, Any]], *, x_title: str) -> go.Figure:
    """Estimates with their intervals, one line a row of the table.

    Args:
        rows: each with ``name``, ``group``, ``value`` and maybe ``low`` and ``high``, all shares in [0, 1].
        x_title: what is estimated.
    """
    groups = list(dict.fromkeys(str(row["group"]) for row in rows))
    names = list(dict.fromkeys(str(row["name"]) for row in rows))
    figure = go.Figure()
    for group, colour in zip(groups, _cycle(len(groups)), strict=True):
        chosen = [row for row in rows if str(row["group"]) == group]
        values = [100 * float(row["value"]) for row in chosen]
        figure.add_scatter(
            x=values,
            y=[_plain(row["name"]) for row in chosen],
            name=group,
            mode="markers",
            marker={"size": 10, "color": colour},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [100 * float(r.get("high", r["value"])) - v for r, v in zip(chosen, values, strict=True)],
                "arrayminus": [v - 100 * float(r.get("low", r["value"])) for r, v in zip(chosen, values, strict=True)],
                "color": colour,
                "thickness": 1.5,
            },
            hovertemplate="%{y}: %{x:.1f} %<extra>" + _plain(group) + "</extra>",
        )
    _axes(figure, x_title, "", 110 + 34 * len(names), legend=len(groups) > 1)
    figure.update_xaxes(range=[-3, 103], ticksuffix=" %")
    figure.update_yaxes(type="category", autorange="reversed", showgrid=True)
    figure.update_layout(scattermode="group", scattergap=0.6)
    return figure


def _axes(figure: go.Figure, x_title: str, y_title: str, height: int, *, legend: bool = False) -> None:
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 16, "t": 28 if legend else 10, "b": 8},
        showlegend=legend,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="closest",
    )
    figure.update_xaxes(title={"text": x_title}, automargin=True)
    figure.update_yaxes(title={"text": y_title}, automargin=True)


def _cycle(n: int) -> list[str]:
    return [PALETTE[i % len(PALETTE)] for i in range(n)]


def _list(values: Sequence[float] | np.ndarray) -> list[float | None]:
    """Plain numbers; what is not finite is a gap."""
    return [float(v) if v is not None and np.isfinite(v) else None for v in values]


def _plain(text: object) -> str:
    """Text as Plotly shows it literally: its labels would read ``<`` and ``&`` as markup."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _power(exponent: int) -> str:
    return {0: "1", -1: "0.1", -2: "0.01", -3: "0.001"}.get(exponent, f"1e{exponent}")
