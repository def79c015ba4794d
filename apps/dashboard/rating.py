"""The rater's side of a list: one task after the other, pictures and maps only (blind.py)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import streamlit as st

from apps.dashboard import blind, list_files, readers, shell, tiles
from apps.dashboard.feature_lists import MOST_NAME, MOST_TEXT, SCORES, FeatureList, Item, Score, scored
from apps.errors import AppError
from apps.runs import Run


def rate(run: Run, one: FeatureList) -> None:
    """The whole of blind mode."""
    st.caption(
        "Each task shows pictures that one feature is said to answer to, under the map of where. Some are controls: "
        "pictures of several features at once. Prompts, numbers, notes and labels are hidden; the order is your own."
    )
    rater = st.text_input("Your name", max_chars=MOST_NAME, key="ls_rater", width=300).strip()
    if not rater:
        st.info("Write your name to begin. It is kept with your scores.", icon=":material/person:")
        return
    every = [task for task in blind.tasks(one, rater) if isinstance(task, int) or shown(run, task)]
    left = [task for task in every if not blind.is_scored(one, task, rater)]
    st.progress(1 - len(left) / len(every), text=f"{len(every) - len(left)} of {len(every)} done")
    if not left:
        st.success("All done; thank you. The scores are with the list.", icon=":material/check:")
        return
    task = left[0]
    number = len(every) - len(left)
    with st.grid(columns=4, min_column_width=150):
        for i, picture in enumerate(pictures(run, one, task)):
            st.image(picture, width="stretch", alt=f"Picture {i + 1} of this task")
    with st.form(f"ls_task_{number}", border=False):
        score = st.radio(
            "Is one thing marked in all of these pictures?",
            list(SCORES),
            index=None,
            format_func=lambda s: f"{s}: {SCORES[s]}",
            horizontal=True,
            key=f"ls_score_{number}",
        )
        says = st.text_input("What is it?", max_chars=MOST_TEXT, key=f"ls_says_{number}")
        if st.form_submit_button("Save and next", type="primary"):
            if score is None:
                st.warning("Choose a score first.")
                return
            try:
                given = Score(score, says)
                list_files.change(list_files.file_of(run), lambda held: scored(held, one.name, task, rater, given))
            except (AppError, OSError) as error:
                st.error(shell.problem_text(str(error)))
            else:
                st.rerun()


def shown(run: Run, item: Item) -> bool:
    """Whether an item's feature has pictures here: its bundle is in the run and sound, and it is not dead."""
    folder = run.bundles().get(item.dictionary)
    try:
        bundle = None if folder is None else readers.bundle(folder)
    except (OSError, ValueError):  # a damaged bundle takes one item from a list, not the list
        bundle = None
    if bundle is None:
        return False
    return item.feature < bundle.n_features and not bundle.stats(item.feature)["dead"]


def pictures(run: Run, one: FeatureList, task: Item | int) -> Sequence[bytes]:
    """A task's pictures: a feature's strongest examples, or of a control one of each of its features."""
    if not isinstance(task, int):
        folder = run.bundles()[task.dictionary]
        return readers.example_tiles(folder, task.feature, None, tiles.Look(), tiles.SIDE)[: blind.PICTURES]
    names = [item.dictionary for item in one.items if shown(run, item)]
    folder = run.bundles()[names[task % len(names)]] if names else next(iter(run.bundles().values()))
    alive = np.flatnonzero(~readers.bundle(folder).table.column("dead").to_numpy()).tolist()
    drawn = blind.control_features(one, task, alive)
    return [tile for f in drawn if (tile := readers.best_tile(folder, f, tiles.SIDE)) is not None]
