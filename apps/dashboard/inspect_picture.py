"""Inspect's picture: the image under the map of one feature, and the cells that are selected on it."""

from __future__ import annotations

from functools import partial

import numpy as np
import streamlit as st

from apps.dashboard import browse, links, shell, tiles
from apps.dashboard.address import changed, go, widget
from apps.dashboard.chart_style import CONFIG
from apps.dashboard.inspect_figures import boxed, cell_picker
from apps.dashboard.inspected import Shown
from apps.dashboard.shell import FEATURE_PAGE
from apps.inspecting import Region
from apps.inspecting.region import WHOLE

_SIDE = 384  # pixels of the picture
_BY = "in_by"
"""Session key of how cells are selected: Streamlit's charts answer to a click or to a drag, not to both."""
_BOX, _CLICK = "drag", "click"


def picture(shown: Shown, look: str) -> None:
    """The picture, whose map it has, and what is selected.

    Args:
        shown: what the page shows.
        look: a key of ``tiles.VIEWS``.
    """
    bundle, feature, region = shown.bundle, shown.feature, shown.region
    image, what = shown.subject.picture(bundle.steps[shown.step])
    heat = np.zeros(shown.codes.grid, np.float32) if feature is None else shown.codes.maps(feature)[shown.step]
    scale = 0.0 if feature is None else float(bundle.stats(feature)["max"]) or float(heat.max())
    drawn = tiles.tile(image, heat, scale=scale, look=tiles.Look(look), side=_SIDE)
    alt = f"{what}, under the map of feature {feature}; selected: {region}"
    if bundle.grid is None:
        _band(drawn, image, alt)
    else:
        by = st.session_state.get(_BY) or _BOX
        key = f"in_pick_{by}_{region}"  # a new chart for a new selection, so that the old box does not stay
        st.plotly_chart(
            cell_picker(tiles.jpeg(drawn), heat, region, drag=by == _BOX),
            config=CONFIG,
            key=key,
            on_select=partial(_picked, key, region.grid),
            selection_mode=("points", "box"),
            alt=alt,
        )
    st.caption(what)
    if feature is not None:
        _scale(shown, feature, scale, float(heat.max()))
    _controls(shown)


def _controls(shown: Shown) -> None:
    """Which cells, and how the map is drawn."""
    rows, columns = shown.codes.grid
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        if shown.bundle.grid is not None:
            st.segmented_control(
                "Select by",
                [_BOX, _CLICK],
                default=_BOX,
                required=True,
                key=_BY,
                help="drag: a rectangle of cells; a short drag inside one selects it. click: one cell.",
            )
        st.text_input(
            "Cells",
            key=widget(links.CELLS),
            on_change=changed,
            args=(links.CELLS,),
            max_chars=40,
            width=110,
            help=f"Rows, then columns, such as 4-7,8-11; or {WHOLE}. The map has {rows} x {columns} cells.",
        )
        st.button(
            "Whole",
            icon=":material/select_all:",
            on_click=go,
            args=(links.CELLS, WHOLE),
            key="in_whole",
            disabled=str(shown.region) == WHOLE,
            help="Select the whole image.",
        )
    st.segmented_control(
        "Show",
        list(tiles.VIEWS),
        format_func=tiles.VIEWS.__getitem__,
        key=widget(links.LOOK),
        on_change=changed,
        args=(links.LOOK,),
        required=True,
        label_visibility="collapsed",
    )


def _band(drawn: np.ndarray, image: np.ndarray | None, alt: str) -> None:
    """A site without a grid: its tokens are no cells of the image, so the map stands beside it."""
    if image is not None:
        st.image(tiles.jpeg(image), width=_SIDE, alt="The image")
    st.image(tiles.jpeg(drawn), width=_SIDE, alt=alt)
    st.caption("The tokens of this site are not cells of the image; they are numbered from left to right in row 0.")


def _scale(shown: Shown, feature: int, scale: float, here: float) -> None:
    """Which feature's map it is, its colours, and the way to its page."""
    row = shown.bundle.stats(feature)
    told = browse.best_factor(row, shown.factors)
    label = f" · {told} {row[f'best_{told}']}, AUC {row[f'auc_{told}']:.2f}" if told else ""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.page_link(
            FEATURE_PAGE,
            label=f"Feature {feature}",
            icon=":material/blur_on:",
            query_params={links.FEATURE: str(feature)},
        )
        st.caption(shell.problem_text(f"up to {here:.2f} here{label}"), width="content")
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption("0", width="content")
        st.image(tiles.colour_bar("heat"), width=120, alt=f"Colour scale from 0 to {scale:.2f}")
        clipped = ", exceeded here" if here > scale else ""
        st.caption(f"{scale:.2f}, its maximum in the corpus{clipped}", width="content")


def _picked(key: str, grid: tuple[int, int]) -> None:
    """Callback of the picture: the cell of a click, or the cells of a drag, go into the address."""
    selection = st.session_state[key]["selection"]
    if selection["box"]:
        box = selection["box"][-1]
        go(links.CELLS, boxed(grid, box["x"], box["y"]))
    elif selection["points"]:  # a selection that was taken back says nothing
        cell = int(selection["points"][-1]["customdata"])
        go(links.CELLS, Region.around(grid, [divmod(cell, grid[1])]))
