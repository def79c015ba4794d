"""Lists: features that were starred, in order, with notes; scored without labels by others; exported."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from apps.dashboard import blind, browse, gallery, links, list_files, rating, readers, shell, tables
from apps.dashboard.address import Address, changed, widget
from apps.dashboard.feature_lists import MOST_TEXT, FeatureList, Item, Lists, moved, noted, removed, without
from apps.dashboard.shell import FEATURE_PAGE, Opened, provenance, reading
from apps.errors import AppError
from apps.runs import Run

MODES = {"list": "The list", "blind": "Score without labels"}
_ON_A_PAGE = 12
_FAILED = "ls_failed"


def empty() -> None:
    """How to begin one."""
    st.markdown(
        "There are no lists in this run. Open a feature and press **Star**: it goes into a list, with a note. A list "
        "can be ordered, scored by others who see no labels, and exported."
    )
    st.page_link(FEATURE_PAGE, label="Open a feature", icon=":material/blur_on:")


def edit(run: Run, change: Callable[[Lists], Lists]) -> None:
    """Callback of a button: one change of the file; what goes wrong is told on the page that follows."""
    try:
        list_files.change(list_files.file_of(run), change)
    except (AppError, OSError) as error:
        st.session_state[_FAILED] = str(error)


def note(run: Run, name: str, item: Item, key: str) -> None:
    """Callback of a note."""
    edit(run, lambda lists: noted(lists, name, item, st.session_state[key]))


def numbers(one: FeatureList) -> None:
    """What the raters found, beside the controls."""
    if not one.raters:
        st.caption("Nobody has scored this list yet: choose 'Score without labels' above.")
        return
    (own, control), alpha = blind.means(one), blind.agreement(one)
    with st.grid(columns=4, min_column_width=130):
        st.metric("Raters", str(len(one.raters)), help=shell.problem_text(", ".join(one.raters)), border=True)
        st.metric("Mean score", tables.number(own) or "none", border=True, help="Of the features, 1 to 5.")
        st.metric(
            "Controls",
            tables.number(control) or "none",
            border=True,
            help="Mean score of pictures of several features at once. Scores of features count by how far they are "
            "above this.",
        )
        st.metric(
            "Agreement",
            "none" if alpha != alpha else f"{alpha:.2f}",
            border=True,
            help="Krippendorff's alpha for interval data: 1 = raters agree fully, 0 = as by chance; of two or more.",
        )


def row(run: Run, one: FeatureList, item: Item, place: int) -> None:
    """One item: picture, what is known, the note, and its buttons."""
    key = f"{one.name}_{item.dictionary}_{item.feature}"
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{place}**", width=28)
        if rating.shown(run, item):
            bundle = readers.bundle(run.bundles()[item.dictionary])
            gallery.thumbnail(bundle, item.feature, width=84)
            known = bundle.stats(item.feature)
            told = browse.best_factor(known, browse.labelled(bundle))
            words = f"{told} {known[f'best_{told}']}, AUC {known[f'auc_{told}']:.2f}" if told else ""
            if item.bundle and item.bundle != bundle.bundle_hash[:8]:
                words += " · the bundle was built anew since; numbers may mean other features"
        else:
            words = "cannot be shown: its bundle is not in this run, or damaged, or it is dead"
        with st.container(gap="xxsmall", width=230):
            link = {links.BUNDLE: item.dictionary, links.FEATURE: str(item.feature)}
            st.page_link(FEATURE_PAGE, label=f"feature {item.feature}", query_params=link)
            st.caption(shell.problem_text(" · ".join(part for part in (item.dictionary, words) if part)))
        st.text_input(
            "Note",
            item.note,
            max_chars=MOST_TEXT,
            key=f"ls_note_{key}",
            on_change=note,
            args=(run, one.name, item, f"ls_note_{key}"),
            placeholder="note",
            label_visibility="collapsed",
        )
        with st.container(gap="xxsmall", width=150):
            if item.mean is not None:
                n = len(item.scores)
                st.caption(f"score {item.mean:.1f} by {n} rater{'s' if n > 1 else ''}")
                said = dict.fromkeys(score.says for score in item.scores.values() if score.says)
                st.text("; ".join(said))
        for icon, what, change in (
            (":material/arrow_upward:", "up", lambda lists: moved(lists, one.name, item, -1)),
            (":material/arrow_downward:", "down", lambda lists: moved(lists, one.name, item, 1)),
            (":material/close:", "remove", lambda lists: removed(lists, one.name, item)),
        ):
            st.button(
                icon, key=f"ls_{what}_{key}", on_click=edit, args=(run, change), type="tertiary", help=what.capitalize()
            )


def whole(run: Run, one: FeatureList, address: Address) -> None:
    """The list, page by page, and its files."""
    numbers(one)
    pages = max(1, -(-len(one.items) // _ON_A_PAGE))
    at = address.whole_number(links.LIST_PAGE, what="page", low=1, high=pages, default=1)
    if not one.items:
        st.caption("This list is empty. Star a feature to fill it.")
    for place, item in enumerate(one.items, 1):
        if (place - 1) // _ON_A_PAGE == at - 1:
            row(run, one, item, place)
    if pages > 1:
        st.pagination(pages, key=widget(links.LIST_PAGE), on_change=changed, args=(links.LIST_PAGE,))
    with st.container(horizontal=True):
        for kind, make in (("json", list_files.as_json), ("csv", list_files.as_csv)):
            st.download_button(
                kind.upper(), make(one), f"{file_name(one.name)}.{kind}", on_click="ignore", icon=":material/download:"
            )
        with st.popover("Delete the list", icon=":material/delete:"):
            st.markdown("Its notes and scores go with it.")
            st.button("Delete", type="primary", on_click=edit, args=(run, lambda lists: without(lists, one.name)))
    with st.expander("The same in Python", icon=":material/code:"):
        st.code(
            "from pathlib import Path\n\nfrom apps.dashboard import list_files\n\n"
            f"lists = list_files.read(Path({str(list_files.file_of(run))!r}))\n"
            f"[(item.dictionary, item.feature, item.note, item.mean) for item in lists[{one.name!r}].items]",
            language="python",
        )


def file_name(name: str) -> str:
    """A list's name as a file's."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name).strip("-") or "list"


