"""Charts of results as Plotly figures: scores with intervals, dose and response, what was forgotten and what was kept.

Like ``figures``: no Streamlit, no state, and every axis says what it shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from apps.dashboard.chart_style import MUTED, PALETTE, axes, band, colours, literal, numbers


def intervals(rows: Sequence[Mapping[str, Any]], *, x_title: str) -> go.Figure:
    """Estimates with their intervals, one line a row of the table.

    Args:
        rows: each with ``name``, ``group``, ``value`` and maybe ``low`` and ``high``, all shares in [0, 1].
        x_title: what is estimated.
    """
    groups = list(dict.fromkeys(str(row["group"]) for row in rows))
    names = list(dict.fromkeys(str(row["name"]) for row in rows))
    figure = go.Figure()
    for group, colour in zip(groups, colours(len(groups)), strict=True):
        chosen = [row for row in rows if str(row["group"]) == group]
        values = [100 * float(row["value"]) for row in chosen]
        figure.add_scatter(
            x=values,
            y=[literal(row["name"]) for row in chosen],
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
            hovertemplate="%{y}: %{x:.1f} %<extra>" + literal(group) + "</extra>",
        )
    axes(figure, x_title, "", 110 + 34 * len(names), legend=len(groups) > 1)
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
            x=numbers(values),
            y=[literal(name) for name in names],
            mode="markers",
            marker={"size": 9, "color": PALETTE[0]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": numbers(np.asarray(highs, float) - np.asarray(values, float)),
                "arrayminus": numbers(np.asarray(values, float) - np.asarray(lows, float)),
                "thickness": 1.5,
            },
            hovertemplate="%{y}: %{x:.3g}<extra></extra>",
        )
    )
    axes(figure, x_title, "", 80 + 24 * len(names))
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
    for curve, colour in zip(curves, colours(len(curves)), strict=True):
        colour = MUTED if curve.muted else colour
        if curve.lows is not None and curve.highs is not None:
            band(figure, list(strengths), curve.lows, curve.highs, colour)
        figure.add_scatter(
            x=list(strengths),
            y=numbers(curve.values),
            name=literal(curve.name),
            mode="lines+markers",
            line={"color": colour, "width": 2, "dash": "dot" if curve.muted else "solid"},
            marker={"size": 6},
            hovertemplate="%{x:+g}: %{y:.3g}<extra>" + literal(curve.name) + "</extra>",
        )
    for strength, text in marks:
        figure.add_vline(
            x=strength,
            line={"color": MUTED, "width": 1, "dash": "dot"},
            annotation={"text": literal(text), "font": {"size": 11}, "y": 0.02, "yanchor": "bottom", "textangle": -90},
        )
    axes(figure, x_title, y_title, 320, legend=True)
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
    for group, colour in zip(groups, colours(len(groups)), strict=True):
        own = [point for point in points if str(point["group"]) == group]
        figure.add_scatter(
            x=[100 * float(point["x"]) for point in own],
            y=[100 * float(point["y"]) for point in own],
            name=literal(group),
            mode="markers",
            marker={
                "color": colour,
                "size": [15 if point["average"] else 7 for point in own],
                "opacity": [1.0 if point["average"] else 0.45 for point in own],
                "symbol": ["diamond" if point["average"] else "circle" for point in own],
            },
            text=[literal(point["name"]) for point in own],
            hovertemplate="%{text}: kept %{x:.1f} %, forgotten %{y:.1f} %<extra>" + literal(group) + "</extra>",
        )
    axes(figure, x_title, y_title, 360, legend=True)
    figure.update_xaxes(ticksuffix=" %")
    figure.update_yaxes(ticksuffix=" %")
    figure.update_layout(legend={"itemsizing": "constant"})
    return figure


def against_null(rows: Sequence[Mapping[str, Any]], *, x_title: str) -> go.Figure:
    """Estimates with their intervals, each above its null.

    Args:
        rows: each with ``of``, ``value``, ``low``, ``high``, and ``null``, ``null_low``, ``null_high`` if it has one.
        x_title: what is estimated, with its unit.
    """
    figure = go.Figure()
    for name, key, ends, colour, symbol in (
        ("estimate", "value", ("low", "high"), PALETTE[0], "circle"),
        ("null", "null", ("null_low", "null_high"), MUTED, "line-ns-open"),
    ):
        values, lows, highs = (
            np.array([np.nan if row.get(k) is None else float(row[k]) for row in rows]) for k in (key, *ends)
        )
        figure.add_scatter(
            x=numbers(values),
            y=[literal(row["of"]) for row in rows],
            name=name,
            mode="markers",
            marker={"size": 10, "color": colour, "symbol": symbol},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": numbers(highs - values),
                "arrayminus": numbers(values - lows),
                "color": colour,
                "thickness": 1.5,
            },
            hovertemplate="%{y}: %{x:.3g}<extra>" + name + "</extra>",
        )
    axes(figure, x_title, "", 110 + 34 * len(rows), legend=True)
    figure.update_xaxes(zeroline=True, rangemode="tozero")
    figure.update_yaxes(type="category", autorange="reversed", showgrid=True)
    figure.update_layout(scattermode="group", scattergap=0.6)
    return figure
