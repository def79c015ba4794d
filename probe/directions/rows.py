"""The rows of one site of a store, as finders see them: streamed step by step, in one of three views.

    mean      one row a sample: its map averaged over tokens                 vectors (d,)
    tokens    one row a token                                                vectors (d,), the same at every token
    map       one row a sample: the whole map, flattened                     vectors (tokens, d)

Blocks are read in the order of the store and thrown away again, so no pass needs more than a block of memory. Rows that
were never recorded, or hold NaN or infinity, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from activations_store import ActivationStore
from activations_store.storage.jsonio import content_hash
from probe.capture.tokens import TokenLayout
from probe.errors import InvalidDirection

View = Literal["mean", "tokens", "map"]
VIEWS: tuple[View, ...] = get_args(View)
_BLOCK_BYTES = 1 << 25
MAX_BYTES = 1 << 30
"""Rows that a finder may gather in memory."""


@dataclass(frozen=True, eq=False)
class SiteRows:
    """Rows of a site.

    Args:
        store: where they are.
        site: its full name.
        branch: of guidance.
        view: what a row is.
        steps: positions of the store's steps; None for all.

    Raises:
        UnknownSite, InvalidSelection: something the store does not have.
        InvalidDirection: an unknown view, or whole maps of a site that keeps only some of its tokens.
    """

    store: ActivationStore
    site: str
    branch: str
    view: View
    steps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.view not in VIEWS:
            raise InvalidDirection(f"rows: view {self.view!r}; expected one of {', '.join(VIEWS)}.")
        found = self.store.site(self.site).sel(
            step=None if self.steps is None else list(self.steps), branch=self.branch
        )
        object.__setattr__(self, "steps", tuple(int(s) for s in found.steps))
        layout = TokenLayout.of(self.store, self.site)
        if self.view == "map" and (layout.kept is not None or layout.pool is not None):
            raise InvalidDirection(
                f"rows: {self.site} keeps {layout.n_recorded} of {layout.tokens} tokens, so there are no whole maps; "
                "use view 'tokens' or 'mean'."
            )

    @property
    def chosen(self) -> tuple[int, ...]:
        """Positions of the steps."""
        assert self.steps is not None
        return self.steps

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of a vector: (d,) or (tokens, d)."""
        spec = self.store.site(self.site).spec
        return (spec.tokens, spec.channels) if self.view == "map" else (spec.channels,)

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return int(np.prod(self.shape))

    @property
    def timesteps(self) -> tuple[int, ...]:
        """The scheduler's timestep of each step."""
        return tuple(round(self.store.spec.timesteps[s]) for s in self.chosen)

    @cached_property
    def samples(self) -> np.ndarray:
        """(n,) numbers of the committed samples.

        Raises:
            InvalidDirection: there are none.
        """
        found = self.store.holding(self.site).committed_samples()
        if not len(found):
            raise InvalidDirection(f"rows: no sample of {self.site} is committed in {self.store.path}; collect first.")
        return found

    def blocks(
        self, step: int, samples: np.ndarray | None = None, tokens: slice | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Blocks of rows.

        Args:
            step: position of a step in the store.
            samples: numbers of samples, ascending; None for all that are committed.
            tokens: for whole maps, a part of each.

        Yields:
            (samples (m,), rows (m, width) float32), m rows of their samples.
        """
        view = self.store.site(self.site).sel(branch=self.branch, token=tokens)
        spec = view.spec
        samples = self.samples if samples is None else samples
        n = max(1, _BLOCK_BYTES // (4 * spec.tokens * spec.channels))
        n = -(-n // (g := self.store.holding(self.site).spec.grid(self.site).chunk_shape[0])) * g
        for start in range(0, len(samples), n):
            part = samples[start : start + n]
            maps = view.read(sample=part, step=step, missing="nan")[:, 0, 0].astype(np.float32, copy=False)
            if self.view == "tokens":
                part, rows = np.repeat(part, maps.shape[1]), maps.reshape(-1, spec.channels)
            else:
                rows = maps.mean(1) if self.view == "mean" else maps.reshape(len(part), -1)
            finite = np.isfinite(rows).all(1)
            yield part[finite], rows[finite]

    def gather(
        self, step: int, samples: np.ndarray | None = None, tokens: slice | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """All rows at once: (samples (m,), rows (m, width) float32).

        Raises:
            InvalidDirection: more than ``MAX_BYTES``, or no row is left.
        """
        spec = self.store.site(self.site).spec
        n = len(self.samples if samples is None else samples)
        share = 1.0 if tokens is None else len(range(*tokens.indices(spec.tokens))) / spec.tokens
        size = 4 * n * spec.channels * (1 if self.view == "mean" else spec.tokens) * share
        if size > MAX_BYTES:
            raise InvalidDirection(
                f"rows: {n} samples of {self.site} are {size / 2**30:.1f} GiB in memory, more than "
                f"{MAX_BYTES / 2**30:.0f} GiB; use view 'mean', fewer samples, or a finder that streams."
            )
        parts = list(self.blocks(step, samples, tokens))
        found = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        if not len(found[0]):
            raise InvalidDirection(f"rows: step {step} of {self.site} has no finite row.")
        return found

    def projected(self, step: int, vectors: np.ndarray, samples: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """Products of every row with vectors (k, width), in one pass: (samples (m,), products (m, k) float64)."""
        wide = vectors.astype(np.float64).T
        parts = [(s, rows.astype(np.float64) @ wide) for s, rows in self.blocks(step, samples)]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def record(self) -> dict[str, object]:
        """JSON values that name the rows: the store's hashes, the content of the site, and the view."""
        store = self.store.holding(self.site)
        shards = {str(i): store.record(i).sites[self.site].values_sha256 for i in store.committed}
        return {
            "store": store.hashes,
            "shards_sha256": content_hash(shards),
            "site": self.site,
            "branch": self.branch,
            "view": self.view,
            "steps": list(self.chosen),
        }


class Moments:
    """Count, mean and scatter of rows, block by block, in float64 (Chan, Golub and LeVeque 1979)."""

    def __init__(self, width: int) -> None:
        self.n, self.mean, self.scatter = 0, np.zeros(width), np.zeros((width, width))

    @classmethod
    def of(cls, rows: SiteRows, step: int, samples: np.ndarray) -> Moments:
        """Those of the rows of some samples, in one pass."""
        found = cls(rows.width)
        for _, block in rows.blocks(step, samples):
            found.add(block)
        return found

    def add(self, rows: np.ndarray) -> None:
        """Count rows (m, width)."""
        if not len(rows):
            return
        x = rows.astype(np.float64)
        mean, total = x.mean(0), self.n + len(x)
        x -= mean
        delta = mean - self.mean
        self.scatter += x.T @ x + np.outer(delta, delta) * (self.n * len(x) / total)
        self.mean += delta * (len(x) / total)
        self.n = total

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased, (width, width)."""
        return self.scatter / max(1, self.n - 1)
