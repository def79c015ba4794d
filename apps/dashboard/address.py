"""The address as the single truth of what is shown.

A view's value is read from the address (else the last one of this session, else a default), shown in its
widget, and written back, so that the address always reproduces the page, defaults included. A wrong value
is answered with a sentence (``problems``). Widgets use the key ``widget(key)`` and the callback
``changed``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeVar

import streamlit as st

from apps.dashboard.links import one_of, quoted, whole_number

T = TypeVar("T")


class Address:
    """Values of one page, or of one fragment of it."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._shown: dict[str, str] = {}

    def one_of(self, key: str, *, what: str, choices: Collection[str], default: str) -> str:
        """The value of ``key`` among some names; its widget's state is set to it."""
        text = st.query_params.get(key)
        if text is None:
            default, _ = one_of(st.session_state.get(_last(key)), what=what, choices=choices, default=default)
        value, problem = one_of(text, what=what, choices=choices, default=default)
        self._show(key, value, value, problem)
        return value

    def whole_number(self, key: str, *, what: str, low: int, high: int, default: int) -> int:
        """The value of ``key`` in [low, high]; its widget's state is set to it."""
        text = st.query_params.get(key)
        if text is None:  # the last value of this session, unless it is not valid here
            default = whole_number(
                st.session_state.get(_last(key)), what=what, low=low, high=high, default=default
            ).value
        value, problem = whole_number(text, what=what, low=low, high=high, default=default)
        self._show(key, value, str(value), problem)
        return value

    def parsed(self, key: str, *, what: str, parse: Callable[[str], T], default: str) -> T:
        """The value of ``key`` as ``parse`` reads it; its widget shows the text.

        Args:
            key: in the address.
            what: its name in the sentence, such as ``region``.
            parse: raises ValueError, with what is expected, for a text that is none.
            default: a text that it reads; shown if there is no value or a wrong one.
        """
        text, problem = st.query_params.get(key), None
        last = st.session_state.get(_last(key)) if text is None else None
        for candidate in (text, last):
            if candidate is None:
                continue
            try:
                value = parse(candidate)
            except ValueError as error:
                if candidate is text:
                    problem = f"The link asks for {what} {quoted(candidate)}; {error}. Showing {quoted(default)}."
            else:
                self._show(key, candidate, candidate, None)
                return value
        self._show(key, default, default, problem)
        return parse(default)

    def save(self) -> None:
        """Writes what is shown into the address, in one change."""
        if any(st.query_params.get(key) != text for key, text in self._shown.items()):
            st.query_params.update(self._shown)

    def _show(self, key: str, value: object, text: str, problem: str | None) -> None:
        if problem:
            self.problems.append(problem)
        self._shown[key] = text
        st.session_state[_last(key)] = text
        st.session_state[widget(key)] = value


def widget(key: str) -> str:
    """Session key of the widget that shows an address key."""
    return f"widget_{key}"


def changed(key: str, *forgotten: str) -> None:
    """Callback of that widget: what it says goes into the address, and other keys may leave it."""
    go(key, st.session_state[widget(key)], *forgotten)


def go(key: str, value: object, *forgotten: str) -> None:
    """Callback of a button that moves a view."""
    kept = {name: text for name, text in st.query_params.items() if name not in forgotten}
    st.query_params.from_dict(kept | {key: str(value)})


def _last(key: str) -> str:
    return f"last_{key}"
