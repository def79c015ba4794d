"""Unlearning: what was forgotten, what survived, before and after, and the methods side by side."""

from __future__ import annotations

import shlex

import streamlit as st

from apps.dashboard import links, readers, result_figures, results, shell
from apps.dashboard.address import Address, changed, widget
from apps.dashboard.chart_style import CONFIG
from apps.dashboard.findings import Finding
from apps.dashboard.shell import Opened, provenance, reading


def empty(opened: Opened) -> None:
    """How to unlearn."""
    run = shlex.quote(str(opened.run.folder))
    st.markdown("Nothing has been unlearned in this run. Unlearn one object of canvas and score it:")
    st.code(f"denoscope unlearn --run {run} --object star", language="bash")
    st.markdown("Or several methods on the same prompts, seeds and judge:")
    st.code(f"denoscope bench unlearn --quick --out {run}/unlearn-bench.json", language="bash")


def meanings() -> None:
    """What the columns say."""
    told = (f"**{results.METRICS[metric]}**: {text}." for metric, text in results.MEANINGS.items())
    st.caption("\n\n".join(told))


def targets(finding: Finding) -> None:
    """Each target, edited and unedited."""
    found = results.scores(finding.rows)
    st.dataframe(results.table(found), hide_index=True, alt="Unlearning scores with 95 % intervals")
    left, right = st.columns([3, 2], vertical_alignment="center")
    with left:
        st.plotly_chart(
            result_figures.intervals(results.chart_rows(found), x_title="share, with 95 % interval"),
            config=CONFIG,
            key="un_scores",
            alt="Scores of the edited models with their intervals, as in the table",
        )
    with right:
        meanings()


def methods(finding: Finding) -> None:
    """The methods of ``denoscope bench unlearn`` beside each other."""
    rows = results.methods(finding.rows)
    st.dataframe(results.method_table(rows), hide_index=True, alt="Mean scores of each method")
    factors = list(dict.fromkeys(row["factor"] for row in rows))
    for factor, column in zip(factors, st.columns(len(factors)), strict=True):
        with column:
            st.plotly_chart(
                result_figures.frontier(
                    results.frontier(finding.rows, factor),
                    x_title=f"kept: mean of IRA and CRA ({factor}s)",
                    y_title="forgotten: UA",
                ),
                config=CONFIG,
                key=f"un_frontier_{factor}",
                alt=f"Forgotten against kept for each method, {factor}s",
            )
    st.caption("Large: mean of a method. Small: its single targets. The upper right corner is best.")
    meanings()


def pictures(opened: Opened) -> None:
    """The same prompt and seed, unedited and edited."""
    names = readers.unlearned(opened.run)
    if not names:
        return
    st.subheader("Before and after", anchor=False)
    address = Address()
    name = address.one_of(links.EDIT, what="edit", choices=names, default=names[0])
    st.segmented_control(
        "Edit", names, key=widget(links.EDIT), on_change=changed, args=(links.EDIT,), required=True,
        format_func=lambda name: f"without {name.partition('-')[2] or name}", label_visibility="collapsed",
    )  # fmt: skip
    address.save()
    shell.tell(address)
    shown = readers.before_after(opened.run, name)
    if shown is None:
        st.caption("The pictures of this edit were not kept.")
        return
    sheet, prompts = shown
    st.image(sheet, width="content", alt="Unedited pictures above, edited ones below")
    st.caption("Same prompt and same noise above and below: some prompts ask for it, the others must stay as they are.")
    with st.expander("Prompts, from left to right", icon=":material/notes:"):
        st.text("\n".join(prompts))
    if name in opened.run.recipes():
        recipe = shlex.quote(str(opened.run.recipe(name)))
        st.caption("The edit is a recipe; use it on any prompt:")
        st.code(f"denoscope generate --prompt '{prompts[0]}' --recipe {recipe} --out edited.png", language="bash")


def page() -> None:
    """The whole page."""
    opened = shell.opened()
    st.title("Unlearning", anchor=False)
    st.caption(
        "A concept is removed by an edit while the model generates; an independent judge scores other prompts and "
        "seeds than those that chose the settings."
    )
    with reading("The results"):
        listed = [finding for finding in shell.found() if results.scores(finding.rows)]
        if not listed:
            empty(opened)
            return
        finding = shell.choose(links.UNLEARNED, "Results", "file", listed)
        if results.methods(finding.rows):
            methods(finding)
        else:
            targets(finding)
            pictures(opened)
        st.caption(
            "Not told here: whether the concept comes back under attack (`denoscope audit`, "
            "`denoscope bench unlearn --attacks`), and what comes in its place: look at the pictures."
        )
        provenance(*shell.made_from(finding))


page()
