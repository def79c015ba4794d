"""Information: what activations tell about labels, by site and step, and words about images; with nulls and doubts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import streamlit as st

from apps.dashboard import band_figures, findings, information, links, readers, result_figures, shell, tables
from apps.dashboard.address import Address, changed, widget
from apps.dashboard.chart_style import CONFIG
from apps.dashboard.findings import Finding
from apps.dashboard.information import FORMS, SITE, WORDS, Grid
from apps.dashboard.result_figures import Curve
from apps.dashboard.shell import MEASUREMENTS_PAGE, Opened, provenance, reading
from apps.dashboard.timeaxis import TimeAxis

Rows = Sequence[Mapping[str, Any]]


def empty(opened: Opened) -> None:
    """How to measure it."""
    run, store = shlex.quote(str(opened.run.folder)), readers.collected(opened.run)
    factor = store.factors[0] if store and store.factors else "LABEL"
    st.markdown(
        "No information has been measured in this folder. What sites tell about labels takes minutes without a GPU; it "
        "says how long before it begins:"
    )
    st.code(
        f"denoscope info site {run} --tell {factor} --out {run}/info\n"
        f"denoscope info mi --images canvas:8 --words object colour --out {run}/words\n"
        f"denoscope info pid --images canvas:8 --words object colour --out {run}/words",
        language="bash",
    )


def time_of(opened: Opened, grid: Grid) -> TimeAxis:
    """The time axis of a file's steps; t comes from the store that it was measured on."""
    records = readers.store_records(opened.run)
    if records is not None and grid.steps[-1] < len(records.timesteps):
        return shell.time_axis(grid.steps, tuple(records.timesteps[step] for step in grid.steps), grid.log_snr)
    unit = "step" if opened.unit == "t" else opened.unit
    return TimeAxis(grid.steps, tuple(float("nan") for _ in grid.steps), grid.log_snr, unit)


def sites(opened: Opened, finding: Finding) -> None:
    """Maps of both forms on one scale, then one cell: its curve, its numbers and its checks."""
    rows, address = finding.rows, Address()
    labels = information.told(rows)
    what = address.one_of(links.TOLD, what="label", choices=labels, default=labels[0])
    if len(labels) > 1:
        st.segmented_control(
            "Told of",
            labels,
            key=widget(links.TOLD),
            on_change=changed,
            args=(links.TOLD,),
            required=True,
        )
    grids = [information.site_grid(rows, what, form) for form in FORMS]
    axis = time_of(opened, grids[0])
    tops = [float(row["at_most"]) for row in rows if row["told"] == what and row.get("at_most") is not None]
    top = max(tops) if tops else float(np.nanmax([grid.values for grid in grids], initial=0.01))
    for column, form, grid in zip(st.columns(2), FORMS, grids, strict=True):
        with column:
            st.subheader(f"{form.capitalize()} form", anchor=False)
            figure = band_figures.grid(axis, grid.sites, grid.values, colour_title="nats", top=top, marks=grid.doubts)
            st.plotly_chart(
                figure, config=CONFIG, key=f"if_{form}", alt=f"Information about {what} by site and step, {form} form"
            )
            n = int(np.isfinite(grid.values).sum())
            st.caption(shell.problem_text(information.counted(grid.doubts, n)))
    st.caption(
        "A cross marks a cell that does not pass every check; point at it to read why. "
        + (f"The full colour is {top:.2f} nats, the entropy of the labels: more cannot be told. " if tops else "")
        + "The two forms err differently, so look at both: see the numbers of a cell below."
    )
    cell(address, rows, what, grids[0], axis)
    address.save()
    shell.tell(address)


