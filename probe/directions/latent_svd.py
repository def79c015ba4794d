"""Singular values of the sampler's state, step by step, and an attribute written from one pair of states.

After Wang et al. 2025 (https://arxiv.org/abs/2502.02225), who take the SVD of the latent itself: at every step, channel
by channel,

    X_c = U_c diag(s_c) V_c^T                      X_c (height, width)

The analysis: how the spectrum falls from noise to image, and how much of the leading subspaces of one step is already
there at another, overlap = |U_t^T U_t'|_F^2 / r, averaged with that of V. A random state has about r / height.

The writing: the r leading singular triplets of a state are replaced by those of another that has the attribute,

    X' = X + (A_r - X_r)          A_r, X_r the rank-r parts

so coarse layout comes from the other and the rest stays. Their learned predictor of singular values is not part of
this. The result is a local direction at ``sampler:x_t``: it belongs to these two generations and this step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch

from activations_store import ActivationStore
from probe.directions.direction import Direction
from probe.directions.fitted import Fitted
from probe.directions.points import X_T
from probe.directions.rows import SiteRows
from probe.errors import InvalidDirection


@dataclass(kw_only=True, eq=False)
class LatentSVD(Fitted):
    """SVD of the recorded sampler state. Needs a store with the denoiser's input, ``unet:in``.

    Attributes:
        site: of the sampler's state in the store.
        rank: r of the overlap.
        branch: of guidance; both have the same input.

    After ``fit``: ``singular_values_`` (steps, channels, min(height, width)), means over samples; ``overlap_`` (steps,
    steps), 1 on the diagonal; ``timesteps_``.

    Example, after ``denoscope collect --sites mid_block unet:in --prompts canvas:16 --steps 2 --out runs/x``:
        >>> from activations_store import ActivationStore
        >>> from probe.directions import LatentSVD
        >>> store = ActivationStore.open("runs/x/store")
        >>> svd = LatentSVD(rank=4).fit(store)
        >>> edit = svd.write(store, source=0, target=1, step=1, rank=4).intervention(unit="raw")
    """

    site: str = "unet:in"
    rank: int = 4
    branch: str = "cond"

    singular_values_: np.ndarray = field(init=False, repr=False)
    overlap_: np.ndarray = field(init=False, repr=False)
    timesteps_: tuple[int, ...] = field(init=False, repr=False)

    def fit(self, store: ActivationStore) -> Self:
        """One pass over the store, all steps of a block of samples at a time.

        Raises:
            InvalidDirection: the site is no map, or the rank is out of range.
        """
        rows = SiteRows(store, self.site, self.branch, "map")
        side = min(self._grid(store))
        if not 1 <= self.rank <= side:
            raise InvalidDirection(f"LatentSVD: rank {self.rank}; expected 1 to {side}.")
        n_steps, channels = len(rows.chosen), rows.shape[1]
        values, overlap = np.zeros((n_steps, channels, side)), np.zeros((n_steps, n_steps))
        for sample in rows.samples:
            u, s, vt = np.linalg.svd(self._maps(store, sample), full_matrices=False)
            values += s
            left, right = u[..., : self.rank], vt[..., : self.rank, :]
            for product in (
                np.einsum("tcir,ucis->tucrs", left, left),
                np.einsum("tcri,ucsi->tucrs", right, right),
            ):
                overlap += (product**2).sum((-1, -2)).mean(-1) / (2 * self.rank)
        self.singular_values_, self.overlap_ = values / len(rows.samples), overlap / len(rows.samples)
        self.timesteps_ = rows.timesteps
        return self

    def write(self, store: ActivationStore, *, source: int, target: int, step: int, rank: int) -> Direction:
        """The change that gives one sample's state the leading singular triplets of another's.

        Args:
            store: with both samples.
            source: number of the sample that is to be changed: its prompt and seed.
            target: number of the sample whose attribute is to be written.
            step: position of the step in the store.
            rank: triplets that are replaced, in each channel.

        Returns:
            One vector at ``sampler:x_t``, whose length in unit ``raw`` is the whole exchange. ``frame`` is local.
            Its ``steps`` is that denoising step.

        Raises:
            InvalidDirection: rank or step out of range, or the two states are the same.
        """
        rows = SiteRows(store, self.site, self.branch, "map")
        height, width = self._grid(store)
        if not 1 <= rank <= min(height, width) or step not in rows.chosen:
            raise InvalidDirection(
                f"LatentSVD.write: rank {rank} (1 to {min(height, width)}), step {step} out of range."
            )
        parts = []
        for sample in (source, target):
            u, s, vt = np.linalg.svd(self._maps(store, sample)[step], full_matrices=False)
            parts.append((u[..., :rank] * s[:, None, :rank]) @ vt[:, :rank])
        change = torch.from_numpy(parts[1] - parts[0]).flatten(1).T  # (tokens, channels)
        about = {"finder": "LatentSVD", "source": source, "target": target, "rank": rank}
        about |= {"model": store.fingerprint, "rows": rows.record()}
        return Direction(
            X_T,
            change[None, None],
            steps=((store.plan.get("record_steps") or range(step + 1))[step],),
            timesteps=(rows.timesteps[rows.chosen.index(step)],),
            frame="local",
            provenance=about,
        )

    def _grid(self, store: ActivationStore) -> tuple[int, int]:
        grid = store.site(self.site).spec.grid
        if grid is None:
            raise InvalidDirection(
                f"LatentSVD: {self.site} is no map over the image; record 'unet:in' with all tokens."
            )
        return grid

    def _maps(self, store: ActivationStore, sample: int) -> np.ndarray:
        """(steps, channels, height, width) float64 of one sample."""
        x = store.site(self.site).read(sample=sample, branch=self.branch)[0, :, 0].astype(np.float64)
        return x.transpose(0, 2, 1).reshape(len(x), -1, *self._grid(store))
