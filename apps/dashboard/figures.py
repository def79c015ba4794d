"""Charts of features as Plotly figures, from arrays. No Streamlit, no state: the same arguments give the same figure.

Every axis says what it shows and in which unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from apps.dashboard.chart_style import MUTED, PALETTE, SEQUENTIAL, SIGNED, axes, colours, literal, numbers
from apps.dashboard.timeaxis import TimeAxis


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
    for (name, values), colour in zip(lines.items(), colours(len(lines)), strict=True):
        figure.add_scatter(
            x=list(axis.values),
            y=numbers(values),
            name=name,
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"size": 5},
            text=hover,
            hovertemplate="%{y:.3g}<br>%{text}<extra>" + literal(name) + "</extra>",
        )
    if marked is not None:
        figure.add_vline(x=axis.values[marked], line={"color": MUTED, "width": 1, "dash": "dot"})
    axes(figure, axis.title, y_title, height, legend=len(lines) > 1)
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
    names = [literal(concepts[i]) for i in order]
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
    axes(figure, "", "", 70 + 25 * len(concepts))
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
            y=[literal(name) for name in concepts],
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
    axes(figure, axis.title, "", 80 + 22 * len(concepts))
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
            x=[literal(name) for name in columns],
            y=[literal(name) for name in rows],
            z=[numbers(row) for row in np.asarray(values, float)],
            zmin=-1.0,
            zmax=1.0,
            colorscale=SIGNED,
            xgap=1,
            ygap=1,
            colorbar={"title": {"text": colour_title, "side": "right"}, "thickness": 10, "outlinewidth": 0},
            hovertemplate="%{y}, %{x}: %{z:.2f}<extra></extra>",
        )
    )
    axes(figure, x_title, y_title, 120 + 24 * len(rows))
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
    for (name, points), colour in zip(groups.items(), colours(len(groups)), strict=True):
        figure.add_scattergl(
            x=[x for _, x, _, _ in points],
            y=[y for _, _, y, _ in points],
            customdata=[feature for feature, _, _, _ in points],
            text=[literal(text) for *_, text in points],
            name=literal(name),
            mode="markers",
            marker={"color": colour, "size": 9, "opacity": 0.8},
            hovertemplate="feature %{customdata}<br>%{text}<extra></extra>",
        )
    axes(figure, "", "", height, legend=True)
    figure.update_layout(dragmode="pan")
    figure.update_xaxes(showticklabels=False, showgrid=False, zeroline=False)
    figure.update_yaxes(showticklabels=False, showgrid=False, zeroline=False)
    return figure


def sample_scatter(x: np.ndarray, y: np.ndarray, *, x_title: str, y_title: str, height: int = 320) -> go.Figure:
    """One point a sample: how strongly two features are on in it.

    Args:
        x, y: (n,) activations >= 0.
        x_title, y_title: whose they are.
        height: pixels.
    """
    figure = go.Figure(
        go.Scattergl(
            x=numbers(x),
            y=numbers(y),
            mode="markers",
            marker={"color": PALETTE[0], "size": 6, "opacity": 0.5},
            hovertemplate="%{x:.3g}, %{y:.3g}<extra></extra>",
        )
    )
    axes(figure, x_title, y_title, height)
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(rangemode="tozero")
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
    axes(figure, "density: share of rows in which the feature is on", "features", height)
    figure.update_layout(margin={"t": 26})
    low = int(np.floor(alive.min())) if alive.size else -5
    figure.update_xaxes(tickvals=list(range(low, 1)), ticktext=[_power(p) for p in range(low, 1)], range=[low, 0.05])
    figure.update_layout(bargap=0.08)
    return figure


def _power(exponent: int) -> str:
    return {0: "1", -1: "0.1", -2: "0.01", -3: "0.001"}.get(exponent, f"1e{exponent}")
