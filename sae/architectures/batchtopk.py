"""BatchTopK sparse autoencoder (Bussmann, Leask & Nanda 2024, arXiv 2412.06410).

    training     z = p where p is one of the B k largest positive entries of the batch of B rows
    afterwards   z = p where p > theta,        theta = average over batches of the smallest entry kept

k features a row on average: rows that need more take them from rows that need fewer. A batch does not exist when the
dictionary is used, so a threshold estimated in training replaces it; every row is then encoded by itself.
"""

from typing import Any

import torch
from torch import Tensor

from sae.architectures.autoencoder import SparseAutoencoder
from sae.config import SAEConfig
from sae.numerics.selection import entries_above, largest_entries
from sae.numerics.sparse import FlatCode

AVERAGE_OVER = 100  # batches that the threshold remembers
_GUESS = 0.75  # share of the threshold above which the entries of a batch are looked for first


class BatchTopKSAE(SparseAutoencoder):
    """A BatchTopK dictionary.

    Attributes:
        threshold: (), theta in units of s x.
    """

    FILE_ARCHITECTURE = "jumprelu"
    HAS_THRESHOLD = True
    threshold: Tensor

    def __init__(self, config: SAEConfig, *, seed: int = 0, metadata: dict[str, Any] | None = None) -> None:
        super().__init__(config, seed=seed, metadata=metadata)
        self.register_buffer("threshold", torch.zeros(()))
        self._smallest: Tensor | None = None  # smallest entry kept in the batch of the last `step`

    def gate(self, pre: Tensor) -> Tensor:
        """p where p > theta."""
        return pre * (pre > self.threshold)

    def sparse_code(self, centred: Tensor) -> FlatCode:
        """Entries above theta."""
        return entries_above(**self._product(centred), floor=self.threshold)

    def choose(self, centred: Tensor) -> FlatCode:
        """The B k largest positive entries of the batch."""
        # Entries compete over the processes that have the other rows, or the other features.
        rivals = self.shards if self.shards.world > 1 else self.peers
        code = largest_entries(
            **self._product(centred),
            n=self.peers.total(centred.shape[0]) * self.k,
            guess=_GUESS * float(self.threshold),
            matmul=self.config.matmul,
            peers=rivals,
        )
        on = code.values[code.values > 0]
        smallest = on.min() if on.numel() else on.new_tensor(torch.inf)
        self._smallest = rivals.smallest(smallest)
        return code

    def initialise(self, rows: Tensor, log_snr: Tensor | None = None) -> None:
        """Also sets theta to what keeps k entries a row now."""
        super().initialise(rows)
        self.threshold.fill_(self._first_threshold(rows))

    def after_update(self) -> None:
        """Unit decoder rows again, and the threshold follows the batch."""
        super().after_update()
        if self._smallest is not None and torch.isfinite(self._smallest):  # infinite: nothing was on
            self.threshold.lerp_(self._smallest, 1 / AVERAGE_OVER)
            self._smallest = None

    def fixed_tensors(self) -> dict[str, Tensor]:
        """The input scale and the threshold."""
        return {**super().fixed_tensors(), "threshold": self.threshold}

    def thresholds(self) -> Tensor:
        """theta for every feature."""
        return self.threshold.expand(self.d_sae)

    def set_thresholds(self, values: Tensor) -> None:
        """Takes the largest: they are all the same in a folder of this architecture."""
        self.threshold.copy_(values.max())
