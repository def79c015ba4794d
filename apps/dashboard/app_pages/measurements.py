"""Measurements: every file of results in the run, as tables and charts with their intervals."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np
import streamlit as st

from apps.dashboard import figures, findings, links, result_figures, shell, tables
from apps.dashboard.chart_style import CONFIG
from apps.dashboard.findings import Finding
from apps.dashboard.shell import provenance, reading

_MOST_LINES = 40  # lines of a chart that can still be read


def empty(place: str) -> None:
    """What can be measured, and how."""
    run = shlex.quote(place)
    st.markdown("There are no results here yet. Commands write them; give them an `--out` in this folder:")
    st.code(
        f"denoscope sae eval {run}\n"
        f"denoscope info mi --images canvas:8 --words object colour --out {run}/info\n"
        f"denoscope lens segment --images canvas:4 --out {run}/segments.png\n"
        f"denoscope bench canvas --quick --out {run}/canvas.json",
        language="bash",
    )


def part(finding: Finding, name: str, rows: list[Mapping[str, Any]]) -> None:
    """One kind of rows: a chart of the first value with an interval, and all values."""
    if name:
        st.subheader(name.replace("_", " ").capitalize(), anchor=False)
    columns = tables.COLUMNS.get(finding.kind, ())
    body, common = tables.table(rows, columns)
    key = tables.headline(rows)
    labels = [tables.label(row, rows) for row in rows]
    if finding.kind in tables.MATRICES:
        row_name, what, factors = tables.MATRICES[finding.kind]
        values = np.array([[row.get(f"{what}_{factor}") for factor in factors] for row in rows], float)
        st.plotly_chart(
            figures.signed_matrix([str(row.get(row_name)) for row in rows], factors, values, colour_title=what),
            config=CONFIG,
            key=f"me_{name}",
            alt=f"{what} of each {row_name} for each factor, as in the table",
        )
    elif key is not None and 1 < len(rows) <= _MOST_LINES and len(set(labels)) == len(rows):
        ends = (tables.bound(key, "low"), tables.bound(key, "high"))
        values, lows, highs = ([float(row[k]) for row in rows] for k in (key, *ends))
        title = tables.name(key)
        st.plotly_chart(
            result_figures.estimates(labels, values, lows, highs, x_title=f"{title}, with 95 % interval"),
            config=CONFIG,
            key=f"me_{name}",
            alt=f"{title} of each row with its interval, as in the table",
        )
    st.dataframe(body, hide_index=True, alt=f"Measurements: {name or finding.title}")
    if common:
        st.caption(shell.problem_text("In all rows: " + ", ".join(f"{k} {v}" for k, v in common.items() if v) + "."))


def page() -> None:
    """The whole page."""
    opened = shell.opened()
    st.title("Measurements", anchor=False)
    with reading("The results"):
        listed = shell.found()
        if not listed:
            empty(str(opened.run.folder))
            return
        finding = shell.choose(links.RESULT, "File", "file", listed)
        st.header(shell.problem_text(finding.title), anchor=False)
        if finding.kind in findings.ABOUT:
            st.caption(findings.ABOUT[finding.kind])
        if finding.picture is not None:
            st.image(finding.picture.read_bytes(), width="content", alt=f"The sheet of {finding.title}")
        for name, rows in tables.parts(finding.rows).items():
            part(finding, name, rows)
        if not finding.kind:
            flat = {k: tables.number(v) for k, v in finding.record.items() if not isinstance(v, dict)}
            short = {k: v for k, v in flat.items() if len(v) < 200}
            st.dataframe([{"": tables.name(k), "value": v} for k, v in short.items()], hide_index=True, alt="Numbers")
        elif finding.record["ratios"]:
            with st.expander("Numbers by name, as the documents quote them", icon=":material/list:"):
                st.dataframe(
                    [{"name": k, "value": tables.number(v)} for k, v in finding.record["ratios"].items()],
                    hide_index=True,
                    alt="Named numbers of the measurement",
                )
        provenance(*shell.made_from(finding))


page()