def page(opened: Opened) -> None:
    """The whole page."""
    st.title("Lists", anchor=False)
    if (failed := st.session_state.pop(_FAILED, None)) is not None:
        st.error(shell.problem_text(failed))
    with reading("The file of lists"):
        lists = readers.lists(opened.run)
        if not lists:
            empty()
            return
        address = Address()
        name = address.one_of(links.LIST, what="list", choices=lists, default=next(iter(lists)))
        mode = address.one_of(links.LIST_MODE, what="mode", choices=MODES, default="list")
        with st.container(horizontal=True, vertical_alignment="bottom"):
            st.selectbox(
                "List",
                list(lists),
                format_func=lambda n: f"{n} ({len(lists[n].items)})",
                key=widget(links.LIST),
                on_change=changed,
                args=(links.LIST, links.LIST_PAGE),
                width=300,
            )
            st.segmented_control(
                "Mode",
                list(MODES),
                format_func=MODES.__getitem__,
                key=widget(links.LIST_MODE),
                on_change=changed,
                args=(links.LIST_MODE,),
                required=True,
                label_visibility="collapsed",
            )
        if mode == "blind" and lists[name].items:
            rating.rate(opened.run, lists[name])
        else:
            whole(opened.run, lists[name], address)
        shell.tell(address)
        address.save()
        provenance(list_files.FILE, f"{sum(len(one.items) for one in lists.values())} features in {len(lists)} lists")


page(shell.opened())
