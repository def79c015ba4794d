"""A shard being filled: every site's rows of a block of samples, cast and checked as they arrive.

Values are written straight into the array that goes to disk: one pass casts, transposes and copies. A sum tells
whether any of them is not finite (float16 maps cannot overflow a float32 sum), so the exact counts, which cost
several passes, are made only when there is something to count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from activations_store import StoreSpec
from activations_store.errors import NonFiniteActivations
from probe.capture.recording import Recording
from probe.capture.sites import Site
from probe.capture.tokens import TokenLayout
from probe.errors import UnsupportedSite


class ShardBuffers:
    """Arrays (samples, steps, branches, tokens, channels) of one shard, by site name, in ``arrays``.

    Args:
        spec: of the store.
        plan: decides the type in memory and what a value that is not finite does.
        layouts: which rows of a map are kept, by site.
        steps: the model's steps that are recorded, in the order of the spec's.
        shard: number of the shard.
    """

    def __init__(
        self, spec: StoreSpec, plan: Recording, layouts: Mapping[Site, TokenLayout], steps: Sequence[int], shard: int
    ) -> None:
        self.arrays = {str(site): np.empty(spec.shard_shape(str(site), shard), plan.buffer_dtype) for site in layouts}
        self._tensors = {site: torch.from_numpy(self.arrays[str(site)]) for site in layouts}
        self._layouts = layouts
        self._dtype, self._refuse = plan.dtype, plan.on_nonfinite == "refuse"
        self._first = spec.shard_samples(shard).start
        self._branches = {branch: i for i, branch in enumerate(spec.branches)}
        self._position = {step: i for i, step in enumerate(steps)}
        self._batch = slice(0, 0)
        self._filled: dict[Site, set[tuple[int, str]]] = {}

    def begin(self, batch: range) -> None:
        """The next tensors are of these samples."""
        self._batch = slice(batch.start - self._first, batch.stop - self._first)
        self._filled = {}

    def receive(
        self, site: Site, step: int, branches: tuple[str, ...], rows: torch.Tensor, grid: tuple[int, int] | None
    ) -> None:
        """Takes a tensor from a ``Recorder``; those of steps that are not recorded are passed over.

        Raises:
            UnsupportedSite: the site gave another number of maps than expected, or gave them twice.
            NonFiniteActivations: a value is not finite, and the plan refuses that.
        """
        if step not in self._position:
            return
        n = self._batch.stop - self._batch.start
        seen = self._filled.setdefault(site, set())
        again = any((step, branch) in seen for branch in branches)
        if again or rows.shape[0] != len(branches) * n:
            raise UnsupportedSite(
                f"site {site}: at step {step} it gave {rows.shape[0]} maps"
                + (" for a second time" if again else "")
                + f"; expected {len(branches)} x {n}, once."
            )
        seen.update((step, branch) for branch in branches)
        for i, branch in enumerate(branches):
            if branch in self._branches:
                kept = self._layouts[site].reduce(rows[i * n : (i + 1) * n])
                target = self._tensors[site][self._batch, self._position[step], self._branches[branch]]
                # A GPU casts before the copy, which halves what crosses the bus.
                target.copy_(kept if kept.device.type == "cpu" else kept.to(target.dtype))
                if self._refuse and not math.isfinite(float(target.sum(dtype=torch.float32))):
                    self._check(site, step, branch, kept, target)

    def end(self) -> None:
        """Raises ``UnsupportedSite`` unless every site gave all branches at every recorded step of the batch."""
        for site in self._layouts:
            for branch in self._branches:
                missing = sum((step, branch) not in self._filled.get(site, ()) for step in self._position)
                if missing:
                    raise UnsupportedSite(
                        f"site {site}: its module did not run at {missing} of {len(self._position)} steps of branch "
                        f"{branch}."
                    )

    def _check(self, site: Site, step: int, branch: str, given: torch.Tensor, stored: torch.Tensor) -> None:
        bad = ~torch.isfinite(stored)
        if not bool(bad.any()):  # finite values whose sum left the range of float32
            return
        n_nan = int(torch.isnan(stored).sum())
        n_overflow = int((bad & torch.isfinite(given.to(stored.device))).sum())
        n_inf = int(bad.sum()) - n_nan - n_overflow
        raise NonFiniteActivations(
            f"site {site} step {step} branch {branch}: {n_nan} NaN, {n_inf} infinite and {n_overflow} values too large "
            f"for {self._dtype}, of {bad.numel()}. Record with dtype='float32' or dtype='bfloat16' if they "
            "are too large, or with on_nonfinite='flag' to store and count them."
        )
