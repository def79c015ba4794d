"""The Streamlit dashboard: browses a run's prebuilt feature bundle and result files, never the model.

``launch`` starts it, ``Home.py`` is the script that Streamlit runs, ``app_pages`` holds one plain script a
page. What can be computed without Streamlit (charts, tiles, links) is in modules that do not import it.
"""
