"""Pages of the dashboard as tests open them, and what they say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

DASHBOARD = Path(__file__).resolve().parent.parent / "apps" / "dashboard"
TIMEOUT = 300.0
_KINDS = (
    "title", "header", "subheader", "markdown", "caption", "text", "info", "warning", "success", "error", "code",
)  # fmt: skip


def open_page(monkeypatch: pytest.MonkeyPatch, place: Path, page: str, **params: str) -> Any:
    """A page of the dashboard on a folder, drawn once, with an address; fails if it raises."""
    from streamlit.testing.v1 import AppTest

    # A page becomes the main module, which the children of later tests would run.
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.setattr(sys, "argv", ["Home.py", str(place)])
    test = AppTest.from_file(str(DASHBOARD / "Home.py"), default_timeout=TIMEOUT)
    if page != "home":
        test.switch_page(f"app_pages/{page}.py")
    for key, value in params.items():
        test.query_params[key] = value
    test.run()
    assert not test.exception, [e.value for e in test.exception]
    return test


def words(test: Any) -> str:
    """All that a page says, without the escapes of Markdown."""
    return "\n".join(str(element.value) for kind in _KINDS for element in test.get(kind)).replace("\\", "")
