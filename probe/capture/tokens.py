"""Keep fewer rows of a map than it has tokens, and know later which they were.

A plan may keep a fixed subset of tokens or one pooled row. The subset is drawn once from (number of tokens, seed),
without replacement and in ascending order, so sites with equally many tokens keep the same cells and can be compared
cell by cell. What was kept is written into the store's plan, under ``tokens_kept``:

    {"unet.mid_block:out": {"tokens": 256, "grid": [16, 16], "kept": [3, 17, ...], "pool": null}}

A site of such a store has ``grid`` None, because its tokens no longer tile the image; ``TokenLayout`` puts values
back at their cells, with NaN where nothing was recorded, and refuses pooled rows, which have no place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from activations_store import ActivationStore
from probe.errors import NotAMap

POOLS = ("mean", "max")
KEPT = "tokens_kept"
"""Key of the store's plan under which the kept tokens of each site are."""


@dataclass(frozen=True)
class TokenLayout:
    """Which tokens of the model's own map the rows of a store are.

    Attributes:
        tokens: tokens of the model's map.
        grid: (height, width) of the model's map, or None for a sequence.
        kept: numbers of the recorded tokens, ascending; None if all are.
        pool: how one row was made of all tokens, or None.
    """

    tokens: int
    grid: tuple[int, int] | None
    kept: tuple[int, ...] | None = None
    pool: str | None = None

    @classmethod
    def choose(
        cls, tokens: int, grid: tuple[int, int] | None, *, keep: int | None, seed: int, pool: str | None
    ) -> TokenLayout:
        """The layout of a site with this many tokens under a plan's options."""
        if pool is not None:
            return cls(tokens, grid, None, pool)
        if keep is None or keep >= tokens:
            return cls(tokens, grid)
        chosen = np.random.default_rng([tokens, seed]).permutation(tokens)[:keep]
        return cls(tokens, grid, tuple(sorted(int(i) for i in chosen)))

    @classmethod
    def of(cls, store: ActivationStore, site: str) -> TokenLayout:
        """The layout of a site of a store."""
        spec = store.site(site).spec
        entry = store.holding(site).plan.get(KEPT, {}).get(site)
        if entry is None:
            return cls(spec.tokens, spec.grid)
        grid, kept = entry["grid"], entry["kept"]
        return cls(
            int(entry["tokens"]),
            None if grid is None else (int(grid[0]), int(grid[1])),
            None if kept is None else tuple(int(i) for i in kept),
            entry["pool"],
        )

    @property
    def n_recorded(self) -> int:
        """Rows that the store holds for a map."""
        if self.pool is not None:
            return 1
        return self.tokens if self.kept is None else len(self.kept)

    @property
    def recorded_grid(self) -> tuple[int, int] | None:
        """The grid that the recorded rows tile: the model's own if all tokens are kept, else None."""
        return self.grid if self.pool is None and self.kept is None else None

    def reduce(self, rows: torch.Tensor) -> torch.Tensor:
        """(B, tokens, C) to (B, n_recorded, C); pooling is done in float32."""
        if self.pool == "mean":
            return rows.float().mean(1, keepdim=True)
        if self.pool == "max":
            return rows.amax(1, keepdim=True)
        if self.kept is not None:
            return rows[:, torch.tensor(self.kept, device=rows.device)]
        return rows

    def to_map(self, values: np.ndarray) -> np.ndarray:
        """Values of recorded tokens as maps.

        Args:
            values: (..., n_recorded), one value a recorded token.

        Returns:
            (..., height, width) float; NaN at cells that were not recorded.

        Raises:
            NotAMap: the rows are pooled, or the site is a sequence, or the number of values is another.
        """
        if self.pool is not None:
            raise NotAMap(f"These rows are a {self.pool} over all {self.tokens} tokens and have no place in a map.")
        if self.grid is None:
            raise NotAMap(f"The {self.tokens} tokens of this site are a sequence, not cells of a map.")
        if values.shape[-1] != self.n_recorded:
            raise NotAMap(f"{values.shape[-1]} values for {self.n_recorded} recorded tokens; give one a token.")
        full = np.full((*values.shape[:-1], self.tokens), np.nan, np.result_type(values.dtype, np.float32))
        full[..., slice(None) if self.kept is None else list(self.kept)] = values
        return full.reshape(*values.shape[:-1], *self.grid)

    def record(self) -> dict[str, Any] | None:
        """JSON values for the store's plan; None if every token is kept."""
        if self.kept is None and self.pool is None:
            return None
        grid = None if self.grid is None else list(self.grid)
        kept = None if self.kept is None else list(self.kept)
        return {"tokens": self.tokens, "grid": grid, "kept": kept, "pool": self.pool}
