"""Feature: where, when and for which concepts one feature is active. Everything here is observed; nothing
is an effect."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

import numpy as np
import streamlit as st

from apps.dashboard import browse, figures, gallery, links, readers, shell, tiles
from apps.dashboard.address import Address, changed, go, widget
from apps.dashboard.chart_style import CONFIG
from apps.dashboard.feature_lists import Item
from apps.dashboard.shell import COMPARE_PAGE, Opened, provenance, reading
from apps.dashboard.star import star
from sae import ConceptScores, FeatureBundle

PROMPT = "a photo of a cat"  # stands for the reader's own in a command


def header(address: Address, bundle: FeatureBundle, default: int) -> int:
    """Previous, selector, next, random; returns the feature."""
    last = bundle.n_features - 1
    feature = address.whole_number(links.FEATURE, what="feature", low=0, high=last, default=default)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.title(f"Feature {feature}", anchor=False, width="content")
        st.space("stretch")
        st.button(
            "Previous",
            icon=":material/chevron_left:",
            on_click=go,
            args=(links.FEATURE, feature - 1, links.EXAMPLE),
            disabled=feature == 0,
            key="previous",
            shortcut="Left",
        )
        st.number_input(
            "Feature",
            0,
            last,
            key=widget(links.FEATURE),
            on_change=changed,
            args=(links.FEATURE, links.EXAMPLE),
            width=130,
            label_visibility="collapsed",
        )
        st.button(
            "Next",
            icon=":material/chevron_right:",
            on_click=go,
            args=(links.FEATURE, feature + 1, links.EXAMPLE),
            disabled=feature == last,
            key="next",
            shortcut="Right",
        )
        random = int(np.random.default_rng().choice(np.flatnonzero(~bundle.table.column("dead").to_numpy())))
        st.button(
            "Random",
            icon=":material/casino:",
            on_click=go,
            args=(links.FEATURE, random, links.EXAMPLE),
            key="random",
            help="A random feature that is not dead.",
        )
        keep(bundle, feature)
    shell.tell(address)
    return feature


def keep(bundle: FeatureBundle, feature: int) -> None:
    """Into a list, or beside another feature."""
    opened = shell.opened()
    star(opened.run, Item(opened.name or "", feature, bundle.bundle_hash[:8]))
    st.page_link(
        COMPARE_PAGE,
        label="Compare",
        icon=":material/compare_arrows:",
        query_params={links.FEATURE: str(feature), **({links.BUNDLE: opened.name} if opened.name else {})},
    )


def numbers(bundle: FeatureBundle, row: dict[str, Any]) -> None:
    """The feature's statistics and badges."""
    best = browse.best_factor(row, browse.labelled(bundle))
    with st.container(horizontal=True, gap="small"):
        if best is not None:
            st.badge(
                shell.problem_text(f"best told concept: {best} {row[f'best_{best}']}, AUC {row[f'auc_{best}']:.2f}"),
                icon=":material/label:",
                color="primary",
            )
        if row["dense"]:
            st.badge(
                "dense",
                icon=":material/warning:",
                color="orange",
                help=f"On in more than {bundle.info['dense_above']:.0%} of all rows: its examples say little.",
            )
        st.badge(
            "observed, not tested causally",
            color="gray",
            help="The page shows where the feature is active, not what it causes. `denoscope steer` tests that.",
        )
    peak = bundle.steps.index(row["peak_step"])
    axis = shell.time_axis(bundle.steps, bundle.timesteps, bundle.log_snr)
    with st.grid(columns=6, min_column_width=130):
        st.metric(
            "Density",
            f"{100 * row['density']:.2f} %",
            border=True,
            help="Share of rows (image, step, cell) in which the feature is on.",
        )
        st.metric(
            "Fires in",
            f"{100 * row['sample_fraction']:.1f} %",
            border=True,
            help="Share of images in which it is on anywhere, at any step.",
        )
        st.metric("Max", f"{row['max']:.2f}", border=True, help="Largest activation, in the units of the site.")
        st.metric("p99", f"{row['p99']:.2f}", border=True, help="99th percentile of its active values.")
        st.metric(
            f"Peak ({axis.unit if axis.unit != 'logsnr' else 'log-SNR'})",
            axis.short(peak),
            border=True,
            help="Where its mean activation is largest: " + axis.label(peak),
        )
        st.metric(
            "Explains",
            f"{100 * row['ev_contribution']:.2f} %",
            border=True,
            help="Share of the variance that would be lost without this feature.",
        )


def over_steps(bundle: FeatureBundle, feature: int) -> None:
    """Mean and largest activation over denoising time, and where in the image."""
    st.subheader("Over denoising time")
    axis = shell.time_axis(bundle.steps, bundle.timesteps, bundle.log_snr)
    left, middle, right = st.columns([2, 2, 1])
    with left:
        figure = figures.over_time(axis, {"mean": bundle.mean_by_step[:, feature]}, y_title="mean activation")
        st.plotly_chart(figure, config=CONFIG, key="ft_mean", alt="Mean activation over denoising steps")
        st.caption("Mean over all images and cells, zeros included.")
    with middle:
        figure = figures.over_time(axis, {"max": bundle.max_by_step[:, feature]}, y_title="largest activation")
        st.plotly_chart(figure, config=CONFIG, key="ft_max", alt="Largest activation over denoising steps")
        st.caption("Largest activation in any image and cell.")
    with right:
        place = bundle.mean_by_cell(feature)
        place = place if place.ndim == 2 else place[None]
        picture = tiles.tile(None, place, scale=float(place.max()), look=tiles.Look(smooth=False))
        st.image(tiles.jpeg(picture), width="stretch", alt="Mean activation at each cell of the image")
        st.caption(f"Where in the image it is active on average; 0 to {place.max():.2g}.")


