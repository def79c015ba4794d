"""Charts over sites and denoising time: curves with their intervals, and maps whose doubtful cells are marked.

Like ``figures``: no Streamlit, no state, and every axis says what it shows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from apps.dashboard.chart_style import MUTED, SEQUENTIAL, axes, band, colours, literal, numbers
from apps.dashboard.result_figures import Curve
from apps.dashboard.timeaxis import TimeAxis

_MOST_TICKS = 25


def bands(
    axis: TimeAxis,
    curves: Sequence[Curve],
    *,
    y_title: str,
    y_range: tuple[float, float] | None = None,
    marked: int | None = None,
    height: int = 300,
) -> go.Figure:
    """Curves over denoising time, each with its interval as a band.

    Args:
        axis: positions of the steps.
        curves: one value a step; NaN leaves a gap, and a muted one is a control.
        y_title: what the values are, with their unit.
        y_range: fixed limits, or None for the data's own.
        marked: index of a step to mark, or None.
        height: pixels.
    """
    figure = go.Figure()
    x, hover = list(axis.values), [axis.label(i) for i in range(len(axis.steps))]
    for curve, colour in zip(curves, colours(len(curves)), strict=True):
        colour = MUTED if curve.muted else colour
        if curve.lows is not None and curve.highs is not None:
            band(figure, x, curve.lows, curve.highs, colour)
        figure.add_scatter(
            x=x,
            y=numbers(curve.values),
            name=literal(curve.name),
            mode="lines+markers",
            connectgaps=True,
            line={"color": colour, "width": 2, "dash": "dot" if curve.muted else "solid"},
            marker={"size": 6},
            text=hover,
            hovertemplate="%{y:.3g}<br>%{text}<extra>" + literal(curve.name) + "</extra>",
        )
    if marked is not None:
        figure.add_vline(x=axis.values[marked], line={"color": MUTED, "width": 1, "dash": "dot"})
    axes(figure, axis.title, y_title, height, legend=len(curves) > 1)
    figure.update_xaxes(autorange="reversed" if axis.reversed else True)
    figure.update_yaxes(range=list(y_range) if y_range else None, zeroline=True)
    return figure


def grid(
    axis: TimeAxis,
    rows: Sequence[str],
    values: np.ndarray,
    *,
    colour_title: str,
    top: float | None = None,
    marks: Sequence[tuple[int, int, str]] = (),
    texts: Sequence[Sequence[str]] | None = None,
) -> go.Figure:
    """Rows x denoising time as colour, from 0; cells without a value stay empty, marked ones carry a cross.

    Args:
        axis: positions of the steps.
        rows: names, first at the top.
        values: (n_rows, n_steps); NaN where there is none.
        colour_title: what the colour is.
        top: value of the full colour; the largest there is if None.
        marks: (row, step index, why) of cells not to be trusted.
        texts: (n_rows, n_steps) what a cell says when pointed at; its value if None.
    """
    values = np.asarray(values, float)
    names = [literal(name) for name in rows]
    steps = [axis.short(i) for i in range(len(axis.steps))]
    every = max(1, -(-len(steps) // _MOST_TICKS))
    largest = float(np.nanmax(values)) if np.isfinite(values).any() else 0.0
    said = texts or [[f"{v:.3g}" if np.isfinite(v) else "no value" for v in row] for row in values]
    figure = go.Figure(
        go.Heatmap(
            x=list(range(len(steps))),  # places, not names: two steps may look alike in a unit
            y=list(range(len(names))),
            z=[numbers(row) for row in values],
            zmin=0.0,
            zmax=(largest or 1.0) if top is None else top,
            colorscale=SEQUENTIAL,
            xgap=1,
            ygap=1,
            colorbar={"title": {"text": colour_title, "side": "right"}, "thickness": 10, "outlinewidth": 0},
            text=[
                [f"{names[r]}, {literal(axis.label(i))}: {literal(cell)}" for i, cell in enumerate(row)]
                for r, row in enumerate(said)
            ],
            hovertemplate="%{text}<extra></extra>",
            hoverongaps=False,
        )
    )
    if marks:
        figure.add_scatter(
            x=[i for _, i, _ in marks],
            y=[r for r, _, _ in marks],
            text=[f"{names[r]}, {literal(axis.label(i))}: {literal(why)}" for r, i, why in marks],
            mode="markers",
            marker={"symbol": "x-thin", "size": 12, "line": {"width": 2, "color": "#c94432"}},
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
        )
    axes(figure, axis.title, "", 100 + 30 * len(rows))
    figure.update_xaxes(
        tickvals=list(range(0, len(steps), every)), ticktext=steps[::every], showgrid=False, zeroline=False
    )
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=names, autorange="reversed", showgrid=False, zeroline=False
    )
    return figure
