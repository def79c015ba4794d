"""Pages of the dashboard: plain scripts, run by ``st.navigation``."""
