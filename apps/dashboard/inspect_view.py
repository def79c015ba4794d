"""Inspect's view of one image: the picture whose cells can be chosen, the features that are on there, and when.

A fragment: choosing cells, a step or a feature reruns nothing else. All of it is observed; what a feature causes is the
business of ``denoscope steer``, whose command stands below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlencode

import numpy as np
import streamlit as st

from apps.dashboard import browse, figures, inspected, links, readers, shell, tiles
from apps.dashboard.address import Address, changed, go, widget
from apps.dashboard.chart_style import CONFIG
from apps.dashboard.inspect_figures import cell_picker
from apps.dashboard.inspected import N_RASTER, N_ROWS, TOP, Subject
from apps.dashboard.shell import FEATURE_PAGE, Opened
from apps.dashboard.timeaxis import TimeAxis
from apps.inspecting import Codes, Corpus, Measures, Region, compare, measure, ranked
from apps.inspecting.ranking import SORTS
from apps.inspecting.region import WHOLE
from sae import FeatureBundle

Others = Mapping[str, Callable[[int], Subject]]
"""Name of a kind of second image -> the image of a number; a kind that has only one ignores the number."""
HIDDEN, SHOWN = "hidden", "shown"
_SIDE = 448  # pixels of the picture
_SORT_HELP = (
    "Activation: the largest in the selected cells. Share: of the summed code there. Surprise, in bits: "
    "log2((a + e) / (m + e)) with a the mean activation in the cells, m the mean over all images and cells at this "
    "step, and e a hundredth of the feature's 99th percentile; a counts up to that percentile."
)


@st.fragment
def view(opened: Opened, bundle: FeatureBundle, subject: Subject, others: Others) -> None:
    """Everything about one image.

    Args:
        opened: the run.
        bundle: of the open dictionary.
        subject: the image.
        others: what it can be compared with.
    """
    address = Address()
    axis = shell.time_axis(bundle.steps, bundle.timesteps, bundle.log_snr)
    step = _step(address, bundle, axis, subject)
    own = bundle.info["branch"]
    branch = address.one_of(
        links.BRANCH,
        what="branch",
        choices=subject.branches,
        default=own if own in subject.branches else subject.branches[0],
    )
    codes = subject.codes(branch)
    region = address.parsed(links.CELLS, what="cells", parse=lambda text: Region.parse(text, codes.grid), default=WHOLE)
    sort = address.one_of(links.SORT, what="order", choices=SORTS, default=SORTS[0])
    dense = address.one_of(links.DENSE, what="dense features", choices=(HIDDEN, SHOWN), default=HIDDEN)
    look = address.one_of(links.LOOK, what="view", choices=tiles.VIEWS, default="overlay")
    asked = address.parsed(
        links.SHOWN, what="feature", parse=lambda text: inspected.feature_number(text, bundle.n_features), default=TOP
    )
    found = measure(codes, region.tokens, step, Corpus.of(bundle))
    frame = readers.features(bundle.path)
    keep = np.full(bundle.n_features, True) if dense == SHOWN else ~frame["dense"].to_numpy()
    top = ranked(found, sort, keep)
    feature = asked if asked is not None else (int(top[0]) if len(top) else None)

    _controls(axis, bundle, subject)
    shell.tell(address)
    if branch != own:
        st.caption(f"The corpus of this bundle is branch {own}: surprise compares with that.")
    left, right = st.columns([5, 7], gap="medium")
    with left:
        _picture(bundle, subject, codes, region, step, feature, look)
    with right:
        _table(opened, bundle, found, top, keep, axis, sort)
    if len(top):
        _raster(bundle, found, top, axis, step)
        _compare(opened, bundle, found, keep, step, branch, region, others, address)
    _copy(opened, subject, bundle.steps[step], branch, region, sort, dense == SHOWN, feature)
    address.save()


def _step(address: Address, bundle: FeatureBundle, axis: TimeAxis, subject: Subject) -> int:
    """Index of the step that is shown."""
    names = [str(step) for step in bundle.steps]
    return names.index(address.one_of(links.AT, what="step", choices=names, default=names[len(names) // 2]))


def _controls(axis: TimeAxis, bundle: FeatureBundle, subject: Subject) -> None:
    """Step, branch, order, dense features."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        if len(bundle.steps) > 1:
            st.select_slider(
                "Step",
                [str(step) for step in bundle.steps],
                key=widget(links.AT),
                on_change=changed,
                args=(links.AT,),
                format_func=lambda name: axis.short(bundle.steps.index(int(name))),
                help="Noise on the left, image on the right.",
                width="stretch",
            )
        if len(subject.branches) > 1:
            st.segmented_control(
                "Branch",
                list(subject.branches),
                key=widget(links.BRANCH),
                on_change=changed,
                args=(links.BRANCH,),
                required=True,
                help="Half of classifier-free guidance.",
            )
        st.segmented_control(
            "Order by",
            list(SORTS),
            key=widget(links.SORT),
            on_change=changed,
            args=(links.SORT,),
            required=True,
            help=_SORT_HELP,
        )
        st.segmented_control(
            "Dense features",
            [HIDDEN, SHOWN],
            key=widget(links.DENSE),
            on_change=changed,
            args=(links.DENSE,),
            required=True,
            help=f"Features on in more than {bundle.info['dense_above']:.0%} of all rows say little about one image.",
        )


