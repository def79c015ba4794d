"""Inspect: one image through all features at once. Which are on, where, when, and what is unusual about them.

A recorded sample is read from the store and encoded on the CPU; a prompt of one's own is drawn only when asked for.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import streamlit as st

from apps.dashboard import browse, inspect_view, links, own_prompt, readers, shell
from apps.dashboard.address import Address, changed, go, widget
from apps.dashboard.inspected import Subject
from apps.dashboard.shell import Opened, provenance, reading
from sae import FeatureBundle

RECORDED, OWN = "recorded", "own"
_LISTED = 100  # prompts in the list


def recorded(opened: Opened, sae: Path, bundle: FeatureBundle, number: int) -> Subject:
    """A sample of the store as the page shows it; ``sae`` is the dictionary's folder."""
    store = readers.opened_store(opened.run)
    row = readers.sample(opened.run, number)

    def picture(step: int) -> tuple[np.ndarray | None, str]:
        image = readers.sample_image(opened.run, number)
        return image, "The finished image" if image is not None else "No image was saved with this sample"

    return Subject(
        name=f"sample {number}",
        prompt=row["prompt"],
        seed=row["seed"],
        about=", ".join(f"{k.removeprefix('label_')} {v}" for k, v in row.items() if k.startswith("label_") and v),
        branches=store.spec.branches,
        codes=lambda branch: readers.sample_codes(opened.run, sae, number, bundle.steps, branch),
        picture=picture,
        sample=number,
        guidance=store.plan.get("guidance"),
    )


def choose(opened: Opened) -> int:
    """The sample that is inspected, found by words of its prompt, in the list, or by number."""
    address = Address()
    last = readers.opened_store(opened.run).spec.n_samples - 1
    number = address.whole_number(links.SAMPLE, what="sample", low=0, high=last, default=0)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        words = st.text_input(
            "Find in prompts", key="in_words", width=220, placeholder="all of these words", max_chars=200
        )
        found, total = readers.matching(opened.run, words, _LISTED)
        shown = found if number in found else [number, *found]
        st.session_state["in_list"] = number
        st.selectbox(
            f"Sample ({total:,} match)" if words.strip() else "Sample",
            shown,
            key="in_list",
            format_func=lambda n: f"{n} · {readers.sample(opened.run, n)['prompt']}",
            on_change=lambda: go(links.SAMPLE, st.session_state["in_list"]),
        )
        st.number_input("Number", 0, last, key=widget(links.SAMPLE), on_change=changed, args=(links.SAMPLE,), width=140)
    if words.strip() and not total:
        st.info("No prompt holds all of these words.", icon=":material/filter_alt_off:")
        st.button("Clear the words", on_click=lambda: st.session_state.update(in_words=""), key="in_clear")
    address.save()
    shell.tell(address)
    return number


def missing(opened: Opened) -> None:
    """What Inspect lacks, and the command that makes it."""
    step = shell.next_step(opened.run, opened.name)
    run = shlex.quote(str(opened.run.folder))
    if step is not None and opened.bundle is None:
        shell.show_next_step(*step)
    elif opened.bundle is None:
        st.caption("This folder holds results and no dictionary; they are under Measurements.")
    elif readers.collected(opened.run) is None:
        shell.show_next_step(
            "Inspect reads samples from the store, and it is not in this run. Put it back, or collect again.",
            f"denoscope collect --model canvas --sites mid_block --out {run}",
        )
    else:
        site = readers.bundle(opened.bundle).info["site"]
        shell.show_next_step(
            "Inspect encodes samples with the dictionary itself, and only its feature bundle is here.",
            f"denoscope train {run}/store --site {shlex.quote(site)}",
        )


def choose_source() -> str:
    """A recorded sample or a prompt of one's own."""
    address = Address()
    source = address.one_of(links.INSPECT, what="source", choices=(RECORDED, OWN), default=RECORDED)
    st.segmented_control(
        "Image",
        [RECORDED, OWN],
        format_func={RECORDED: "Recorded sample", OWN: "Own prompt"}.__getitem__,
        key=widget(links.INSPECT),
        on_change=changed,
        args=(links.INSPECT,),
        required=True,
        label_visibility="collapsed",
    )
    address.save()
    shell.tell(address)
    return source


def page(opened: Opened) -> None:
    """The whole page."""
    st.title("Inspect", anchor=False)
    folder, sae = opened.bundle, opened.sae
    with reading("The sample"):
        if folder is None or sae is None or readers.collected(opened.run) is None:
            missing(opened)
            return
        bundle = readers.bundle(folder)
        source = choose_source()
        made = own_prompt.drawn(opened)
        subject = None
        others: dict[str, Callable[[int], Subject]] = {"sample": lambda number: recorded(opened, sae, bundle, number)}
        if source == RECORDED:
            subject = recorded(opened, sae, bundle, choose(opened))
            if made is not None:
                others["own prompt"] = lambda _: own_prompt.subject(opened, sae, bundle, made)
        else:
            own_prompt.form(opened, sae)
            subject = own_prompt.subject(opened, sae, bundle, made) if made is not None else None
        if subject is not None:
            with st.container(gap="xxsmall"):
                st.text(subject.prompt)
                st.caption(shell.problem_text(f"{subject.name} · seed {subject.seed} · {subject.about}"))
            inspect_view.view(opened, bundle, subject, others)
        provenance(*browse.provenance(bundle))


page(shell.opened())
