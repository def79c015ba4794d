"""The way to every feature: a table with filters, a jump by number, and a map of the dictionary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st

from apps.dashboard import browse, figures, links
from apps.dashboard.chart_style import CONFIG
from apps.dashboard.shell import FEATURE_PAGE

if TYPE_CHECKING:
    import pandas as pd

    from sae import FeatureBundle


def browser(frame: pd.DataFrame, bundle: FeatureBundle) -> None:
    """The sortable table of all features, its filters, and the jump to one."""
    st.subheader("All features")
    labelled = browse.labelled(bundle)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        factor = st.selectbox("Factor", ["any", *labelled], key="home_filter_factor", width=150) if labelled else "any"
        names = list(bundle.concepts[factor]) if factor != "any" else []
        concept = st.selectbox(
            "Best concept", ["any", *names], key="home_filter_concept", width=180, disabled=not names
        )
        least = st.slider("AUC at least", 0.5, 1.0, 0.5, 0.01, key="home_filter_auc", width=180, disabled=not labelled)
        dead = st.toggle("Dead", False, key="home_filter_dead", help="Show features that never fire.")
        dense = st.toggle(
            "Dense",
            True,
            key="home_filter_dense",
            help=f"Show features on in more than {bundle.info['dense_above']:.0%} of all rows.",
        )
    chosen = browse.chosen(frame, labelled, factor=factor, concept=concept, least_auc=least, dead=dead, dense=dense)
    table = browse.table(chosen, labelled, factor)
    if not len(table):
        st.info(
            browse.tightest(frame, labelled, factor=factor, concept=concept, least_auc=least, dead=dead, dense=dense),
            icon=":material/filter_alt_off:",
        )
    else:
        event = st.dataframe(
            table,
            hide_index=True,
            height=420,
            on_select="rerun",
            selection_mode="single-row",
            column_config=_columns(),
            key="home_table",
            alt=f"Table of {len(table)} features with density, activation, best concept and AUC",
        )
        rows = event["selection"]["rows"]  # positions in the table as it was sent, however the reader sorted it
        if rows and rows[0] < len(table):
            st.switch_page(FEATURE_PAGE, query_params={links.FEATURE: str(table["Feature"].tolist()[rows[0]])})
    with st.container(horizontal=True, vertical_alignment="bottom"):
        feature = st.number_input("Open feature", 0, bundle.n_features - 1, 0, 1, key="home_jump", width=160)
        if st.button("Open", key="home_open", type="primary"):
            st.switch_page(FEATURE_PAGE, query_params={links.FEATURE: str(feature)})
        st.caption(
            f"{len(table):,} of {bundle.n_features:,} features. The box before a row opens it, a column's title sorts."
        )


def _columns() -> dict[str, Any]:
    number = st.column_config.NumberColumn
    return {
        "Feature": number(format="%d", width="small", pinned=True),
        "Density": number(format="%.2f %%", width="small", help="Share of rows in which the feature is on."),
        "Images": number(
            format="%.1f %%", width="small", help="Share of images in which it is on anywhere, at any step."
        ),
        "Max": number(format="%.2f", width="small", help="Largest activation, in the units of the site."),
        "Peak step": number(format="%d", width="small", help="Step with the largest mean activation."),
        "Concept": st.column_config.TextColumn(
            help="The concept that its strongest activation in an image tells best."
        ),
        "AUC": st.column_config.ProgressColumn(
            format="%.2f", min_value=0.5, max_value=1.0, help="How well it tells that concept; 0.5 = chance."
        ),
        "Over steps": st.column_config.LineChartColumn(
            y_min=0, y_max=1, help="Mean activation over steps, noise to image, each on its own scale."
        ),
        "State": st.column_config.TextColumn(
            width="small", help="dead: never on. dense: on in more than a tenth of all rows."
        ),
    }


def dictionary_map(frame: pd.DataFrame, bundle: FeatureBundle) -> None:
    """Every living feature as a point; a click opens it."""
    figure = figures.feature_map(browse.map_groups(frame, browse.labelled(bundle)))
    event = st.plotly_chart(
        figure,
        config=CONFIG,
        key="home_map",
        on_select="rerun",
        selection_mode="points",
        alt="Map of the features: neighbours write similar vectors; colour is the factor they tell best",
    )
    st.caption(
        "Each point is a feature, near others whose decoder rows are alike (two principal axes); the colour is the "
        "factor it tells best. A click opens it. A way to look around, not evidence: neighbours in the full space are "
        "on the feature's page."
    )
    if points := event["selection"]["points"]:
        st.switch_page(FEATURE_PAGE, query_params={links.FEATURE: str(points[0]["customdata"])})