def cell(address: Address, rows: Rows, what: str, grid: Grid, axis: TimeAxis) -> None:
    """One site over the steps, and the numbers of one of its cells."""
    st.subheader("One site over denoising time", anchor=False)
    site = address.one_of(links.PLACE, what="site", choices=grid.sites, default=grid.sites[0])
    names = [str(step) for step in grid.steps]
    step = address.one_of(links.CELL, what="step", choices=names, default=names[0])
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.selectbox("Site", grid.sites, key=widget(links.PLACE), on_change=changed, args=(links.PLACE,), width=320)
        if len(names) > 1:
            st.select_slider(
                "Step",
                names,
                key=widget(links.CELL),
                on_change=changed,
                args=(links.CELL,),
                format_func=lambda name: axis.short(names.index(name)),
            )

    def curve(name: str, key: str, *, ends: bool = True, muted: bool = False) -> Curve:
        keys = (key, f"{key}_low", f"{key}_high") if ends else (key,)
        return Curve(name, *(information.site_curve(rows, what, site, k, grid.steps) for k in keys), muted=muted)

    curves = [curve(f"{form} form", form) for form in FORMS]
    curves.append(curve("null: labels dealt to other samples", "null_standard", muted=True))
    bound = curve("at least (Fano, linear probe)", "at_least", ends=False)
    if np.isfinite(bound.values).any():
        curves.append(bound)
    row = next((r for r in rows if (r["told"], r["site"], str(r["step"])) == (what, site, step)), None)
    left, right = st.columns([5, 4], gap="large")
    with left:
        figure = band_figures.bands(axis, curves, y_title="nats", marked=names.index(step), height=340)
        st.plotly_chart(figure, config=CONFIG, key="if_curve", alt=f"Information about {what} at {site} over steps")
        if row is not None:
            st.caption(f"Bands: 95 % over {row['n']:,} samples that no denoiser was trained on.")
    with right:
        if row is None:
            st.caption(f"Step {step} was not measured at this site.")
            return
        st.markdown(f"**{shell.problem_text(axis.label(names.index(step)))}**")
        st.dataframe(numbers(row), hide_index=True, alt=f"Numbers of {site} at step {step}")
        for form in FORMS:
            found = information.doubts(row, form)
            text = "; ".join(found) if found else "passes every check"
            sign = ":material/close:" if found else ":material/check:"
            st.caption(f"{sign} {form} form: {shell.problem_text(text)}.")


def numbers(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """A cell's values with their intervals."""
    kinds = (
        ("standard", "Standard form, nats"),
        ("null_standard", "its null"),
        ("orthogonal", "Orthogonal form, nats"),
        ("null_orthogonal", "its null"),
        ("at_least", "At least (Fano), nats"),
        ("at_most", "At most: entropy of the labels"),
        ("probe", "Labels that a linear probe reads, share"),
        ("kept", "Variance of the kept components, share"),
        ("n", "Samples measured"),
    )
    return [{"": name, "value": tables.cell(row, key)} for key, name in kinds if row.get(key) is not None]


def words(finding: Finding) -> None:
    """Estimates beside their nulls, what speaks against each, and the maps."""
    shown = information.estimated(finding.rows)
    if shown:
        figure = result_figures.against_null(shown, x_title="share, or nats" if "classify" in finding.kind else "nats")
        st.plotly_chart(figure, config=CONFIG, key="if_words", alt=f"{finding.title}: estimates beside their nulls")
        st.dataframe(
            [
                {
                    "Of": str(row["of"]),
                    "Estimate": tables.cell(row, "value"),
                    "Null": tables.cell(row, "null"),
                    "Images": tables.number(row.get("n")),
                    "Doubts": "; ".join(information.word_doubts(row)) or "none",
                }
                for row in shown
            ],
            hide_index=True,
            alt=f"{finding.title}: estimates, nulls and doubts",
        )
        if finding.kind == "info.pid":
            st.caption(
                "Redundancy, unique parts and synergy are parts of the three numbers above them and have no null of "
                "their own; their intervals are over images."
            )
    st.page_link(
        MEASUREMENTS_PAGE,
        label="All numbers of this file",
        icon=":material/straighten:",
        query_params={links.RESULT: finding.label},
    )
    if finding.picture is not None:
        st.subheader("Maps", anchor=False)
        st.image(finding.picture.read_bytes(), width="content", alt=f"Maps of {finding.title}")
        st.caption("Each map is on its own scale, so compare shapes and not strengths. Null: another image's word.")


def copy(finding: Finding) -> None:
    """The same in Python."""
    with st.expander("The same in Python", icon=":material/code:"):
        st.code(
            "import pandas as pd\n\nfrom apps.measurement import read_measurement\n\n"
            f"pd.DataFrame(read_measurement({str(finding.path)!r})['rows'])",
            language="python",
        )


def page(opened: Opened) -> None:
    """The whole page."""
    st.title("Information", anchor=False)
    with reading("The results"):
        listed = sorted(
            (found for found in shell.found() if found.kind in (SITE, *WORDS) and found.rows),
            key=lambda found: (SITE, *WORDS).index(found.kind),
        )
        if not listed:
            empty(opened)
            return
        finding = shell.choose(links.INFO, "File", "file", listed)
        st.header(shell.problem_text(finding.title), anchor=False)
        st.caption(findings.ABOUT[finding.kind])
        if finding.kind == SITE:
            sites(opened, finding)
        else:
            words(finding)
        copy(finding)
        provenance(*shell.made_from(finding))


page(shell.opened())
