"""A picture whose cells can be chosen: the image below, an invisible marker in every cell, the chosen rectangle around.

A marker's custom data is the number of its cell. No Streamlit, no state.
"""

from __future__ import annotations

from base64 import b64encode

import numpy as np
import plotly.graph_objects as go

from apps.inspecting import Region


def cell_picker(picture: bytes, heat: np.ndarray, region: Region, *, height: int = 430) -> go.Figure:
    """The picture under its cells; a click chooses a cell, a drag a rectangle.

    Args:
        picture: JPEG file that covers the whole grid.
        heat: (h, w) activation, for the text when pointed at.
        region: what is chosen.
        height: pixels.
    """
    rows, columns = heat.shape
    figure = go.Figure()
    figure.add_layout_image(
        source=f"data:image/jpeg;base64,{b64encode(picture).decode()}",
        xref="x",
        yref="y",
        x=-0.5,
        y=-0.5,
        sizex=columns,
        sizey=rows,
        sizing="stretch",
        layer="below",
    )
    row, column = np.divmod(np.arange(heat.size), columns)
    unseen = {"marker": {"opacity": 0}}
    figure.add_scattergl(
        x=column.tolist(),
        y=row.tolist(),
        customdata=np.arange(heat.size).tolist(),
        text=[f"row {r}, column {c}: {z:.3g}" for r, c, z in zip(row, column, heat.ravel(), strict=True)],
        mode="markers",
        marker={"symbol": "square", "size": max(4, round(0.8 * height / max(rows, columns))), "opacity": 0},
        selected=unseen,
        unselected=unseen,
        hovertemplate="%{text}<extra></extra>",
    )
    if region != Region.whole(region.grid):
        # Dark under light, so that the frame is seen on any picture.
        for colour, width in (("rgba(0,0,0,0.75)", 5), ("#ffffff", 2)):
            figure.add_shape(
                type="rect",
                x0=region.columns[0] - 0.5,
                x1=region.columns[1] + 0.5,
                y0=region.rows[0] - 0.5,
                y1=region.rows[1] + 0.5,
                line={"color": colour, "width": width},
            )
    figure.update_layout(
        height=height,
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        showlegend=False,
        dragmode="select",
        clickmode="event+select",
        hovermode="closest",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        newselection={"line": {"color": "#ffffff", "width": 1}},
    )
    hidden = {"visible": False, "constrain": "domain"}
    figure.update_xaxes(range=[-0.5, columns - 0.5], **hidden)
    figure.update_yaxes(range=[rows - 0.5, -0.5], scaleanchor="x", scaleratio=1, **hidden)
    return figure
