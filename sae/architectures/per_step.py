"""A dictionary for each denoising step, or for each group of steps (Tinaz et al. 2025 train one a step).

The d_sae features are shared out: group g owns features g m to (g + 1) m - 1, with m = d_sae / groups, and a row of its
steps can use only those. Each group has its own biases, input scale and statistics. The loss of a batch is the mean
over its rows of the loss of their groups:

    L = sum_g (B_g / B) L_g         B_g rows of group g among the B of the batch, on all processes together

Nothing is shared between steps, so a feature has no meaning at another group's steps, and each group learns from its
share of the rows alone. A feature's silence is counted in rows of all steps (`dead_after`).
"""

from typing import Any

import torch
from torch import Tensor

from sae.architectures.autoencoder import SparseAutoencoder
from sae.architectures.timed import TimedSAE
from sae.config import SAEConfig
from sae.contract import Loss, SparseDictionary
from sae.errors import ConfigError
from sae.numerics.sparse import TopKCode
from sae.numerics.step import BatchLoss


class PerStepSAE(TimedSAE):
    """One core for every group of steps."""

    group: Tensor

    def make_own(self, seed: int) -> None:
        self.register_buffer("group", torch.tensor(self.config.groups), persistent=False)  # of each level

    def at(self, log_snr: float, previous: Tensor | None = None) -> SparseDictionary:
        """The group's dictionary, its features under their numbers in the whole."""
        g = int(self.group[self.level_of(log_snr)])
        return Part(self.cores[g], g * self.cores[0].d_sae, self.config, self.metadata)

    def initialise(self, rows: Tensor, log_snr: Tensor) -> None:
        """Each group from its own rows.

        Raises:
            ConfigError: a group has none among them.
        """
        group = self._group_of(log_snr)
        missing = sorted(set(range(len(self.cores))) - set(group.tolist()))
        if missing:
            raise ConfigError(
                f"None of the {len(rows)} rows for initial values is of group {missing[0]} of {len(self.cores)} groups "
                "of steps. Raise init_rows."
            )
        for g, core in enumerate(self.cores):
            core.initialise(rows[group == g])

    def loss(
        self, x: Tensor, dead: Tensor | None = None, log_snr: Tensor | None = None
    ) -> tuple[Loss, dict[str, Tensor]]:
        """Loss and gradients; see the module. A group without rows has gradient zero; one with rows in another process
        only is worked on here too, since what all know is a sum over processes.
        """
        assert log_snr is not None
        group = self._group_of(log_snr)
        m = self.cores[0].d_sae
        counts = self.peers.sum(torch.bincount(group, minlength=len(self.cores))).tolist()
        loss, unexplained = x.new_tensor(0.0), x.new_tensor(0.0)
        fired = torch.zeros(self.d_sae, dtype=torch.int64, device=x.device)
        gradients: dict[str, Tensor] = {}
        for g, core in enumerate(self.cores):
            rows = (group == g).nonzero().squeeze(1)
            if not counts[g]:
                gradients |= {f"{g}.{name}": torch.zeros_like(t) for name, t in core.trained_tensors().items()}
                continue
            own = None if dead is None else dead[(dead >= g * m) & (dead < (g + 1) * m)] - g * m
            result, found = core.loss(x[rows], own)
            share = counts[g] / sum(counts)
            loss += share * result.loss
            unexplained += share * result.sse / result.variance
            fired[g * m : (g + 1) * m] = result.fired
            gradients |= {f"{g}.{name}": gradient.mul_(share) for name, gradient in found.items()}
        # Groups have scales of their own, so what can be summed over them is the unexplained share.
        return BatchLoss(loss, unexplained, torch.ones_like(unexplained), fired), gradients

    def _group_of(self, log_snr: Tensor) -> Tensor:
        return self.group[self.level_of(log_snr)]


class Part:
    """A dictionary whose features are a run of those of a larger one; the others are always off."""

    def __init__(self, core: SparseAutoencoder, first: int, config: SAEConfig, metadata: dict[str, Any]) -> None:
        self.core, self.config, self.metadata = core, config, metadata
        self._own = slice(first, first + core.d_sae)

    @property
    def W_dec(self) -> Tensor:
        """(d_sae, d_in); zero rows for features of the others."""
        return self._whole(self.core.W_dec)

    @property
    def directions(self) -> Tensor:
        """(d_sae, d_in); zero rows for features of the others."""
        return self._whole(self.core.directions)

    def encode(self, x: Tensor) -> Tensor:
        """(..., d_in) rows to (..., d_sae) codes."""
        z = self.core.encode(x)
        whole = z.new_zeros(*z.shape[:-1], self.config.d_sae)
        whole[..., self._own] = z
        return whole

    def encode_sparse(self, x: Tensor) -> TopKCode:
        """(..., d_in) rows to a sparse code."""
        code = self.core.encode_sparse(x)
        return code._replace(indices=code.indices + self._own.start)

    def decode(self, z: Tensor) -> Tensor:
        """(..., d_sae) codes to rows; features of the others add nothing."""
        return self.core.decode(z[..., self._own])

    def decode_sparse(self, code: TopKCode) -> Tensor:
        """A sparse code of this part to rows; entries of the others add nothing."""
        mine = (code.indices >= self._own.start) & (code.indices < self._own.stop)
        indices = torch.where(mine, code.indices - self._own.start, 0)
        return self.core.decode_sparse(TopKCode(code.values * mine, indices))

    def _whole(self, rows: Tensor) -> Tensor:
        whole = rows.new_zeros(self.config.d_sae, rows.shape[1])
        whole[self._own] = rows
        return whole
