"""Health: whether the dictionary and the store below it are to be trusted; each warning with its threshold."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from apps.dashboard import band_figures, browse, figures, health, readers, shell
from apps.dashboard.chart_style import CONFIG
from apps.dashboard.health import MISSING, OK, WARNING, Check
from apps.dashboard.result_figures import Curve
from apps.dashboard.shell import Opened, provenance, reading
from apps.dashboard.store_records import StoreRecords

if TYPE_CHECKING:
    import pandas as pd

    from sae import FeatureBundle

_SIGNS = {WARNING: "⚠ warning", OK: "✓ ok", MISSING: "· not measured"}
_READ_HERE = 4 * 10**9  # bytes that a page may read; a larger store is checked by the command
_FOUND = "he_found"


def verdict(checks: Sequence[Check], opened: Opened) -> None:
    """All checks, warnings first, and the commands of what is missing."""
    order = [WARNING, MISSING, OK]
    warned = [check for check in checks if check.state == WARNING]
    if warned:
        lines = [f"- **{c.name}**: {c.found}, warns {c.threshold}. {c.why}" for c in warned]
        st.warning(
            f"{len(warned)} of {len(checks)} checks warn. A threshold says where to look closer; it is no verdict.\n\n"
            + "\n".join(lines),
            icon=":material/warning:",
        )
    else:
        st.success("No check warns.", icon=":material/check:")
    st.dataframe(
        [
            {"State": _SIGNS[c.state], "Check": c.name, "Found": c.found, "Warns when": c.threshold}
            for c in sorted(checks, key=lambda c: order.index(c.state))
        ],
        hide_index=True,
        column_config={"State": st.column_config.TextColumn(width="small")},
        alt=f"{len(checks)} checks, {len(warned)} of them warn",
    )
    run, name = shlex.quote(str(opened.run.folder)), opened.name or "NAME"
    commands = dict.fromkeys(check.command for check in checks if check.state == MISSING)
    if commands:
        st.caption("What is not measured is measured by:")
        filled = (command.format(run=run, name=name) for command in commands)
        st.code("\n".join(f"denoscope {command}" for command in filled), language="bash", wrap_lines=True)


def by_step(metrics: Mapping[str, Any], bundle: FeatureBundle) -> None:
    """Reconstruction, L0 and dead features at every step."""
    axis = shell.time_axis(bundle.steps, bundle.timesteps, bundle.log_snr)
    st.subheader("Over denoising time", anchor=False)
    charts = (
        ("FVU", "ev_per_step", "variance unexplained", "Fraction of the variance of each step's rows that is left "
         "unexplained, about that step's own mean; 1 - explained variance."),
        ("L0", "l0_per_step", "features on in a row", "Mean number of features that are on in a row."),
        ("dead", "dead_fraction_per_step", "share of features never on", "Features that are never on at this step; "
         "they may be on at others."),
    )  # fmt: skip
    for column, (name, key, title, about) in zip(st.columns(3), charts, strict=True):
        with column:
            values = metrics.get(key)
            if not isinstance(values, list) or len(values) != len(bundle.steps):
                st.caption(f"The metrics of this dictionary have no {name} by step. Train it again to measure it.")
                continue
            shown = np.array([np.nan if v is None else v for v in values], float)
            figure = figures.over_time(axis, {name: 1 - shown if name == "FVU" else shown}, y_title=title)
            st.plotly_chart(figure, config=CONFIG, key=f"he_{name}", alt=f"{name} at each denoising step")
            st.caption(about)


def densities(frame: pd.DataFrame, bundle: FeatureBundle) -> None:
    """How often features fire."""
    above = float(bundle.info["dense_above"])
    dead, dense = int(np.count_nonzero(frame["dead"])), int(np.count_nonzero(frame["dense"]))
    figure = figures.density_histogram(frame["density"].to_numpy(), dense_above=above)
    st.plotly_chart(figure, config=CONFIG, key="he_density", alt="Histogram of feature densities, logarithmic")
    st.caption(
        f"{dead:,} of {len(frame):,} never fire in these {bundle.n_samples:,} images (they are not in the histogram), "
        f"{dense:,} dense: on in more than {above:.0%} of all rows."
    )


def spliced(rows: Sequence[Mapping[str, Any]], bundle: FeatureBundle) -> None:
    """Loss recovered at each step, over two ablations."""
    if not rows:
        st.caption("Not measured for this dictionary; the command is above.")
        return
    at = {int(row["step"]): row for row in rows}
    axis = shell.time_axis(bundle.steps, bundle.timesteps, bundle.log_snr)

    def values(key: str) -> list[float]:
        found = (at.get(step, {}).get(key) for step in bundle.steps)
        return [float("nan") if v is None else float(v) for v in found]

    curves = []
    for what in ("mean", "zero"):
        value, low, high = (values(f"recovered_over_{what}{end}") for end in ("", "_low", "_high"))
        curves.append(Curve(f"over {what} ablation", value, low, high))
    st.plotly_chart(
        band_figures.bands(axis, curves, y_title="loss recovered"),
        config=CONFIG,
        key="he_spliced",
        alt="Loss recovered at each denoising step, with intervals",
    )
    st.caption(
        "The dictionary's output in place of the site: 1 = the model does not notice, 0 = as bad as the site's mean "
        f"row (or nothing) there; below 0 is worse than that. Bands: 95 % over {rows[0].get('n', '?')} prompts."
    )


def seeds(rows: Sequence[Mapping[str, Any]]) -> None:
    """How alike dictionaries of other seeds are, beside an untrained one."""
    if not rows:
        st.caption("No other dictionary of this site has been compared; the command is above.")
        return
    st.dataframe(
        [
            {
                "Dictionaries": f"{row.get('dictionary')} and {row.get('other')}",
                "Matched by": what,
                "Similarity": f"{row[f'{what}_mean']:.2f}{health.interval(row, f'{what}_mean')}",
                "Shared (above 0.7)": f"{100 * row[f'{what}_shared']:.0f} %",
                "Untrained: similarity": f"{row[f'{what}_null_mean']:.2f}",
                "Untrained: shared": f"{100 * row[f'{what}_null_shared']:.0f} %",
            }
            for row in rows
            for what in ("decoder", "activation")
        ],
        hide_index=True,
        alt="Similarity of dictionaries of different seeds, beside an untrained one",
    )
    st.caption(
        "Features paired one to one, by the cosine of decoder rows and by the correlation of codes on the same rows. "
        "An untrained dictionary of the same size is what chance gives."
    )


def coverage(records: StoreRecords) -> None:
    """Which maps are there, and where values are no numbers."""
    steps = tuple(range(len(records.timesteps)))
    axis = shell.time_axis(steps, records.timesteps, records.log_snr)
    names = [f"{site} · {branch}" for site in records.sites for branch in records.branches]
    share = records.recorded.reshape(-1, len(steps))
    bad = np.repeat(records.bad, len(records.branches), axis=0)
    marks = [(int(r), int(i), f"{bad[r, i]:,} values of both branches are no numbers") for r, i in np.argwhere(bad > 0)]
    figure = band_figures.grid(
        axis,
        names,
        share,
        colour_title="share recorded",
        top=1.0,
        marks=marks,
        texts=[[f"{100 * v:.1f} % of the samples" for v in row] for row in share],
    )
    st.plotly_chart(figure, config=CONFIG, key="he_coverage", alt="Share of samples recorded by site, branch and step")
    partly = "" if records.n_read == records.n_committed else f" {records.n_read:,} of them were read."
    st.caption(
        f"Share of the planned samples that is stored, by site, branch and step, from the commit records of "
        f"{records.n_committed:,} of {records.n_shards:,} shards.{partly} A cross: values that are NaN or infinite."
    )


def integrity(opened: Opened, n_bytes: int) -> None:
    """Buttons that check the store against its records, and what they found."""
    from activations_store import ActivationStore

    with st.container(horizontal=True, vertical_alignment="center"):
        quick = st.button("Check sizes and records", key="he_quick", icon=":material/fact_check:")
        small = n_bytes <= _READ_HERE
        whole = st.button(
            f"Check every byte ({browse.size(n_bytes)})",
            key="he_whole",
            icon=":material/verified:",
            disabled=not small,
            help="Reads the whole store at the disk's speed." if small else "Too large for a page; use the command.",
        )
    if quick or whole:
        with st.spinner("Comparing the store with its records"):
            problems = ActivationStore.open(opened.run.store).verify(full=whole)
        now = datetime.now().astimezone().strftime("%H:%M")
        st.session_state[_FOUND] = (str(opened.run.store), whole, problems, now)
    place, full, problems, when = st.session_state.get(_FOUND, ("", False, [], ""))
    if place == str(opened.run.store):
        damage = [problem for problem in problems if problem.is_damage]
        looked = "every byte is what was committed" if full else "sizes and records agree"
        if not damage:
            st.success(f"Sound at {when}: {looked}.", icon=":material/check:")
        else:
            places = "1 place is" if len(damage) == 1 else f"{len(damage)} places are"
            st.error(f"{places} damaged. The command below says what to collect again.")
        if problems:
            st.dataframe(
                [{"Kind": p.kind, "File": p.path, "What": p.message} for p in problems],
                hide_index=True,
                alt="What the check found",
            )
    st.code(f"denoscope store verify {shlex.quote(str(opened.run.folder))}", language="bash")


def copy(opened: Opened) -> None:
    """The same in Python."""
    with st.expander("The same in Python", icon=":material/code:"):
        lines = ["import json", "from activations_store import ActivationStore", "from sae import FeatureBundle", ""]
        lines.append(f"ActivationStore.open({str(opened.run.store)!r}).verify(full=False)")
        if opened.sae is not None:
            lines.append(f"json.load(open({str(opened.sae / 'metrics.json')!r}))['ev_per_step']")
        if opened.bundle is not None:
            lines.append(f"FeatureBundle.open({str(opened.bundle)!r}).table.to_pandas()[['density', 'dead', 'dense']]")
        st.code("\n".join(lines), language="python")


def page(opened: Opened) -> None:
    """The whole page, as far as the run goes."""
    st.title("Health", anchor=False)
    store, records, bundle, frame, metrics, listed = None, None, None, None, {}, []
    with reading("The store"):
        store = readers.collected(opened.run)
        records = readers.store_records(opened.run)
        if (missing := shell.next_step(opened.run, opened.name)) is not None:
            shell.show_next_step(*missing)
    if opened.bundle is not None:
        with reading("The feature bundle"):
            bundle, frame = readers.bundle(opened.bundle), readers.features(opened.bundle)
    if opened.sae is not None:
        with reading("The dictionary's metrics"):
            metrics = readers.metrics(opened.sae)
    with reading("The results"):
        evaluated = (found for found in shell.found() if found.kind in ("sae.eval", "sae.compare"))
        listed = sorted(evaluated, key=lambda found: found.path.stat().st_mtime)
    results = [found.rows for found in listed]
    name = opened.name or ""
    splice, pairs = (health.rows_of(results, part, name) for part in ("substitution", "stability"))
    checks = []
    if name:
        metrics = metrics or (bundle.info["metrics"] if bundle else {}) or {}
        table = None if frame is None else {key: frame[key].to_numpy() for key in ("dead", "dense")}
        checks += health.dictionary_checks(metrics, table)
        checks += [health.splice_check(splice[0] if splice else None), health.seed_check(pairs[0] if pairs else None)]
    if store is not None or name:
        checks += health.store_checks(records, store.n_samples if store else 0, store.n_committed if store else 0)
    if not checks:
        st.caption("This folder holds results alone: no store and no dictionary whose health could be told.")
        return
    verdict(checks, opened)
    if bundle is not None and frame is not None:
        with reading("The feature bundle"):
            by_step(metrics, bundle)
            left, right = st.columns(2)
            with left:
                st.subheader("How often features fire", anchor=False)
                densities(frame, bundle)
            with right:
                st.subheader("In place of the site", anchor=False)
                spliced(health.rows_of(results, "substitution step", name), bundle)
            st.subheader("Stability across seeds", anchor=False)
            seeds(pairs)
    if records is not None and store is not None:
        with reading("The store"):
            st.subheader("The store", anchor=False)
            coverage(records)
            integrity(opened, store.n_bytes)
    copy(opened)
    provenance(*(browse.provenance(bundle) if bundle else []), *(found.label for found in listed))


page(shell.opened())
