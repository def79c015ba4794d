"""Progress and results for people: a bar on a terminal, a line now and then in a log file, tables of figures."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import isnan
from typing import Any, Protocol

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


class Bar(Protocol):
    """A progress bar: also a `Progress`."""

    def __call__(self, done: int, total: int, note: str = "", /) -> None:
        """Shows how much is done, and a few words behind it."""
        ...


@contextmanager
def bar(label: str, unit: str = "image") -> Iterator[Bar]:
    """A bar on standard error that takes (done, total) and, if there is something to say, a note."""
    from tqdm import tqdm

    shown: tqdm | None = None
    on_terminal = sys.stderr.isatty()

    def update(done: int, total: int, note: str = "", /) -> None:
        nonlocal shown
        if shown is None:
            shown = tqdm(
                total=total,
                desc=label,
                unit=f" {unit}s",
                initial=0,
                # A log file gets a line every half minute instead of a bar that redraws itself.
                mininterval=0.2 if on_terminal else 30.0,
                maxinterval=0.5 if on_terminal else 60.0,
                dynamic_ncols=on_terminal,
                leave=on_terminal,
            )
        shown.total = total
        if note:
            shown.set_postfix_str(note, refresh=False)
        shown.update(done - shown.n)

    try:
        yield update
    finally:
        if shown is not None:
            shown.close()


class Clock:
    """Elapsed time since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def __str__(self) -> str:
        minutes, seconds = divmod(int(self.seconds), 60)
        return f"{minutes}:{seconds:02d}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A plain text table: first column left, the others right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        first = f"{cells[0]:<{widths[0]}}"
        return "  ".join([first, *(f"{cell:>{w}}" for cell, w in zip(cells[1:], widths[1:], strict=True))]).rstrip()

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, rows)])


def percent(row: Mapping[str, Any], column: str) -> str:
    """A share of a row in percent, with its interval (``column_low``, ``column_high``) where there is one."""
    value, low, high = (row.get(f"{column}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    if low is None or high is None or isnan(low) or isnan(high):
        return f"{100 * value:.1f}"
    return f"{100 * value:.1f} ({100 * low:.1f}-{100 * high:.1f})"
