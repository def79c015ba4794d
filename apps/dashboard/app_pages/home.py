"""Home: what was collected, how good the dictionary is, what was achieved with it, and the way to every feature."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from apps.dashboard import browse, figures, links, readers, results, shell
from apps.dashboard.chart_style import CONFIG
from apps.dashboard.feature_browser import browser, dictionary_map
from apps.dashboard.shell import FEATURE_PAGE, STEERING_PAGE, UNLEARNING_PAGE, Opened, provenance, reading

if TYPE_CHECKING:
    import pandas as pd

    from sae import FeatureBundle

_CARD_SIDE = 160  # pixels of a concept's picture


def headline(opened: Opened, store: readers.Collected | None, metrics: dict[str, object], d_sae: int | None) -> None:
    """The few numbers that say what kind of run this is."""
    numbers: list[tuple[str, str, str]] = []
    if store is not None:
        share = "" if store.complete else f" of {store.n_samples:,}"
        numbers.append(("Images", f"{store.n_committed:,}{share}", "Generations whose activations are stored."))
        branches = " + ".join(store.branches)
        numbers.append(("Steps", f"{store.n_steps}", f"Denoising steps recorded for each image; branches: {branches}."))
    if d_sae is not None:
        numbers.append(("Features", f"{d_sae:,}", "Latents of the dictionary, dead ones included."))
    if isinstance(ev := metrics.get("explained_variance"), float):
        numbers.append(
            (
                "Explained variance",
                f"{100 * ev:.1f} %",
                "1 - FVU about the mean, over all steps, on held-out samples if there are any.",
            )
        )
    if isinstance(l0 := metrics.get("l0"), float):
        numbers.append(("L0", f"{l0:.1f}", "Features that are on in a row, on average."))
    if isinstance(dead := metrics.get("dead_fraction"), float):
        numbers.append(("Dead", f"{100 * dead:.1f} %", "Features that were never on in the rows of the evaluation."))
    if numbers:
        with st.grid(columns=6, min_column_width=130):
            for label, value, about in numbers:
                st.metric(label, value, help=about, border=True)


def concepts(bundle: FeatureBundle) -> None:
    """For each value of a factor, the feature that tells it best, with its strongest example."""
    st.subheader("Which feature answers to which concept")
    factors = browse.labelled(bundle)
    if not factors:
        st.caption("The prompts of this run carry no labels, so features could not be matched with concepts.")
        return
    st.caption(
        "The feature whose strongest activation in an image best tells the concept from the others (AUC, "
        "0.5 = chance), over its strongest example. What a feature causes is not shown here."
    )
    most = max(factors, key=lambda f: len(bundle.concepts[f]))
    factor = (
        st.segmented_control(
            "Factor", factors, default=most, required=True, key="home_factor", label_visibility="collapsed"
        )
        or most
    )
    folder = bundle.path
    with st.grid(columns=6, min_column_width=150):
        for concept in bundle.concepts[factor]:
            feature, auc = bundle.find(factor, concept, 1)[0]
            with st.container(border=True, gap="xsmall"):
                picture = readers.best_tile(folder, feature, _CARD_SIDE)
                if picture is not None:
                    st.image(
                        picture, width="stretch", alt=f"Strongest example of feature {feature} with its activation map"
                    )
                st.text(concept, width="stretch")
                st.page_link(
                    FEATURE_PAGE,
                    label=f"feature {feature} · AUC {auc:.2f}",
                    query_params={links.FEATURE: str(feature)},
                    width="stretch",
                )


def unlearning(opened: Opened) -> None:
    """What unlearning achieved, in short; its own page has the pictures."""
    record = readers.measurement(opened.run)
    found = results.scores(record["rows"]) if record else []
    if not found:
        return
    st.subheader("Unlearning")
    st.dataframe(results.table(found), hide_index=True, alt="Unlearning scores with 95 % intervals")
    with st.container(horizontal=True):
        st.page_link(UNLEARNING_PAGE, label="Before and after, and what the columns mean", icon=":material/ink_eraser:")
        st.page_link(STEERING_PAGE, label="A feature pushed up and down", icon=":material/tune:")


def quality(opened: Opened, metrics: dict[str, object], frame: pd.DataFrame, bundle: FeatureBundle) -> None:
    """How well the dictionary reconstructs, step by step, and how often its features fire."""
    st.subheader("The dictionary")
    left, right = st.columns(2)
    with left:
        per_step = metrics.get("ev_per_step")
        if isinstance(per_step, list) and len(per_step) == len(bundle.steps):
            axis = shell.time_axis(bundle.steps, bundle.timesteps, bundle.log_snr)
            figure = figures.over_time(
                axis, {"explained variance": per_step}, y_title="explained variance", y_range=(0, 1.02)
            )
            st.plotly_chart(figure, config=CONFIG, key="home_ev", alt="Explained variance at each denoising step")
            st.caption(
                "Explained variance of the rows of each step, about that step's own mean. "
                "The overall value is about one mean and can exceed all of them."
            )
        else:
            st.caption("The metrics of this dictionary have no values by step. Train it again to measure them.")
    with right:
        figure = figures.density_histogram(frame["density"].to_numpy(), dense_above=float(bundle.info["dense_above"]))
        st.plotly_chart(
            figure,
            config=CONFIG,
            key="home_density",
            alt="Histogram of feature densities on a logarithmic axis",
        )
        dead, dense = int(np.count_nonzero(frame["dead"])), int(np.count_nonzero(frame["dense"]))
        st.caption(
            f"How often features fire: {dead:,} of {len(frame):,} never do (not in the histogram), {dense:,} are dense."
        )


def others(opened: Opened) -> None:
    """Results of other commands in the same folder, and where to read them."""
    listed = [finding for finding in shell.found() if finding.path != opened.run.results]
    if not listed:
        return
    st.subheader("Results in this folder")
    with st.grid(columns=3, min_column_width=280):
        for finding in listed:
            page, key = shell.page_of(finding)
            with st.container(border=True, gap="xxsmall"):
                st.page_link(page, label=shell.problem_text(finding.title), query_params={key: finding.label})
                st.caption(shell.problem_text(finding.label))


def collection(store: readers.Collected) -> None:
    """What was recorded, from which model."""
    st.subheader("The collection")
    left, right = st.columns(2)
    with left:
        st.dataframe(
            [{"Site": n, "Tokens": t, "Channels": c, "Stored as": kind} for n, t, c, kind in store.sites],
            hide_index=True,
            alt="Recorded sites",
        )
        st.caption(
            f"{store.n_samples:,} images x {store.n_steps} steps, branches {' and '.join(store.branches)}; "
            f"{browse.size(store.n_bytes)} of activations when complete."
        )
        with st.expander("Prompts", icon=":material/notes:"):
            st.text("\n".join(store.prompts))
            st.caption(
                f"The first {len(store.prompts)} of {store.n_samples:,}. "
                f"Labelled factors: {', '.join(store.factors) or 'none'}."
            )
    with right:
        st.dataframe(
            [{"Model": key, "Value": text} for key, text in browse.flat(store.model)],
            hide_index=True,
            height=260,
            alt="Fingerprint of the model",
        )
        st.caption("The model's fingerprint. Recipes made in this run refuse any other model.")


def page() -> None:
    """The whole page, as far as the run goes."""
    opened = shell.opened()
    store, bundle, frame, metrics = None, None, None, {}
    st.title(opened.run.name, anchor=False)
    with reading("The store"):
        store = readers.collected(opened.run)
    if opened.bundle is not None:
        with reading("The feature bundle"):
            bundle, frame = readers.bundle(opened.bundle), readers.features(opened.bundle)
    if opened.sae is not None:
        with reading("The dictionary's metrics"):
            metrics = readers.metrics(opened.sae)
    if bundle is not None:
        metrics = metrics or bundle.info["metrics"]
    site = bundle.info["site"] if bundle else (store.sites[0][0] if store else "")
    model = browse.model_name(store.model if store else (bundle.info["store"]["fingerprint"] if bundle else {}))
    st.caption(shell.problem_text(" · ".join(part for part in (model, site) if part)))
    headline(opened, store, metrics, bundle.n_features if bundle else None)
    with reading("The store"):
        if (missing := shell.next_step(opened.run, opened.name)) is not None:
            shell.show_next_step(*missing)
    if bundle is not None and frame is not None:
        with reading("The feature bundle"):
            concepts(bundle)
    with reading("The results"):
        unlearning(opened)
        others(opened)
    if bundle is not None and frame is not None:
        with reading("The feature bundle"):
            browser(frame, bundle)
            quality(opened, metrics, frame, bundle)
            dictionary_map(frame, bundle)
    if store is not None:
        collection(store)
    if bundle is not None:
        provenance(*browse.provenance(bundle))


page()
