"""Give an object a method of its own for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def override(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an object a method of its own for a while; what it had before comes back."""
    own, before = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
