"""Compare: two features side by side at one locked step, and which feature of a dictionary is the same as another."""

from __future__ import annotations

import shlex
from dataclasses import replace

import streamlit as st

from apps.dashboard import browse, figures, gallery, links, matching, panes, readers, shell
from apps.dashboard.address import Address, changed, go, widget
from apps.dashboard.chart_style import CONFIG
from apps.dashboard.gallery import STRONGEST
from apps.dashboard.matching import Matches
from apps.dashboard.panes import Side
from apps.dashboard.shell import Opened, provenance, reading
from apps.runs import Run, find_runs

_SUGGESTED = 5


def all_runs(opened: Opened) -> list[Run]:
    """The runs that the dashboard was started with."""
    place = shell.run_argument()
    return (find_runs(place) if place is not None else []) or [opened.run]


def others(opened: Opened, runs: list[Run]) -> dict[str, tuple[Run, str]]:
    """Label -> run and name of every bundle of some runs, the open one first."""
    found = {
        f"{run.name}/{name}" if len(runs) > 1 else name: (run, name) for run in runs for name in sorted(run.bundles())
    }
    own = next((label for label, at in found.items() if at == (opened.run, opened.name)), None)
    return ({own: found[own]} if own else {}) | found


def choose(opened: Opened, name: str) -> tuple[Side, Side, Matches]:
    """The two features of the link, and how the first matches every feature of the second's dictionary.

    The other feature is the suggested one until the link says something else.
    """
    address, runs = Address(), all_runs(opened)
    listed, several = others(opened, runs), len(runs) > 1
    bundle = readers.bundle(opened.run.bundles()[name])
    frame = readers.features(bundle.path)
    first = browse.chosen(frame, browse.labelled(bundle))
    default = int(first["feature"].iloc[0]) if len(first) else 0
    feature = address.whole_number(links.FEATURE, what="feature", low=0, high=bundle.n_features - 1, default=default)
    label = address.one_of(links.COMPARED, what="dictionary", choices=listed, default=next(iter(listed)))
    left, right = st.columns(2)
    with left, st.container(horizontal=True, vertical_alignment="bottom"):
        st.text_input("A", f"{name} (open in the side bar)", disabled=True)
        _number(links.FEATURE, "Feature of A", bundle.n_features - 1, links.OTHER, links.EXAMPLE)
    with right:
        line = st.container(horizontal=True, vertical_alignment="bottom")
    with line:  # before anything of B is read: of a damaged one, the choice is left
        st.selectbox("B", list(listed), key=widget(links.COMPARED), on_change=_forget, args=(links.COMPARED,))
    a = Side("A", opened.run, name, several, feature)
    b = Side("B", *listed[label], several, 0)
    found = readers.matches(a.place, feature, b.place)
    suggested = found.best("cosine") if found.best("cosine") is not None else found.best("correlation")
    last = b.bundle.n_features - 1
    other = address.whole_number(links.OTHER, what="feature", low=0, high=last, default=suggested or 0)
    with line:
        _number(links.OTHER, "Feature of B", last)
    address.save()
    shell.tell(address)
    return a, replace(b, feature=other), found


def _number(key: str, label: str, last: int, *forgotten: str) -> None:
    st.number_input(
        label, 0, last, key=widget(key), on_change=_forget if forgotten else changed, args=(key, *forgotten), width=150
    )


def _forget(key: str, *forgotten: str) -> None:
    """Another question: the feature that answered the last one leaves the link and the session."""
    st.session_state.pop(f"last_{links.OTHER}", None)
    changed(key, links.OTHER, *forgotten)


def same(a: Side, b: Side, found: Matches) -> None:
    """What both measures suggest, and the two features sample by sample."""
    st.subheader("Which feature of B is most like A?", anchor=False)
    st.markdown(shell.problem_text(matching.verdict(found)))
    if found.reason:
        st.caption(shell.problem_text(found.reason))
    left, right = st.columns([3, 2])
    with left:
        if ranked := found.ranked(_SUGGESTED):
            suggestions(b, found, ranked)
        if found.correlation is not None or found.cosine is not None:
            st.caption(
                "cos: cosine of the decoder rows, what the features write. corr: correlation of the largest activation "
                f"in each of {found.n_samples:,} common images, when they are on. #: place among all features. "
                + " ".join(
                    f"By chance the best {by} would be near {getattr(found, f'{by}_null'):.2f}."
                    for by in ("cosine", "correlation")
                    if getattr(found, by) is not None
                )
            )
    with right:
        if found.correlation is None:
            return
        at_a, at_b = readers.common_samples(a.place.bundle, b.place.bundle)
        figure = figures.sample_scatter(
            a.bundle.pooled(a.feature)[at_a],
            b.bundle.pooled(b.feature)[at_b],
            x_title=f"A: feature {a.feature}, largest activation",
            y_title=f"B: feature {b.feature}",
        )
        st.plotly_chart(
            figure, config=CONFIG, key="cp_samples", alt="Largest activation of both features, a point an image"
        )
        st.caption("A point an image: how strongly each of the two features is on anywhere in it.")


