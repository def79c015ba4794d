"""Steering: what pushing a feature or a direction does at each strength, beside a random push of the same length."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from apps.dashboard import links, readers, result_figures, shell
from apps.dashboard.chart_style import CONFIG
from apps.dashboard.findings import Finding
from apps.dashboard.result_figures import Curve
from apps.dashboard.shell import Opened, provenance, reading

Rows = Sequence[Mapping[str, Any]]


def is_sweep(finding: Finding) -> bool:
    """Whether a measurement holds a sweep of strengths: one of ``denoscope steer``, or the demo's."""
    return finding.kind == "steer" or any(row.get("measure") == "steer" for row in finding.rows)


def empty(opened: Opened) -> None:
    """How to make a sweep."""
    run = shlex.quote(str(opened.run.folder))
    dictionary = f"{run}/sae/{opened.name}" if opened.sae else f"{run}/sae/NAME"
    st.markdown("Nothing has been steered in this run. Push the best feature of a concept at several strengths:")
    st.code(f"denoscope steer --sae {dictionary} --concept colour=red --out {run}/steer-red", language="bash")
    st.caption("It says how long it takes before it draws. Reload this page when it is done.")


def curve(name: str, rows: Rows, measure: str, *, muted: bool = False) -> Curve:
    """A measure of some rows over strength, with its interval where it has one."""
    values = [float(row[measure]) for row in rows]
    if f"{measure}_low" not in rows[0]:
        return Curve(name, values, muted=muted)
    low, high = ([float(row[f"{measure}_{end}"]) for row in rows] for end in ("low", "high"))
    return Curve(name, values, low, high, muted)


def response(push: Rows, control: Rows, *, measure: str, concept: str, unit: str, key: str, marks: Any = ()) -> None:
    """Two charts: what the push brings, and what it costs."""
    strengths = [float(row["strength"]) for row in push]
    left, right = st.columns(2)
    with left:
        lines = [curve("push", push, measure), curve("random push, same length", control, measure, muted=True)]
        seen = measure != "change"
        figure = result_figures.dose_response(
            strengths,
            lines,
            x_title=f"strength, in {unit}",
            y_title=f"judge's probability of {concept}" if seen else "mean change of pixels",
            y_top=1.0 if seen else None,
            marks=marks,
        )
        st.plotly_chart(figure, config=CONFIG, key=f"st_gain_{key}", alt=f"{concept} over strength")
    kept = [name for name in push[0] if name.startswith("kept_") and not name.endswith(("_low", "_high"))]
    with right:
        if "artifacts" in push[0]:
            costs = [curve(name.replace("_", " "), push, name) for name in kept]
            costs += [curve("wrecked pictures", push, "artifacts")]
            costs += [curve("wrecked, random push", control, "artifacts", muted=True)]
            costs = [line._replace(lows=None, highs=None) for line in costs]  # bands of five lines hide each other
            figure = result_figures.dose_response(
                strengths, costs, x_title=f"strength, in {unit}", y_title="share of the pictures", marks=marks
            )
            st.plotly_chart(figure, config=CONFIG, key=f"st_cost_{key}", alt="Costs over strength")


def sweep(finding: Finding) -> None:
    """A sweep of ``denoscope steer``."""
    config, ratios = finding.record.get("config", {}), finding.record["ratios"]
    push = config.get("push", {})
    concept = str(config.get("concept") or "the pictures").replace("=", " ")
    st.header(shell.problem_text(str(push.get("name", finding.label))), anchor=False)
    st.caption(
        shell.problem_text(
            f"{len(config.get('prompts', ()))} prompts x {len(config.get('seeds', ()))} seeds at every strength, "
            f"branch {config.get('branch')}. Strength 0 is the unedited model."
        )
    )
    groups = list(dict.fromkeys(row["group"] for row in finding.rows))
    for group in groups:
        rows = [row for row in finding.rows if row["group"] == group]
        side = "up" if group == "without it" else "down"
        enough, limit = ratios.get(f"{side}_saturation"), ratios.get(f"{side}_artifact_limit")
        st.subheader(f"Prompts {'that do not ask for' if side == 'up' else 'that ask for'} {concept}", anchor=False)
        with st.container(horizontal=True, gap="small"):
            unit = push.get("unit", "")
            st.badge(
                f"more does not help from {enough:+g} {unit}" if enough is not None else "no response",
                icon=":material/vertical_align_top:",
                color="primary" if enough is not None else "gray",
            )
            if limit is not None:
                st.badge(f"more wrecks than unedited from {limit:+g} {unit}", icon=":material/warning:", color="orange")
        marks = [(at, text) for at, text in ((enough, "saturation"), (limit, "wrecks")) if at is not None]
        pushed, control = ([row for row in rows if row["push"] == kind] for kind in ("push", "random"))
        measure = "target" if "target" in rows[0] else "change"
        response(pushed, control, measure=measure, concept=concept, unit=unit, key=str(group), marks=marks)
    if finding.picture is not None:
        st.subheader("Same prompt, same seed, every strength", anchor=False)
        st.image(finding.picture.read_bytes(), width="content", alt="Pictures at every strength with their control")
    recipes = [name for name in ("recipe_up", "recipe_down") if (finding.path.parent / name).is_dir()]
    if recipes:
        st.caption("Use the push at the strength from which more does not help:")
        recipe = shlex.quote(str(finding.path.parent / recipes[0]))
        st.code(f"denoscope generate --prompt '...' --recipe {recipe} --out edited.png", language="bash")


def demo(opened: Opened, finding: Finding) -> None:
    """The demo's sweep: fewer prompts, kept in the run's own results."""
    rows = [row for row in finding.rows if row.get("measure") == "steer"]
    pushed, control = ([row for row in rows if row["direction"] == kind] for kind in ("feature", "random"))
    first = pushed[0]
    st.header(shell.problem_text(f"Feature {first['feature']} at {first['site']}"), anchor=False)
    st.caption(
        f"{first['n']} prompts that do not ask for {first['steered']}, at every strength with the same seeds. "
        "Strength 0 is the unedited model."
    )
    measure = {"measure": "probability", "concept": str(first["steered"]), "unit": "p99 of the feature", "key": "demo"}
    response(pushed, control, **measure)
    picture = readers.steered(opened.run)
    if picture is not None:
        st.subheader("Same prompt, same seed, every strength", anchor=False)
        st.image(picture, width="content", alt="Pictures at every strength, a random push below each")


def page() -> None:
    """The whole page."""
    opened = shell.opened()
    st.title("Steering", anchor=False)
    st.caption(
        "A feature or direction is added while the model draws, and a judge that knows nothing of it looks at the "
        "pictures. A random push of the same length shows what any push does: only the distance to it is an effect."
    )
    with reading("The results"):
        sweeps = [finding for finding in shell.found() if is_sweep(finding)]
        if not sweeps:
            empty(opened)
            return
        finding = shell.choose(links.SWEEP, "Sweep", "sweep", sweeps)
        if finding.kind == "steer":
            sweep(finding)
        else:
            demo(opened, finding)
        provenance(*shell.made_from(finding))


page()