def _picture(
    bundle: FeatureBundle, subject: Subject, codes: Codes, region: Region, step: int, feature: int | None, look: str
) -> None:
    """The image under the map of one feature, and the cells that are chosen."""
    image, what = subject.picture(bundle.steps[step])
    heat = np.zeros(codes.grid, np.float32) if feature is None else codes.maps(feature)[step]
    scale = 0.0 if feature is None else float(bundle.stats(feature)["max"]) or float(heat.max())
    picture = tiles.tile(image, heat, scale=scale, look=tiles.Look(look), side=_SIDE)
    alt = f"{what}, under the map of feature {feature}; {region} of the cells are selected"
    if bundle.grid is None:
        _band(picture, image, alt)
    else:
        key = f"in_pick_{region}"  # a new chart for a new selection, so that the old box does not stay
        st.plotly_chart(
            cell_picker(tiles.jpeg(picture), heat, region),
            config=CONFIG,
            key=key,
            on_select=partial(_picked, key, codes.grid),
            selection_mode=("points", "box"),
            alt=alt,
        )
    st.caption(what + ("" if bundle.grid is None else ". A click selects a cell, a drag a rectangle."))
    if feature is not None:
        _scale(bundle, codes, feature, scale, step)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.text_input(
            "Cells",
            key=widget(links.CELLS),
            on_change=changed,
            args=(links.CELLS,),
            max_chars=40,
            width=130,
            help=f"Rows, then columns, such as 4-7,8-11; or {WHOLE}. The map has {codes.grid[0]} x {codes.grid[1]}.",
        )
        st.button(
            "Whole image",
            icon=":material/select_all:",
            on_click=go,
            args=(links.CELLS, WHOLE),
            key="in_whole",
            disabled=str(region) == WHOLE,
        )
        st.segmented_control(
            "Show",
            list(tiles.VIEWS),
            format_func=tiles.VIEWS.__getitem__,
            key=widget(links.LOOK),
            on_change=changed,
            args=(links.LOOK,),
            required=True,
        )


def _band(picture: np.ndarray, image: np.ndarray | None, alt: str) -> None:
    """A site without a grid: its tokens are no cells of the image, so the map stands beside it."""
    if image is not None:
        st.image(tiles.jpeg(image), width=_SIDE, alt="The image")
    st.image(tiles.jpeg(picture), width=_SIDE, alt=alt)
    st.caption("The tokens of this site are not cells of the image; they are numbered from left to right in row 0.")


def _scale(bundle: FeatureBundle, codes: Codes, feature: int, scale: float, step: int) -> None:
    """Which feature's map it is, its colours, and the way to its page."""
    here = float(codes.maps(feature)[step].max())
    row = bundle.stats(feature)
    told = browse.best_factor(row, browse.labelled(bundle))
    label = f" · {told} {row[f'best_{told}']}, AUC {row[f'auc_{told}']:.2f}" if told else ""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.page_link(
            FEATURE_PAGE,
            label=f"Feature {feature}",
            icon=":material/blur_on:",
            query_params={links.FEATURE: str(feature)},
        )
        st.caption(shell.problem_text(f"up to {here:.2f} here{label}"), width="content")
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption("0 (off)", width="content")
        st.image(tiles.colour_bar("heat"), width=180, alt=f"Colour scale from 0 to {scale:.2f}")
        clipped = "; larger values have the last colour" if here > scale else ""
        st.caption(f"{scale:.2f}, its maximum over the corpus{clipped}", width="content")


