"""A feature as one of two panes: its numbers, its examples at a locked step, its curve. Both panes are this component.

Colours are on each feature's own scale, from 0 to its maximum: activations of two dictionaries have different units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import streamlit as st

from apps.dashboard import browse, figures, links, readers, shell, tiles
from apps.dashboard.chart_style import CONFIG
from apps.dashboard.gallery import colour_bar
from apps.dashboard.readers import Place
from apps.dashboard.shell import FEATURE_PAGE
from apps.runs import Run
from sae import FeatureBundle

N_EXAMPLES = 8


@dataclass(frozen=True)
class Side:
    """One feature of one dictionary.

    Attributes:
        letter: A or B.
        run: its run.
        name: of its dictionary.
        several: whether the dashboard has more than one run.
        feature: its number.
    """

    letter: str
    run: Run
    name: str
    several: bool
    feature: int

    @property
    def place(self) -> Place:
        """Folders of its bundle and dictionary."""
        return Place(self.run.bundles()[self.name], self.run.saes().get(self.name))

    @property
    def bundle(self) -> FeatureBundle:
        """The bundle, opened."""
        return readers.bundle(self.place.bundle)

    @property
    def link(self) -> dict[str, str]:
        """What a link to the feature's page says."""
        return ({links.RUN: self.run.name} if self.several else {}) | {
            links.BUNDLE: self.name,
            links.FEATURE: str(self.feature),
        }


def pane(side: Side, index: int | None, look: tiles.Look) -> None:
    """The whole pane.

    Args:
        side: what to show.
        index: of the locked step in this bundle; None for each example's strongest step.
        look: how maps are drawn.
    """
    bundle = side.bundle
    row = bundle.stats(side.feature)
    label = f"{side.letter}: feature {side.feature}"
    st.page_link(FEATURE_PAGE, label=label, query_params=side.link, icon=":material/open_in_new:")
    told = browse.best_factor(row, browse.labelled(bundle))
    known = f"tells {told} {row[f'best_{told}']}, AUC {row[f'auc_{told}']:.2f}" if told else "no labels"
    state = browse.state(row["dead"], row["dense"])
    st.caption(shell.problem_text(f"{side.name} · {bundle.info['site']}"))
    st.caption(shell.problem_text(" · ".join(part for part in (known, state) if part)))
    if row["dead"]:
        st.info("This feature is dead: never on in the images of its bundle.", icon=":material/do_not_disturb_on:")
        return
    axis = shell.time_axis(bundle.steps, bundle.timesteps, bundle.log_snr)
    with st.grid(columns=4, min_column_width=90):
        st.metric("Density", f"{100 * row['density']:.2f} %", help="Share of rows in which the feature is on.")
        st.metric("Fires in", f"{100 * row['sample_fraction']:.1f} %", help="Share of images in which it is on.")
        st.metric("Max", f"{row['max']:.2f}", help="Largest activation, in the units of the site.")
        st.metric("Peak", axis.short(bundle.steps.index(row["peak_step"])), help=f"In the unit of {axis.title}.")
    colour_bar(look.colours, row["max"], "each at its strongest step" if index is None else axis.label(index))
    examples(side, bundle, index, look)
    curve = bundle.mean_by_step[:, side.feature]
    figure = figures.over_time(axis, {"mean": curve}, y_title="mean activation", marked=index, height=220)
    st.plotly_chart(figure, config=CONFIG, key=f"cp_mean_{side.letter}", alt=f"Mean activation of {label} over steps")


def examples(side: Side, bundle: FeatureBundle, index: int | None, look: tiles.Look) -> None:
    """The strongest examples with their maps at the locked step."""
    found = bundle.examples(side.feature)
    step = None if index is None else bundle.steps[index]
    pictures = readers.example_tiles(bundle.path, side.feature, step, look, tiles.SIDE)
    maps = bundle.maps(side.feature)
    with st.grid(columns=4, min_column_width=96, gap="small"):
        for example, picture in list(zip(found, pictures, strict=True))[:N_EXAMPLES]:
            at = bundle.steps.index(example.step) if index is None else index
            here = float(np.max(maps[example.rank, at]))
            with st.container(gap="xxsmall"):
                st.image(picture, width="stretch", alt=f"{side.letter}, example {example.rank + 1}: up to {here:.2f}")
                st.caption(f"{here:.2f} at step {bundle.steps[at]}")
                st.text(example.prompt)
