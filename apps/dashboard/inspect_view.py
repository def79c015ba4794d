"""Inspect's view of one image: the picture whose cells can be selected, the features that are on there, and when.

A fragment: selecting cells, a step or a feature reruns nothing else. All of it is observed; what a feature causes is
the business of ``denoscope steer``, whose command stands below.
"""

from __future__ import annotations

from urllib.parse import urlencode

import streamlit as st

from apps.dashboard import inspected, links, readers, shell, tiles
from apps.dashboard.address import Address, changed, widget
from apps.dashboard.inspect_picture import picture
from apps.dashboard.inspect_tables import HIDDEN, SEEN, SORT_HELP, Others, beside, over_steps, top_features
from apps.dashboard.inspected import TOP, Shown, Subject
from apps.dashboard.shell import Opened
from apps.inspecting import Region
from apps.inspecting.ranking import SORTS
from apps.inspecting.region import WHOLE
from sae import FeatureBundle


@st.fragment
def view(opened: Opened, bundle: FeatureBundle, subject: Subject, others: Others) -> None:
    """Everything about one image.

    Args:
        opened: the run.
        bundle: of the open dictionary.
        subject: the image.
        others: what it can be compared with.
    """
    with shell.reading("The sample"):
        _show(opened, bundle, subject, others)


def _show(opened: Opened, bundle: FeatureBundle, subject: Subject, others: Others) -> None:
    address = Address()
    look = address.one_of(links.LOOK, what="view", choices=tiles.VIEWS, default="overlay")
    shown = _decide(address, opened, bundle, subject)
    _controls(shown)
    shell.tell(address)
    if shown.branch != bundle.info["branch"]:
        st.caption(f"Surprise compares with branch {bundle.info['branch']}, of which this bundle was made.")
    left, right = st.columns([5, 7], gap="medium")
    with left:
        picture(shown, look)
    with right:
        top_features(shown)
    if len(shown.top):
        over_steps(shown)
        compared = Address()
        beside(opened, shown, others, compared)
        shell.tell(compared)
        compared.save()
    _go_on(opened, shown)
    address.save()


def _decide(address: Address, opened: Opened, bundle: FeatureBundle, subject: Subject) -> Shown:
    """What the address asks for."""
    steps, own = [str(step) for step in bundle.steps], bundle.info["branch"]
    default = own if own in subject.branches else subject.branches[0]
    step = steps.index(address.one_of(links.AT, what="step", choices=steps, default=steps[len(steps) // 2]))
    branch = address.one_of(links.BRANCH, what="branch", choices=subject.branches, default=default)
    codes = subject.codes(branch)
    return Shown(
        bundle=bundle,
        frame=readers.features(bundle.path),
        subject=subject,
        axis=shell.time_axis(bundle.steps, bundle.timesteps, bundle.log_snr),
        codes=codes,
        region=address.parsed(
            links.CELLS, what="cells", parse=lambda text: Region.parse(text, codes.grid), default=WHOLE
        ),
        step=step,
        branch=branch,
        sort=address.one_of(links.SORT, what="order", choices=SORTS, default=SORTS[0]),
        dense=address.one_of(links.DENSE, what="dense features", choices=(HIDDEN, SEEN), default=HIDDEN) == SEEN,
        asked=address.parsed(
            links.SHOWN,
            what="feature",
            parse=lambda text: inspected.feature_number(text, bundle.n_features),
            default=TOP,
        ),
        query=_query(opened),
    )


def _query(opened: Opened) -> str:
    """What the address of a feature's page says besides the feature."""
    named = {links.RUN: opened.run.name, links.BUNDLE: opened.name or ""}
    kept = {key: value for key, value in named.items() if key in st.query_params}
    return "&" + urlencode(kept | {links.UNIT: opened.unit})


def _controls(shown: Shown) -> None:
    """Step, branch, order, dense features."""
    steps = [str(step) for step in shown.bundle.steps]
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        if len(steps) > 1:
            st.select_slider(
                "Step",
                steps,
                key=widget(links.AT),
                on_change=changed,
                args=(links.AT,),
                format_func=lambda name: shown.axis.short(steps.index(name)),
                help="Noise on the left, image on the right.",
                width="stretch",
            )
        if len(shown.subject.branches) > 1:
            _one_of("Branch", links.BRANCH, list(shown.subject.branches), "Half of classifier-free guidance.")
        _one_of("Order by", links.SORT, list(SORTS), SORT_HELP)
        _one_of(
            "Dense features",
            links.DENSE,
            [HIDDEN, SEEN],
            f"Features on in more than {shown.bundle.info['dense_above']:.0%} of all rows say little about one image.",
        )


def _one_of(label: str, key: str, names: list[str], about: str) -> None:
    st.segmented_control(label, names, key=widget(key), on_change=changed, args=(key,), required=True, help=about)


def _go_on(opened: Opened, shown: Shown) -> None:
    """The commands that go on from here, and the table in Python."""
    if opened.sae is None or opened.name is None:
        return
    plan, subject = readers.opened_store(opened.run).plan, shown.subject
    commands = inspected.as_command(
        opened.run.folder,
        subject,
        model=str(plan.get("model", "MODEL")),
        steps=plan.get("steps"),
        sae=opened.sae,
        feature=shown.feature,
    )
    st.caption("All of this is observed. Draw the image again, and find out what the feature causes by pushing it:")
    if commands:
        st.code(commands, language="bash", wrap_lines=True)
    if subject.sample is not None:
        with st.expander("The table in Python", icon=":material/code:"):
            st.code(inspected.as_python(opened.run.folder, opened.name, shown), language="python")
