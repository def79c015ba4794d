"""What all charts share: colours, axes, and text as Plotly shows it literally.

Colours are mid-tones that read on white and on the dark background; text, grid and font come from the page's theme.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

PALETTE = ("#5b5bd6", "#0d9488", "#c2740c", "#d6336c", "#2b7fd0", "#5a8f29", "#9b51c9", "#8a6d5a")
MUTED = "#8a8a99"
SEQUENTIAL = [[0.0, "rgba(91,91,214,0.05)"], [1.0, "rgba(91,91,214,1)"]]
"""From almost nothing to the house colour; transparent at zero, so it works on both backgrounds."""
SIGNED = [[0.0, "rgba(43,127,208,1)"], [0.5, "rgba(128,128,128,0.06)"], [1.0, "rgba(201,68,50,1)"]]
"""Blue below zero, red above it, almost nothing at zero."""
CONFIG = {"displayModeBar": False}
"""Plotly's own tool bar stays away; Streamlit's has full screen."""


def axes(figure: go.Figure, x_title: str, y_title: str, height: int, *, legend: bool = False) -> None:
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


def colours(n: int) -> list[str]:
    return [PALETTE[i % len(PALETTE)] for i in range(n)]


def band(figure: go.Figure, x: Sequence[float], lows: Sequence[float], highs: Sequence[float], colour: str) -> None:
    """A pale area between two curves, at the places where both are finite.

    Args:
        figure: gets the area.
        x, lows, highs: one value a place.
        colour: ``#rrggbb`` of the line that the area belongs to.
    """
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    there = [i for i in range(len(x)) if np.isfinite(lows[i]) and np.isfinite(highs[i])]
    figure.add_scatter(
        x=[x[i] for i in (*there, *reversed(there))],
        y=[*(float(highs[i]) for i in there), *(float(lows[i]) for i in reversed(there))],
        mode="lines",
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.15)",
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )


def numbers(values: Sequence[float] | np.ndarray) -> list[float | None]:
    """Plain numbers; what is not finite is a gap."""
    return [float(v) if v is not None and np.isfinite(v) else None for v in values]


def literal(text: object) -> str:
    """Text as Plotly shows it literally: its labels would read ``<`` and ``&`` as markup."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