def suggestions(b: Side, found: Matches, ranked: list[int]) -> None:
    """The features most alike, by either measure, each with its picture and both ranks."""
    bundle, factors = b.bundle, browse.labelled(b.bundle)
    with st.grid(columns=len(ranked), min_column_width=96, gap="xsmall"):
        for feature in ranked:
            row = bundle.stats(feature)
            told = browse.best_factor(row, factors)
            with st.container(border=True, gap="xxsmall"):
                gallery.thumbnail(bundle, feature)
                st.button(
                    f"{feature}",
                    key=f"cp_take_{feature}",
                    on_click=go,
                    args=(links.OTHER, feature),
                    type="primary" if feature == b.feature else "secondary",
                    help="Show this feature as B.",
                )
                for by, short in (("cosine", "cos"), ("correlation", "corr")):
                    values, rank = getattr(found, by), found.rank(by, feature)
                    if values is not None:
                        st.caption(f"{short} none" if rank is None else f"{short} {values[feature]:.2f}, #{rank}")
                st.text(row[f"best_{told}"] if told else browse.state(row["dead"], row["dense"]))


@st.fragment
def side_by_side(a: Side, b: Side) -> None:
    """Both panes at one step; another run's step is the nearest in log-SNR."""
    address, bundle, other = Address(), a.bundle, b.bundle
    axis = shell.time_axis(bundle.steps, bundle.timesteps, bundle.log_snr)
    names = [STRONGEST, *map(str, bundle.steps)]
    shown = address.one_of(links.LOCKED, what="step", choices=names, default=STRONGEST)
    look = gallery.look_of(address)
    st.subheader("Side by side", anchor=False)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        st.select_slider(
            "Step of both",
            names,
            key=widget(links.LOCKED),
            on_change=changed,
            args=(links.LOCKED,),
            format_func=lambda n: n if n == STRONGEST else axis.short(bundle.steps.index(int(n))),
            help="The step whose maps both panes show; strongest: each example at its own strongest step.",
            width="stretch",
        )
        gallery.look_widgets(look)
    shell.tell(address)
    index = None if shown == STRONGEST else bundle.steps.index(int(shown))
    there = None if index is None else matching.nearest_step(bundle.log_snr[index], other.log_snr)
    if index is not None and there is not None and bundle.log_snr != other.log_snr:
        st.caption(
            f"The runs have different steps. Locked by log-SNR: {bundle.log_snr[index]:.1f} in A, "
            f"{other.log_snr[there]:.1f} in B."
        )
    left, right = st.columns(2, gap="large")
    with left:
        panes.pane(a, index, look)
    with right:
        panes.pane(b, there, look)
    address.save()


def copy(a: Side, b: Side) -> None:
    """The same from Python and from the command line."""
    with st.expander("The same in Python and on the command line", icon=":material/code:"):
        st.code(
            "from sae import FeatureBundle\n\n"
            f"a = FeatureBundle.open({str(a.place.bundle)!r})\n"
            f"b = FeatureBundle.open({str(b.place.bundle)!r})\n"
            f"a.examples({a.feature}), a.maps({a.feature}), a.mean_by_step[:, {a.feature}]\n"
            f"b.examples({b.feature}), b.maps({b.feature}), b.mean_by_step[:, {b.feature}]",
            language="python",
        )
        saes = a.place.sae, b.place.sae
        if None not in saes and saes[0] != saes[1] and a.bundle.info["site"] == b.bundle.info["site"]:
            st.caption("Whole dictionaries, row by row and one to one, beside an untrained one:")
            st.code(f"denoscope sae compare {shlex.quote(str(saes[0]))} {shlex.quote(str(saes[1]))}", language="bash")


def page(opened: Opened) -> None:
    """The whole page."""
    st.title("Compare", anchor=False)
    if opened.bundle is None or opened.name is None:
        with reading("The store"):
            if (missing := shell.next_step(opened.run, opened.name)) is not None:
                shell.show_next_step(*missing)
            else:
                st.caption("This folder holds results and no dictionary; they are under Measurements.")
        return
    with reading("A feature bundle"):
        a, b, found = choose(opened, opened.name)
        same(a, b, found)
        side_by_side(a, b)
        copy(a, b)
        provenance(*browse.provenance(a.bundle))


page(shell.opened())
