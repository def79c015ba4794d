"""Charts as Plotly figures, from arrays. No Streamlit, no state: the same arguments give the same figure.

Every axis says what it shows and in which unit. Colours are mid-tones that read on white and on the dark
background; text, grid and font come from the page's theme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from apps.dashboard.timeaxis import TimeAxis

PALETTE = ("#5b5bd6", "#0d9488", "#c2740c", "#d6336c", "#2b7fd0", "#5a8f29", "#9b51c9", "#8a6d5a")
MUTED = "#8a8a99"
SEQUENTIAL = [[0.0, "rgba(91,91,214,0.05)"], [1.0, "rgba(91,91,214,1)"]]
"""From almost nothing to the house colour; transparent at zero, so it works on both backgrounds."""
SIGNED = [[0.0, "rgba(43,127,208,1)"], [0.5, "rgba(128,128,128,0.06)"], [1.0, "rgba(201,68,50,1)"]]
"""Blue below zero, red above it, almost nothing at zero."""
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


def signed_matrix(
    rows: Sequence[str],
    columns: Sequence[str],
    values: np.ndarray,
    *,
    colour_title: str,
    x_title: str = "",
    y_title: str = "",
) -> go.Figure:
    """Values in [-1, 1] as colour, zero white; what is NaN stays empty.

    Args:
        rows, columns: one name each.
        values: (n_rows, n_columns).
        colour_title: what the colour is.
        x_title, y_title: what columns and rows are.
    """
    figure = go.Figure(
        go.Heatmap(
            x=[_plain(name) for name in columns],
            y=[_plain(name) for name in rows],
            z=[_list(row) for row in np.asarray(values, float)],
            zmin=-1.0,
            zmax=1.0,
            colorscale=SIGNED,
            xgap=1,
            ygap=1,
            colorbar={"title": {"text": colour_title, "side": "right"}, "thickness": 10, "outlinewidth": 0},
            hovertemplate="%{y}, %{x}: %{z:.2f}<extra></extra>",
        )
    )
    _axes(figure, x_title, y_title, 120 + 24 * len(rows))
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    return figure


def feature_map(groups: Mapping[str, Sequence[tuple[int, float, float, str]]], *, height: int = 420) -> go.Figure:
    """Features as points in the plane, near where their decoder rows are alike; the number is each point's custom data.

    Args:
        groups: name (a colour) -> (feature, x, y, text when pointed at).
        height: pixels.
    """
    figure = go.Figure()
    for (name, points), colour in zip(groups.items(), _cycle(len(groups)), strict=True):
        figure.add_scattergl(
            x=[x for _, x, _, _ in points],
            y=[y for _, _, y, _ in points],
            customdata=[feature for feature, _, _, _ in points],
            text=[_plain(text) for *_, text in points],
            name=_plain(name),
            mode="markers",
            marker={"color": colour, "size": 9, "opacity": 0.8},
            hovertemplate="feature %{customdata}<br>%{text}<extra></extra>",
        )
    _axes(figure, "", "", height, legend=True)
    figure.update_layout(dragmode="pan")
    figure.update_xaxes(showticklabels=False, showgrid=False, zeroline=False)
    figure.update_yaxes(showticklabels=False, showgrid=False, zeroline=False)
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


def estimates(
    names: Sequence[str], values: Sequence[float], lows: Sequence[float], highs: Sequence[float], *, x_title: str
) -> go.Figure:
    """Values with their intervals, one line each, in the order given.

    Args:
        names: one a line.
        values, lows, highs: the estimate and the ends of its interval.
        x_title: what is estimated.
    """
    figure = go.Figure(
        go.Scatter(
            x=_list(values),
            y=[_plain(name) for name in names],
            mode="markers",
            marker={"size": 9, "color": PALETTE[0]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": _list(np.asarray(highs, float) - np.asarray(values, float)),
                "arrayminus": _list(np.asarray(values, float) - np.asarray(lows, float)),
                "thickness": 1.5,
            },
            hovertemplate="%{y}: %{x:.3g}<extra></extra>",
        )
    )
    _axes(figure, x_title, "", 80 + 24 * len(names))
    figure.update_xaxes(zeroline=True, rangemode="tozero" if min(lows) >= 0 else "normal")
    figure.update_yaxes(type="category", autorange="reversed", showgrid=True)
    return figure


class Curve(NamedTuple):
    """A line of a dose-response chart.

    Attributes:
        name: of the line.
        values: one a strength.
        lows, highs: ends of its interval, or None where it has none.
        muted: drawn in grey: a control.
    """

    name: str
    values: Sequence[float]
    lows: Sequence[float] | None = None
    highs: Sequence[float] | None = None
    muted: bool = False


def dose_response(
    strengths: Sequence[float],
    curves: Sequence[Curve],
    *,
    x_title: str,
    y_title: str,
    y_top: float | None = 1.0,
    marks: Sequence[tuple[float, str]] = (),
) -> go.Figure:
    """What a push does at each strength, with bands for the intervals.

    Args:
        strengths: of the push; 0 is the unedited model.
        curves: lines over them.
        x_title: the strength with its unit.
        y_title: what is measured.
        y_top: upper end of the axis, or None for the data's own.
        marks: (strength, text) of vertical lines.
    """
    figure = go.Figure()
    for curve, colour in zip(curves, _cycle(len(curves)), strict=True):
        colour = MUTED if curve.muted else colour
        if curve.lows is not None and curve.highs is not None:
            red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
            figure.add_scatter(
                x=[*strengths, *reversed(strengths)],
                y=[*_list(curve.highs), *reversed(_list(curve.lows))],
                mode="lines",
                fill="toself",
                fillcolor=f"rgba({red},{green},{blue},0.15)",
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
            )
        figure.add_scatter(
            x=list(strengths),
            y=_list(curve.values),
            name=_plain(curve.name),
            mode="lines+markers",
            line={"color": colour, "width": 2, "dash": "dot" if curve.muted else "solid"},
            marker={"size": 6},
            hovertemplate="%{x:+g}: %{y:.3g}<extra>" + _plain(curve.name) + "</extra>",
        )
    for strength, text in marks:
        figure.add_vline(
            x=strength,
            line={"color": MUTED, "width": 1, "dash": "dot"},
            annotation={"text": _plain(text), "font": {"size": 11}, "y": 0.02, "yanchor": "bottom", "textangle": -90},
        )
    _axes(figure, x_title, y_title, 320, legend=True)
    figure.update_xaxes(tickvals=list(strengths), zeroline=False)
    figure.update_yaxes(range=None if y_top is None else [-0.03, 1.05 * y_top], rangemode="tozero")
    return figure


def frontier(points: Sequence[Mapping[str, Any]], *, x_title: str, y_title: str) -> go.Figure:
    """Methods by what they keep and what they forget: the upper right corner is best.

    Args:
        points: each with ``group`` (a colour), ``name``, ``x``, ``y`` in [0, 1] and ``average`` (drawn large).
        x_title: what is kept.
        y_title: what is forgotten.
    """
    figure = go.Figure()
    groups = list(dict.fromkeys(str(point["group"]) for point in points))
    for group, colour in zip(groups, _cycle(len(groups)), strict=True):
        own = [point for point in points if str(point["group"]) == group]
        figure.add_scatter(
            x=[100 * float(point["x"]) for point in own],
            y=[100 * float(point["y"]) for point in own],
            name=_plain(group),
            mode="markers",
            marker={
                "color": colour,
                "size": [15 if point["average"] else 7 for point in own],
                "opacity": [1.0 if point["average"] else 0.45 for point in own],
                "symbol": ["diamond" if point["average"] else "circle" for point in own],
            },
            text=[_plain(point["name"]) for point in own],
            hovertemplate="%{text}: kept %{x:.1f} %, forgotten %{y:.1f} %<extra>" + _plain(group) + "</extra>",
        )
    _axes(figure, x_title, y_title, 360, legend=True)
    figure.update_xaxes(ticksuffix=" %")
    figure.update_yaxes(ticksuffix=" %")
    figure.update_layout(legend={"itemsizing": "constant"})
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
