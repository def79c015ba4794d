"""The star: puts a feature into one of the run's lists, with a note."""

from __future__ import annotations

import streamlit as st

from apps.dashboard import links, list_files, readers, shell
from apps.dashboard.feature_lists import MOST_NAME, Item, added
from apps.dashboard.shell import LISTS_PAGE
from apps.errors import AppError
from apps.runs import Run

_NEW = "a new list"
_FIRST = "starred"  # the name that is offered for the first list


def star(run: Run, item: Item) -> None:
    """The button, and what it opens: which list, and a note."""
    try:
        lists = readers.lists(run)
    except (OSError, ValueError) as error:
        st.button("Star", icon=":material/star:", disabled=True, help=shell.problem_text(str(error)), key="star_off")
        return
    held = [name for name, one in lists.items() if one.holds(item.dictionary, item.feature)]
    icon = ":material/kid_star:" if held else ":material/star:"
    with st.popover("Starred" if held else "Star", icon=icon, help="Keep this feature in a list of this run."):
        for name in held:
            st.page_link(LISTS_PAGE, label=f"in {shell.problem_text(name)}", query_params={links.LIST: name})
        with st.form(f"star_{item.dictionary}_{item.feature}", border=False):
            chosen = st.selectbox("List", [*lists, _NEW], key="star_list")
            new = st.text_input("Name of a new list", "" if lists else _FIRST, max_chars=MOST_NAME, key="star_new")
            note = st.text_input("Note", key="star_note")
            if st.form_submit_button("Add", type="primary"):
                name = new if new.strip() or chosen == _NEW else chosen  # a name that was typed is meant
                try:
                    kept = Item(item.dictionary, item.feature, item.bundle, note.strip())
                    list_files.change(list_files.file_of(run), lambda held: added(held, name, kept))
                except (AppError, OSError) as error:
                    st.error(shell.problem_text(str(error)))
                else:
                    st.rerun()
