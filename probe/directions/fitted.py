"""Asking a finder for what it has not learned yet is one clear error."""

from __future__ import annotations

from typing import Any

from probe.errors import NotFitted


class Fitted:
    """Mix-in: names that end in an underscore exist after ``fit``."""

    def __getattr__(self, name: str) -> Any:  # only called for what is not there
        if name.endswith("_") and not name.startswith("_"):
            raise NotFitted(f"{type(self).__name__} has no {name} yet; call fit first.")
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")
