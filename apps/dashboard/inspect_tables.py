"""Inspect's tables: what is on in the selection, over all steps, and beside a second image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import streamlit as st

from apps.dashboard import figures, inspected, links, readers, shell, tiles
from apps.dashboard.address import Address, changed, go, widget
from apps.dashboard.chart_style import CONFIG
from apps.dashboard.inspected import N_ROWS, TOP, Shown, Subject
from apps.dashboard.shell import Opened
from apps.inspecting import Corpus, compare, measure
from apps.inspecting.region import WHOLE

Others = Mapping[str, Callable[[int], Subject]]
"""Name of a kind of second image -> the image of a number; a kind that has only one ignores the number."""
HIDDEN, SEEN = "hidden", "shown"
SORT_HELP = (
    "Activation: the largest in the selected cells. Share: of the summed code there. Surprise, in bits: "
    "log2((a + e) / (m + e)) with a the mean activation in the cells, m the mean over all images and cells at this "
    "step, and e a hundredth of the feature's 99th percentile; a counts up to that percentile."
)
_NOTHING = "nothing"
_FEATURE = st.column_config.LinkColumn(
    "Feature", display_text=r"f=(\d+)", width=65, pinned=True, help="Opens the feature's page."
)


def top_features(shown: Shown) -> None:
    """The features that are on in the selection; a row's box shows its map."""
    if not len(shown.top):
        _nothing(shown.n_hidden)
        return
    n = min(N_ROWS, len(shown.top))
    st.caption(
        f"{len(shown.top):,} features are on in the selection at this step"
        + (f"; the first {n} are shown" if n < len(shown.top) else "")
        + (f"; {shown.n_hidden:,} dense ones are hidden" if shown.n_hidden else "")
        + ". The box before a row shows its map, the number opens its page."
    )
    features = shown.top[:n]
    key = f"in_table_{hash(features.tobytes())}"  # a new table for new rows, so that no old row stays selected
    st.dataframe(
        inspected.table(shown),
        hide_index=True,
        height=min(560, 35 * (n + 1) + 3),
        on_select=partial(_chosen, key, tuple(features.tolist())),
        selection_mode="single-row",
        column_config=_columns(shown.axis.unit),
        key=key,
        alt=f"The {n} features with the largest {shown.sort} in the selection",
    )


def _nothing(n_hidden: int) -> None:
    """An empty table, and what would fill it."""
    if n_hidden:
        st.info(
            f"Only dense features are on here, and they are hidden: {n_hidden:,}.", icon=":material/filter_alt_off:"
        )
        st.button("Show dense features", on_click=go, args=(links.DENSE, SEEN), key="in_relax")
    else:
        st.info("No feature is on in these cells at this step.", icon=":material/filter_alt_off:")
        st.button("Select the whole image", on_click=go, args=(links.CELLS, WHOLE), key="in_relax")


def _chosen(key: str, features: Sequence[int]) -> None:
    """Callback of the table: the map of a row's feature is shown, that of the first without a row."""
    rows = st.session_state[key]["selection"]["rows"]
    go(links.SHOWN, features[rows[0]] if rows else TOP)


def _columns(unit: str) -> dict[str, Any]:
    number, text = st.column_config.NumberColumn, st.column_config.TextColumn
    return {
        "Feature": _FEATURE,
        "Label": text(
            width=130,
            help="Where it comes from: of the labels of the run's prompts, the one that the feature tells best.",
        ),
        "AUC": number(format="%.2f", width=50, help="How well it tells that label; 0.5 = chance."),
        "Activation": number(format="%.2f", width=80, help="Largest in the selected cells at this step."),
        "Share": number(format="%.1f %%", width=65, help="Of the summed code in the selected cells."),
        "Surprise": number(format="%+.1f", width=75, help=SORT_HELP),
        "First on": text(width=70, help=f"First {unit} at which it is on in the selected cells."),
        "State": text(width=60),
    }


def over_steps(shown: Shown) -> None:
    """The first features of the table over all steps, on one colour scale."""
    names, values = inspected.raster(shown)
    st.subheader("Over denoising time", anchor=False)
    figure = figures.concept_heatmap(shown.axis, names, values, colour_title="mean activation", marked=shown.step)
    st.plotly_chart(
        figure, config=CONFIG, key="in_raster", alt=f"Mean activation of {len(names)} features at every step"
    )
    st.caption(
        f"The first {len(names)} features of the table: mean activation in the selected cells at every step, all on "
        "one colour scale. The dotted line is the step shown above."
    )


def beside(opened: Opened, shown: Shown, others: Others, address: Address) -> None:
    """The same cells at the same step of a second image: what both have, and what only one has."""
    st.subheader("Beside a second image", anchor=False)
    names = (_NOTHING, *others)
    against = address.one_of(links.AGAINST, what="second image", choices=names, default=_NOTHING)
    last, second = readers.opened_store(opened.run).spec.n_samples - 1, 0
    if against == "sample":
        second = address.whole_number(links.SECOND, what="sample", low=0, high=last, default=min(1, last))
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        st.segmented_control(
            "Compare with",
            list(names),
            key=widget(links.AGAINST),
            on_change=changed,
            args=(links.AGAINST,),
            required=True,
        )
        if against == "sample":
            st.number_input(
                "Sample B", 0, last, key=widget(links.SECOND), on_change=changed, args=(links.SECOND,), width=150
            )
    if against != _NOTHING:
        with shell.reading("The second image"):
            _compared(shown, others[against](second))


def _compared(shown: Shown, other: Subject) -> None:
    if shown.branch not in other.branches:
        st.caption(f"It has no branch {shown.branch}.")
        return
    image, what = other.picture(shown.bundle.steps[shown.step])
    with st.container(horizontal=True, vertical_alignment="center"):
        if image is not None:
            st.image(tiles.jpeg(image), width=96, alt=f"B: {what}")
        with st.container(gap="xxsmall"):
            st.text(f"B: {other.prompt}")
            st.caption(shell.problem_text(f"{other.name} · seed {other.seed} · {other.about}"))
    a = shown.found.mean
    b = measure(other.codes(shown.branch), shown.region.tokens, shown.step, Corpus.of(shown.bundle)).mean
    number = st.column_config.NumberColumn(
        format="%.2f", width=60, help="Mean activation in the selected cells at this step."
    )
    parts = zip(
        st.columns(3),
        ("On in both", "Only in A", "Only in B"),
        compare(a, b, shown.keep),
        ({"A": a, "B": b}, {"A": a}, {"B": b}),
        strict=True,
    )
    for column, title, features, means in parts:
        with column:
            st.markdown(f"**{title}** · {len(features):,}")
            st.dataframe(
                inspected.compared_table(shown, features, **means),
                hide_index=True,
                height=min(300, 35 * (max(1, len(features)) + 1) + 3),
                column_config={"Feature": _FEATURE, "A": number, "B": number},
                key=f"in_compare_{title}",
                alt=f"{title}: {len(features)} features",
            )
