"""A picture whose cells can be chosen: the image below, an invisible marker in every cell, the chosen rectangle around.

A marker's custom data is the number of its cell. No Streamlit, no state.
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from apps.inspecting import Region


def cell_picker(picture: bytes, heat: np.ndarray, region: Region, *, drag: bool = True, height: int = 410) -> go.Figure:
    """The picture under its cells.

    Args:
        picture: JPEG file that covers the whole grid.
        heat: (h, w) activation, for the text when pointed at.
        region: what is chosen.
        drag: whether a drag chooses a rectangle; else a click chooses a cell.
        height: pixels.
    """
    rows, columns = heat.shape
    row, column = np.divmod(np.arange(heat.size), columns)
    unseen = {"marker": {"opacity": 0}}
    cells = {
        "type": "scatter",
        "mode": "markers",
        "x": column.tolist(),
        "y": row.tolist(),
        "customdata": np.arange(heat.size).tolist(),
        "text": [f"row {r}, column {c}: {z:.3g}" for r, c, z in zip(row, column, heat.ravel(), strict=True)],
        "marker": {"symbol": "square", "size": max(4, round(0.8 * height / max(rows, columns))), "opacity": 0},
        "selected": unseen,
        "unselected": unseen,
        "hovertemplate": "%{text}<extra></extra>",
    }
    image = {
        "source": f"data:image/jpeg;base64,{b64encode(picture).decode()}",
        "xref": "x",
        "yref": "y",
        "x": -0.5,
        "y": -0.5,
        "sizex": columns,
        "sizey": rows,
        "sizing": "stretch",
        "layer": "below",
    }
    axis = {"visible": False, "constrain": "domain", "fixedrange": not drag}  # nothing to pan, only to click
    # In one piece: a figure that is built by updates is checked anew at each, which takes four times as long.
    return go.Figure(
        data=[cells],
        layout={
            "height": height,
            "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
            "showlegend": False,
            "dragmode": "select" if drag else "pan",
            "hovermode": "closest",
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "newselection": {"line": {"color": "#ffffff", "width": 1}},
            "images": [image],
            "shapes": [] if region == Region.whole(region.grid) else _frame(region),
            "xaxis": axis | {"range": [-0.5, columns - 0.5]},
            "yaxis": axis | {"range": [rows - 0.5, -0.5], "scaleanchor": "x", "scaleratio": 1},
        },
    )


def _frame(region: Region) -> list[dict[str, Any]]:
    """A rectangle around the chosen cells, dark under light, so that it is seen on any picture."""
    ends: dict[str, Any] = {
        "x0": region.columns[0] - 0.5,
        "x1": region.columns[1] + 0.5,
        "y0": region.rows[0] - 0.5,
        "y1": region.rows[1] + 0.5,
    }
    lines = (("rgba(0,0,0,0.75)", 5), ("#ffffff", 2))
    return [{"type": "rect", "line": {"color": colour, "width": width}} | ends for colour, width in lines]


def boxed(grid: tuple[int, int], x: Sequence[float], y: Sequence[float]) -> Region:
    """The cells whose centres lie in a box that was drawn on the picture; the one under its middle if none does.

    Args:
        grid: (height, width).
        x, y: two ends each, in either order, in units of cells; whole numbers are centres.
    """

    def span(ends: Sequence[float], n: int) -> tuple[int, int]:
        low, high = math.ceil(min(ends)), math.floor(max(ends))
        if high < low:
            low = high = round(sum(ends) / 2)
        return min(max(low, 0), n - 1), min(max(high, 0), n - 1)

    return Region(grid, span(y, grid[0]), span(x, grid[1]))
