"""Directions: vectors that the finders saved in the run, over steps, beside each other and beside the features."""

from __future__ import annotations

import shlex

import numpy as np
import streamlit as st

from apps.dashboard import browse, directions, figures, gallery, links, readers, shell
from apps.dashboard.address import Address, changed, widget
from apps.dashboard.chart_style import CONFIG
from apps.dashboard.directions import Saved
from apps.dashboard.shell import FEATURE_PAGE, Opened, provenance, reading


def empty(opened: Opened) -> None:
    """How to find one."""
    run, store = shlex.quote(str(opened.run.folder)), readers.collected(opened.run)
    site = f" --site {store.sites[0][0]}" if store and store.sites else ""
    factor = store.factors[0] if store and store.factors else "object"
    st.markdown("No direction has been saved in this run. Fit one on the recorded rows; that takes seconds:")
    st.code(
        f"denoscope directions {run}{site} --method mean-difference --factor {factor} --positive LABEL\n"
        f"denoscope directions {run}{site} --method pca",
        language="bash",
    )


def overview(listed: list[Saved]) -> None:
    """All of them, and how alike they are."""
    st.dataframe(
        [
            {
                "Name": d.name,
                "Method": d.finder,
                "Concept": d.concept or "none: no labels",
                "Site": d.site,
                "Vectors": d.basis.shape[1],
                "Steps": "one vector for all" if len(d.basis) == 1 else f"{len(d.basis)}, a vector each",
            }
            for d in listed
        ],
        hide_index=True,
        alt="Saved directions",
    )
    if len(listed) > 1:
        st.subheader("How alike they are", anchor=False)
        names = [d.name for d in listed]
        figure = figures.signed_matrix(names, names, directions.likeness(listed), colour_title="cosine")
        st.plotly_chart(figure, config=CONFIG, key="dr_alike", alt="Cosine between every two directions")
        st.caption("Cosine of the first vectors, mean over steps. Empty where they lie at different sites.")


def over_steps(opened: Opened, chosen: Saved) -> None:
    """Whether one vector serves all steps, and how much the site varies along it."""
    n = len(chosen.basis)
    st.subheader("Over denoising time", anchor=False)
    if n == 1:
        st.caption(f"One vector for all steps. One unit of strength is {chosen.scale[0, 0]:.3g} long at this site.")
        return
    steps = [str(i) for i in range(n)]
    left, right = st.columns(2)
    with left:
        figure = figures.signed_matrix(
            steps, steps, chosen.over_steps(), colour_title="cosine", x_title="step", y_title="step"
        )
        st.plotly_chart(figure, config=CONFIG, key="dr_steps", alt="Cosine of the vector between steps")
        st.caption("Cosine of the vector between steps: where it is near 1, one vector would do for both.")
    with right:
        store = readers.collected(opened.run)
        times = chosen.timesteps or tuple(range(n))
        axis = shell.time_axis(tuple(range(n)), tuple(map(float, times)), log_snr_of(opened, n))
        figure = figures.over_time(axis, {"scale": chosen.scale[:, 0]}, y_title="length of one unit of strength")
        st.plotly_chart(figure, config=CONFIG, key="dr_scale", alt="Length of one unit of strength at each step")
        st.caption(
            "A strength of 1 moves a row by this much: the site's standard deviation along the vector"
            + (f", over {store.n_committed:,} images." if store else ".")
        )


def log_snr_of(opened: Opened, n: int) -> tuple[float, ...]:
    """Noise levels of the store's steps; the steps themselves where the direction has others."""
    from activations_store import ActivationStore

    if readers.collected(opened.run) is not None:
        found = ActivationStore.open(opened.run.store).spec.log_snr
        if len(found) == n:
            return tuple(found)
    return tuple(map(float, range(n)))


def beside_features(opened: Opened, chosen: Saved) -> None:
    """Features of the open dictionary that point the same way."""
    if opened.bundle is None or opened.sae is None:
        return
    bundle = readers.bundle(opened.bundle)
    st.subheader("Features that point the same way", anchor=False)
    if bundle.info["site"] != chosen.site:
        st.caption(
            shell.problem_text(f"The open dictionary is at {bundle.info['site']}, this direction at {chosen.site}. ")
            + "Choose another dictionary in the side bar."
        )
        return
    near = directions.nearest_features(chosen, readers.decoder(opened.sae))
    if not near:
        st.caption("This direction is a whole map, which has no single feature beside it.")
        return
    chance = np.sqrt(2 * np.log(bundle.n_features) / chosen.basis.shape[2])
    st.caption(
        f"Cosine of the decoder row with the direction, mean over steps. The largest of {bundle.n_features:,} random "
        f"directions would be near {min(1.0, chance):.2f}. A minus: the feature points the other way."
    )
    factors = browse.labelled(bundle)
    with st.grid(columns=8, min_column_width=96, gap="xsmall"):
        for feature, cosine in near:
            with st.container(border=True, gap="xxsmall"):
                gallery.thumbnail(bundle, feature)
                st.page_link(FEATURE_PAGE, label=f"feature {feature}", query_params={links.FEATURE: str(feature)})
                row = bundle.stats(feature)
                told = browse.best_factor(row, factors)
                st.caption(f"cosine {cosine:+.2f}")
                st.text(row[f"best_{told}"] if told else browse.state(row["dead"], row["dense"]))


def page() -> None:
    """The whole page."""
    opened = shell.opened()
    st.title("Directions", anchor=False)
    st.caption(
        "A direction is a vector at a site, however it was found. What is shown here is observed; what adding it does "
        "to pictures is measured by `denoscope steer --direction`."
    )
    with reading("The directions"):
        listed = [readers.direction(opened.run.folder / "directions" / n) for n in directions.names(opened.run.folder)]
        if not listed:
            empty(opened)
            return
        overview(listed)
        address = Address()
        names = [d.name for d in listed]
        name = address.one_of(links.DIRECTION, what="direction", choices=names, default=names[0])
        st.selectbox("Direction", names, key=widget(links.DIRECTION), on_change=changed, args=(links.DIRECTION,))
        address.save()
        shell.tell(address)
        chosen = listed[names.index(name)]
        over_steps(opened, chosen)
        beside_features(opened, chosen)
        folder, run = shlex.quote(str(chosen.path)), shlex.quote(str(opened.run.folder))
        st.subheader("Test it", anchor=False)
        st.code(f"denoscope steer --direction {folder} --out {run}/steer-{name}", language="bash")
        provenance(chosen.site, chosen.finder, chosen.concept, f"{chosen.basis.shape[1]} vectors")


page()
