"""Samples that a denoiser takes as tokens: maps cut into 2 x 2 cells (FLUX).

A map (C, 2h, 2w) becomes h w tokens of 4 C numbers, row by row, each (channel, row, column) of its cell; the pipeline
says where the tokens lie by ``img_ids`` (tokens, 3), whose last two columns are row and column.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import torch


class Packing(NamedTuple):
    """How tokens lie on a map.

    Attributes:
        rows, columns: of tokens; the map has twice as many of each.
    """

    rows: int
    columns: int

    @classmethod
    def of(cls, sample: torch.Tensor, ids: Any) -> Self | None:
        """The packing of tokens (B, tokens, 4 C); None if the ids are not those of one whole map."""
        if not isinstance(ids, torch.Tensor) or ids.shape[-1] != 3 or sample.shape[2] % 4:
            return None
        ids = ids.reshape(-1, 3)[: sample.shape[1], 1:].long()
        rows, columns = (int(n) + 1 for n in ids.amax(0))
        wanted = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).to(ids.device)
        return cls(rows, columns) if torch.equal(ids, wanted) and len(ids) == sample.shape[1] else None

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (B, C, 2 rows, 2 columns) as tokens (B, rows columns, 4 C)."""
        cells = x.unflatten(2, (self.rows, 2)).unflatten(4, (self.columns, 2))  # (B, C, rows, 2, columns, 2)
        return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def unpack(self, tokens: torch.Tensor) -> torch.Tensor:
        """Inverse of ``pack``."""
        cells = tokens.unflatten(1, (self.rows, self.columns)).unflatten(3, (-1, 2, 2))
        return cells.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
