"""A rectangle of cells of a site's map, as a link and a reader write it: ``4-7,8-11``, rows before columns.

A site without a grid is one row of tokens, so ``0,3-5`` are its tokens 3 to 5.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from apps.errors import InvalidOption

WHOLE = "all"
"""The whole map, in a link."""
_SPAN = r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?"
_FORM = re.compile(f"{_SPAN},{_SPAN}", re.ASCII)


@dataclass(frozen=True)
class Region:
    """Cells of a (height, width) grid; both ends count.

    Attributes:
        grid: (height, width).
        rows: first and last row.
        columns: first and last column.
    """

    grid: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]

    @classmethod
    def whole(cls, grid: tuple[int, int]) -> Self:
        """All cells."""
        return cls(grid, (0, grid[0] - 1), (0, grid[1] - 1))

    @classmethod
    def around(cls, grid: tuple[int, int], cells: Sequence[tuple[int, int]]) -> Self:
        """The smallest rectangle with all these (row, column) cells in it; at least one."""
        rows, columns = zip(*cells, strict=True)
        return cls(grid, (min(rows), max(rows)), (min(columns), max(columns)))

    @classmethod
    def parse(cls, text: str, grid: tuple[int, int]) -> Self:
        """Inverse of ``str``; a single number is a span of one.

        Raises:
            InvalidOption: it is written otherwise, or leaves the grid.
        """
        if text.strip() == WHOLE:
            return cls.whole(grid)
        last = (grid[0] - 1, grid[1] - 1)
        found = _FORM.fullmatch(text)
        if found is not None:
            ends = [int(end) if end is not None else -1 for end in found.groups()]
            rows, columns = ((low, low if high < 0 else high) for low, high in (ends[:2], ends[2:]))
            if rows[0] <= rows[1] <= last[0] and columns[0] <= columns[1] <= last[1]:
                return cls(grid, rows, columns)
        raise InvalidOption(
            f"cells are {WHOLE}, or rows 0 to {last[0]} and columns 0 to {last[1]} such as 0-{last[0]},0-{last[1]}"
        )

    def __str__(self) -> str:
        if self == Region.whole(self.grid):
            return WHOLE
        return ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in (self.rows, self.columns))

    @property
    def tokens(self) -> np.ndarray:
        """(n,) int64: numbers of the cells, row-major."""
        rows, columns = (np.arange(low, high + 1) for low, high in (self.rows, self.columns))
        return (rows[:, None] * self.grid[1] + columns).ravel()