def _picked(key: str, grid: tuple[int, int]) -> None:
    """Callback of the picture: the cells of a click or a drag go into the address."""
    points = st.session_state[key]["selection"]["points"]
    if points:  # a selection that was taken back says nothing
        cells = [divmod(int(point["customdata"]), grid[1]) for point in points]
        go(links.CELLS, Region.around(grid, cells))


def _table(
    opened: Opened,
    bundle: FeatureBundle,
    found: Measures,
    top: np.ndarray,
    keep: np.ndarray,
    axis: TimeAxis,
    sort: str,
) -> None:
    """The features that are on in the selection."""
    hidden = int(np.count_nonzero((found.mean > 0) & ~keep))
    if not len(top):
        _nothing(hidden)
        return
    shown = top[:N_ROWS]
    first = "" if len(shown) == len(top) else f"; the first {len(shown)} are shown"
    st.caption(
        f"{len(top):,} features are on in the selection at this step{first}"
        + (f"; {hidden:,} dense ones are hidden" if hidden else "")
        + ". The box before a row shows its map, the number opens its page."
    )
    factors = browse.labelled(bundle)
    frame = inspected.table(shown, found, readers.features(bundle.path), factors, axis, query(opened))
    key = f"in_table_{sort}_{hash(shown.tobytes())}"  # a new table for new rows, so that no old row stays selected
    st.dataframe(
        frame if factors else frame.drop(columns=["Label", "AUC"]),
        hide_index=True,
        height=520,
        on_select=partial(_chosen, key, tuple(shown.tolist())),
        selection_mode="single-row",
        column_config=_columns(axis),
        key=key,
        alt=f"The {len(shown)} features with the largest {sort} in the selection",
    )


def _nothing(hidden: int) -> None:
    """An empty table, and what would fill it."""
    if hidden:
        st.info(f"Only dense features are on here, and they are hidden: {hidden:,}.", icon=":material/filter_alt_off:")
        st.button("Show dense features", on_click=go, args=(links.DENSE, SHOWN), key="in_relax")
    else:
        st.info("No feature is on in these cells at this step.", icon=":material/filter_alt_off:")
        st.button("Select the whole image", on_click=go, args=(links.CELLS, WHOLE), key="in_relax")


def _chosen(key: str, features: Sequence[int]) -> None:
    """Callback of the table: the map of a row's feature is shown, that of the first without a row."""
    rows = st.session_state[key]["selection"]["rows"]
    go(links.SHOWN, features[rows[0]] if rows else TOP)


def _columns(axis: TimeAxis) -> dict[str, Any]:
    number = st.column_config.NumberColumn
    return {
        "Feature": FEATURE_COLUMN,
        "Label": st.column_config.TextColumn(
            help="Where it comes from: of the labels of the run's prompts, the one that the feature tells best."
        ),
        "AUC": number(format="%.2f", width="small", help="How well it tells that label; 0.5 = chance."),
        "Activation": number(format="%.2f", width="small", help="Largest in the selected cells at this step."),
        "Share": number(format="%.1f %%", width="small", help="Of the summed code in the selected cells."),
        "Surprise": number(format="%+.1f", width="small", help=_SORT_HELP),
        "First on": st.column_config.TextColumn(
            width="small", help=f"First {axis.unit} at which it is on in the selected cells."
        ),
        "State": st.column_config.TextColumn(width="small"),
    }


FEATURE_COLUMN = st.column_config.LinkColumn("Feature", display_text=r"f=(\d+)", width="small", pinned=True)


def query(opened: Opened) -> str:
    """What the address of a feature's page says besides the feature."""
    named = {links.RUN: opened.run.name, links.BUNDLE: opened.name or "", links.UNIT: opened.unit}
    several = {links.RUN, links.BUNDLE} & set(st.query_params)
    return "&" + urlencode({key: value for key, value in named.items() if key == links.UNIT or key in several})


