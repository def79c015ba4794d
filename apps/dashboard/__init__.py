"""The Streamlit dashboard: browses a run's prebuilt feature bundle and result files. A model is loaded by one button of
one page alone (``own_prompt.py``), and its code stays outside this package (``apps.inspecting``).

``launch`` starts it, ``Home.py`` is the script that Streamlit runs, ``app_pages`` holds one plain script a
page. What can be computed without Streamlit (charts, tiles, links) is in modules that do not import it.
"""
