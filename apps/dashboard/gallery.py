"""The gallery of a feature: its strongest examples under their maps, and one of them over all steps.

One colour scale, from 0 to the feature's maximum, holds for every picture of the page. The gallery is a
fragment: moving its controls reruns nothing else.
"""

from __future__ import annotations

from typing import Literal

import streamlit as st

from apps.dashboard import links, readers, shell, tiles
from apps.dashboard.address import Address, changed, widget
from sae import Example, FeatureBundle

STRONGEST = "strongest"
"""In a link: each example at its own strongest step."""
_OPACITY = 80  # percent
_THUMBNAIL = 160  # pixels


def thumbnail(bundle: FeatureBundle, feature: int, *, width: int | Literal["stretch"] = "stretch") -> None:
    """A feature's strongest example under its map; nothing for a dead feature."""
    picture = readers.best_tile(bundle.path, feature, _THUMBNAIL)
    if picture is not None:
        st.image(picture, width=width, alt=f"Strongest example of feature {feature} with its activation map")


@st.fragment
def examples(bundle: FeatureBundle, feature: int, found: list[Example]) -> None:
    """The samples with the largest activation under the feature's map, then one of them over all steps."""
    address = Address()
    names = [STRONGEST, *map(str, bundle.steps)]
    axis = shell.time_axis(bundle.steps, bundle.timesteps, bundle.log_snr)
    shown = address.one_of(links.STEP, what="step", choices=names, default=STRONGEST)
    look = look_of(address)
    rank = address.whole_number(links.EXAMPLE, what="example", low=1, high=len(found), default=1)

    st.subheader("Strongest examples")
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        st.select_slider(
            "Step",
            names,
            key=widget(links.STEP),
            on_change=changed,
            args=(links.STEP,),
            format_func=lambda name: name if name == STRONGEST else axis.short(bundle.steps.index(int(name))),
            help="The step whose maps are shown; strongest: each example at its own strongest step.",
            width="stretch",
        )
        look_widgets(look)
    shell.tell(address)
    step = None if shown == STRONGEST else int(shown)
    scale = bundle.stats(feature)["max"]
    colour_bar(
        look.colours, scale, "each at its strongest step" if step is None else axis.label(bundle.steps.index(step))
    )
    pictures = readers.example_tiles(bundle.path, feature, step, look, tiles.SIDE)
    maps = bundle.maps(feature)
    with st.grid(columns=8, min_column_width=135):
        for example, picture in zip(found, pictures, strict=True):
            at = example.step if step is None else step
            here = float(maps[example.rank, bundle.steps.index(at)].max())
            with st.container(gap="xxsmall"):
                st.image(
                    picture,
                    width="stretch",
                    alt=f"Example {example.rank + 1}: activation up to {here:.2f} at step {at}",
                )
                st.caption(
                    f"#{example.rank + 1} · {here:.2f} at step {at}" + ("" if example.image else " · no picture")
                )
                st.text(example.prompt)
    one_example(bundle, feature, found[rank - 1], len(found), look)
    address.save()


def look_of(address: Address) -> tiles.Look:
    """How the address wants maps drawn."""
    view = address.one_of(links.VIEW, what="view", choices=tiles.VIEWS, default="overlay")
    colours = address.one_of(links.COLOURS, what="colour map", choices=tiles.COLOUR_MAPS, default=tiles.COLOUR_MAPS[0])
    opacity = address.whole_number(links.OPACITY, what="opacity", low=0, high=100, default=_OPACITY)
    return tiles.Look(view, colours, opacity / 100)


def look_widgets(look: tiles.Look) -> None:
    """The three controls of that, in a row that the caller opened."""
    st.segmented_control(
        "Show",
        list(tiles.VIEWS),
        format_func=tiles.VIEWS.__getitem__,
        key=widget(links.VIEW),
        on_change=changed,
        args=(links.VIEW,),
        required=True,
    )
    st.selectbox(
        "Colours",
        list(tiles.COLOUR_MAPS),
        key=widget(links.COLOURS),
        on_change=changed,
        args=(links.COLOURS,),
        width=130,
    )
    st.slider(
        "Opacity",
        0,
        100,
        step=5,
        format="%d %%",
        key=widget(links.OPACITY),
        on_change=changed,
        args=(links.OPACITY,),
        width=150,
        disabled=look.view != "overlay",
    )


def one_example(bundle: FeatureBundle, feature: int, chosen: Example, n_examples: int, look: tiles.Look) -> None:
    """One example at every step, on the feature's colour scale."""
    axis = shell.time_axis(bundle.steps, bundle.timesteps, bundle.log_snr)
    maps = bundle.maps(feature)[chosen.rank]
    st.subheader("One example over all steps")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.number_input(
            "Example", 1, n_examples, key=widget(links.EXAMPLE), on_change=changed, args=(links.EXAMPLE,), width=130
        )
        with st.container(gap="xxsmall"):
            st.text(chosen.prompt)
            st.caption(
                f"sample {chosen.sample} · seed {chosen.seed} · "
                "noise on the left, image on the right, on the same colour scale"
            )
    strip = readers.example_strip(bundle.path, feature, chosen.rank, look, 144)
    with st.grid(columns=min(len(strip), 10), min_column_width=88, gap="xsmall"):
        for index, picture in enumerate(strip):
            peak = float(maps[index].max())
            with st.container(gap="xxsmall"):
                st.image(picture, width="stretch", alt=f"{axis.label(index)}: activation up to {peak:.2f}")
                st.caption(f"{axis.short(index)} · {peak:.1f}")


def colour_bar(colours: str, scale: float, where: str) -> None:
    """The colours with their two ends; one scale for the whole page."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption("0 (off)", width="content")
        st.image(tiles.colour_bar(colours), width=260, alt=f"Colour scale from 0 to {scale:.2f}")
        st.caption(f"{scale:.2f} activation, the feature's maximum · {where}", width="content")