def _raster(bundle: FeatureBundle, found: Measures, top: np.ndarray, axis: TimeAxis, step: int) -> None:
    """The first features of the table over all steps, on one colour scale."""
    shown = top[:N_RASTER]
    st.subheader("Over denoising time", anchor=False)
    names = inspected.raster_names(shown, readers.features(bundle.path), browse.labelled(bundle))
    figure = figures.concept_heatmap(
        axis, names, found.by_step[:, shown].T, colour_title="mean activation", marked=step
    )
    st.plotly_chart(
        figure, config=CONFIG, key="in_raster", alt=f"Mean activation of {len(shown)} features at every step"
    )
    st.caption(
        f"The first {len(shown)} features of the table: mean activation in the selected cells at every step, all on "
        "one colour scale. The dotted line is the step shown above."
    )


def _compare(
    opened: Opened,
    bundle: FeatureBundle,
    found: Measures,
    keep: np.ndarray,
    step: int,
    branch: str,
    region: Region,
    others: Others,
    address: Address,
) -> None:
    """The same cells at the same step of a second image: what both have, and what only one has."""
    st.subheader("Beside a second image", anchor=False)
    against = address.one_of(links.AGAINST, what="second image", choices=("nothing", *others), default="nothing")
    second = 0
    last = readers.opened_store(opened.run).spec.n_samples - 1
    if against == "sample":
        second = address.whole_number(links.SECOND, what="sample", low=0, high=last, default=min(1, last))
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        st.segmented_control(
            "Compare with",
            ["nothing", *others],
            key=widget(links.AGAINST),
            on_change=changed,
            args=(links.AGAINST,),
            required=True,
        )
        if against == "sample":
            st.number_input(
                "Sample B", 0, last, key=widget(links.SECOND), on_change=changed, args=(links.SECOND,), width=150
            )
    if against == "nothing":
        return
    with shell.reading("The second image"):
        other = others[against](second)
        if branch not in other.branches:
            st.caption(f"It has no branch {branch}.")
            return
        image, what = other.picture(bundle.steps[step])
        with st.container(horizontal=True, vertical_alignment="center"):
            if image is not None:
                st.image(tiles.jpeg(image), width=96, alt=f"B: {what}")
            with st.container(gap="xxsmall"):
                st.text(f"B: {other.prompt}")
                st.caption(shell.problem_text(f"{other.name} · seed {other.seed} · {other.about}"))
        mean = measure(other.codes(branch), region.tokens, step, Corpus.of(bundle)).mean
        parts = compare(found.mean, mean, keep)
        frame, factors = readers.features(bundle.path), browse.labelled(bundle)
        columns = st.columns(3)
        shown = ({"A": found.mean, "B": mean}, {"A": found.mean}, {"B": mean})
        for column, title, features, means in zip(
            columns, ("On in both", "Only in A", "Only in B"), parts, shown, strict=True
        ):
            with column:
                st.markdown(f"**{title}** · {len(features):,}")
                table = inspected.compared_table(features, frame, factors, query(opened), **means)
                number = st.column_config.NumberColumn(
                    format="%.2f", width="small", help="Mean activation in the selected cells at this step."
                )
                st.dataframe(
                    table,
                    hide_index=True,
                    height=300,
                    column_config={"Feature": FEATURE_COLUMN, "A": number, "B": number},
                    key=f"in_compare_{title}",
                    alt=f"{title}: {len(features)} features",
                )


def _copy(
    opened: Opened,
    subject: Subject,
    step: int,
    branch: str,
    region: Region,
    sort: str,
    dense: bool,
    feature: int | None,
) -> None:
    """The same in Python, and the commands that go on from here."""
    if opened.sae is None or opened.name is None:
        return
    plan = readers.opened_store(opened.run).plan
    commands = inspected.as_command(
        opened.run.folder,
        subject,
        model=str(plan.get("model", "MODEL")),
        steps=plan.get("steps"),
        sae=opened.sae,
        feature=feature,
    )
    st.caption("All of this is observed. Draw the image again, and find out what the feature causes by pushing it:")
    if commands:
        st.code(commands, language="bash", wrap_lines=True)
    if subject.sample is not None:
        with st.expander("The table in Python", icon=":material/code:"):
            script = inspected.as_python(
                opened.run.folder,
                opened.name,
                subject,
                step=step,
                branch=branch,
                cells=str(region),
                sort=sort,
                dense=dense,
            )
            st.code(script, language="python")
