"""The script that Streamlit runs: page frame, run and navigation. Start it with ``denoscope app RUN``."""

from __future__ import annotations

import streamlit as st

from apps.dashboard import shell

st.set_page_config(page_title="denoscope", page_icon=":material/biotech:", layout="wide")
page = st.navigation(
    [
        st.Page(shell.HOME_PAGE, title="Home", icon=":material/home:", default=True),
        st.Page(shell.FEATURE_PAGE, title="Feature", icon=":material/blur_on:"),
    ]
)
shell.open_run()
page.run()
