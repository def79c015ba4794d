"""The address as the single truth of what is shown.

A view's value is read from the address (else the last one of this session, else a default), shown in its widget, and written back, so
that the address always reproduces the page, defaults included. A wrong value is answered with a sentence (``problems``). Widgets use the
key ``widget(key)`` and the callback ``changed``.
"""

from __future__ import annotations

from collections.abc import Collection

import streamlit as st

from apps.dashboard.links import one_of, whole_number


class Address:
    """Values of one page, or of one fragment of it."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._shown: dict[str, str] = {}

    def one_of(self, key: str, *, what: str, choices: Collection[str], default: str) -> str:
        """The value of ``key`` among some names; its widget's state is set to it."""
        value, problem = one_of(self._text(key, choices), what=what, choices=choices, default=default)
        self._show(key, value, value, problem)
        return value

    def whole_number(self, key: str, *, what: str, low: int, high: int, default: int) -> int:
        """The value of ``key`` in [low, high]; its widget's state is set to it."""
        value, problem = whole_number(self._text(key), what=what, low=low, high=high, default=default)
        self._show(key, value, str(value), problem)
        return value

    def save(self) -> None:
        """Writes what is shown into the address, in one change."""
        if any(st.query_params.get(key) != text for key, text in self._shown.items()):
            st.query_params.update(self._shown)

    def _text(self, key: str, choices: Collection[str] | None = None) -> str | None:
        """From the address, or the session's last value if that still is one of the choices."""
        if key in st.query_params:
            return st.query_params[key]
        last = st.session_state.get(_last(key))
        return last if choices is None or last in choices else None

    def _show(self, key: str, value: object, text: str, problem: str | None) -> None:
        if problem:
            self.problems.append(problem)
        self._shown[key] = text
        st.session_state[_last(key)] = text
        st.session_state[widget(key)] = value


def widget(key: str) -> str:
    """Session key of the widget that shows an address key."""
    return f"widget_{key}"


def changed(key: str) -> None:
    """Callback of that widget: what it says goes into the address."""
    st.query_params[key] = str(st.session_state[widget(key)])


def go(key: str, value: object) -> None:
    """Callback of a button that moves a view."""
    st.query_params[key] = str(value)


def _last(key: str) -> str:
    return f"last_{key}"