def concepts(bundle: FeatureBundle, feature: int, scores_of: Callable[[str], ConceptScores]) -> None:
    """How the feature answers to the values of one factor, overall and over time."""
    factors = browse.labelled(bundle)
    if not factors:
        return
    st.subheader("Concepts")
    row = bundle.stats(feature)
    best = browse.best_factor(row, factors) or factors[0]
    factor = (
        st.segmented_control(
            "Factor", factors, default=best, required=True, key=f"ft_factor_{feature}", label_visibility="collapsed"
        )
        or best
    )
    names = bundle.concepts[factor]
    auc, score = bundle.auc(factor)[:, feature], bundle.score(factor)[:, feature]
    left, right = st.columns(2)
    with left:
        figure = figures.concept_bars(names, 100 * score, auc)
        st.plotly_chart(figure, config=CONFIG, key="ft_bars", alt=f"Concept score and AUC of each {factor}")
        st.caption(
            "Score: the feature's share of the code in images of the concept minus its share in the others (SAeUron), "
            "mean over steps. "
            "AUC: how well its strongest activation in an image tells the concept; 0.5 = chance."
        )
    with right:
        scores = scores_of(factor)
        axis = shell.time_axis(bundle.steps, bundle.timesteps, bundle.log_snr)
        order = np.argsort(-score, kind="stable")
        figure = figures.concept_heatmap(
            axis, [names[i] for i in order], scores.mu[:, order, feature].T, colour_title="mean activation"
        )
        st.plotly_chart(
            figure,
            config=CONFIG,
            key="ft_concept_steps",
            alt=f"Mean activation for each {factor} over denoising steps",
        )
        st.caption("Mean activation in the images of each concept, step by step.")


def neighbours(bundle: FeatureBundle, feature: int) -> None:
    """Features whose decoder rows point in a similar direction."""
    st.subheader("Nearest features")
    st.caption("By the cosine of the decoder rows: what they write is similar, whatever they respond to.")
    factors = browse.labelled(bundle)
    near = [(other, cosine) for other, cosine in bundle.neighbours(feature) if other != feature]
    with st.grid(columns=8, min_column_width=96, gap="xsmall"):
        for other, cosine in near:
            with st.container(border=True, gap="xxsmall"):
                row = bundle.stats(other)
                gallery.thumbnail(bundle, other)
                st.button(
                    f"{other}",
                    key=f"near_{other}",
                    on_click=go,
                    args=(links.FEATURE, other, links.EXAMPLE),
                    type="tertiary",
                    icon=":material/arrow_forward:",
                )
                told = browse.best_factor(row, factors)
                st.caption(f"cosine {cosine:.2f}")
                st.text(
                    f"{row[f'best_{told}']} {row[f'auc_{told}']:.2f}"
                    if told
                    else browse.state(row["dead"], row["dense"])
                )


def test_it(opened: Opened, bundle: FeatureBundle, feature: int) -> None:
    """The command that pushes the feature; the sweep is then on the page of steering."""
    if opened.sae is None:
        return
    row, canvas = bundle.stats(feature), bundle.info["store"]["fingerprint"].get("name") == "canvas"
    told = browse.best_factor(row, browse.labelled(bundle))
    about = f"--concept {told}={row[f'best_{told}']}" if told and canvas else f"--prompt {shlex.quote(PROMPT)}"
    run, sae = shlex.quote(str(opened.run.folder)), shlex.quote(str(opened.sae))
    st.caption("All of this is observed. What the feature causes is found by pushing it while the model draws:")
    st.code(
        f"denoscope steer --sae {sae} --feature {feature} {about} --out {run}/steer-{feature}",
        language="bash",
        wrap_lines=True,
    )


def dead(bundle: FeatureBundle, feature: int) -> None:
    """What is said of a feature that never fires."""
    st.info(
        f"Feature {feature} is dead: it was never on in the {bundle.n_samples:,} images of this bundle, so there are "
        "no examples, maps or concepts to show. It may have fired on other data in training.",
        icon=":material/do_not_disturb_on:",
    )


def page(opened: Opened) -> None:
    """The whole page."""
    if opened.bundle is None:
        st.title("Feature", anchor=False)
        with reading("The store"):
            if (missing := shell.next_step(opened.run, opened.name)) is not None:
                shell.show_next_step(*missing)
            else:
                st.caption("This folder holds results and no dictionary; they are under Measurements.")
        return
    folder = opened.bundle
    with reading("The feature bundle"):
        bundle, frame = readers.bundle(folder), readers.features(folder)
        address = Address()
        labelled = browse.labelled(bundle)
        first = browse.chosen(frame, labelled)
        feature = header(address, bundle, int(first["feature"].iloc[0]) if len(first) else 0)
        address.save()
        row = bundle.stats(feature)
        if row["dead"]:
            dead(bundle, feature)
        else:
            numbers(bundle, row)
            gallery.examples(bundle, feature, bundle.examples(feature))
            over_steps(bundle, feature)
            concepts(bundle, feature, lambda factor: readers.concept_scores(folder, factor))
            test_it(opened, bundle, feature)
        neighbours(bundle, feature)
        provenance(*browse.provenance(bundle))


page(shell.opened())
