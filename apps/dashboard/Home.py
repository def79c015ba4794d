"""The script that Streamlit runs: page frame, run and navigation. Start it with ``denoscope app RUN``."""

from __future__ import annotations

import streamlit as st

from apps.dashboard import shell

st.set_page_config(page_title="denoscope", page_icon=":material/biotech:", layout="wide")
page = st.navigation(
    {
        "Explore": [
            st.Page(shell.HOME_PAGE, title="Home", icon=":material/home:", default=True),
            st.Page(shell.FEATURE_PAGE, title="Feature", icon=":material/blur_on:"),
            st.Page(shell.INSPECT_PAGE, title="Inspect", icon=":material/search:"),
            st.Page(shell.DIRECTIONS_PAGE, title="Directions", icon=":material/arrow_outward:"),
        ],
        "Results": [
            st.Page(shell.UNLEARNING_PAGE, title="Unlearning", icon=":material/ink_eraser:"),
            st.Page(shell.STEERING_PAGE, title="Steering", icon=":material/tune:"),
            st.Page(shell.MEASUREMENTS_PAGE, title="Measurements", icon=":material/straighten:"),
        ],
        "Analyse": [
            st.Page(shell.INFORMATION_PAGE, title="Information", icon=":material/grid_on:"),
            st.Page(shell.HEALTH_PAGE, title="Health", icon=":material/monitor_heart:"),
        ],
        "Keep": [
            st.Page(shell.COMPARE_PAGE, title="Compare", icon=":material/compare_arrows:"),
            st.Page(shell.LISTS_PAGE, title="Lists", icon=":material/star:"),
        ],
    }
)
shell.open_run()
page.run()
