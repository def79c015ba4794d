"""How processes divide the work of one dictionary: by the rows of a batch.

Every process holds the whole dictionary and takes B / W of the B rows of each step. Losses and gradients are sums over
rows (given the batch's variance, which the processes sum first), so

    gradient of the batch = sum of the processes' gradients

and W processes end where one process would with the union of their rows, up to the order of sums. All then make the
same update. What travels is what is not zero: a row of either weight matrix has a gradient only if its feature fired
in the batch or is dead and under AuxK, and which ones those are every process knows from the summed counts. With U of
m features touched, a step moves

    4 (2 U d + m + d) bytes of gradients      instead of      4 (2 m d + m + d)

and m counts of 8 bytes, so never more than a dense exchange. An all-reduce sends and receives each byte 2 (W - 1) / W
times. One process alone is the case W = 1: every exchange is then the identity.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sae.architectures.make import Dictionary
from sae.contract import Loss
from sae.errors import ConfigError
from sae.numerics.peers import ALONE, Peers

# Gradients whose rows are zero for features that had no part in the batch; with time, "number of the core.name".
_ROW_SPARSE = ("encoder", "decoder")


class Sums(NamedTuple):
    """A step over the rows of all processes.

    Attributes:
        loss, sse, variance: as in `step.StepResult`.
        n_on: features on, summed over rows.
        fired: (d_sae,) int64, rows in which each feature of this process's dictionary was on.
    """

    loss: float
    sse: float
    variance: float
    n_on: int
    fired: Tensor


class Division:
    """The processes divide rows; `feature_shards.FeatureDivision` divides features instead.

    Args:
        sae: the whole dictionary, on the CPU.
        peers: the processes.
        device: where to train.

    Attributes:
        sae: the dictionary, or this process's part of it.
        peers: the processes.
        d_sae: features of the whole dictionary.
    """

    BY = "rows"

    def __init__(self, sae: Dictionary, peers: Peers = ALONE, device: torch.device | str = "cpu") -> None:
        self.sae: Dictionary = sae.to(device)
        self.sae.peers = peers
        self.peers, self.d_sae = peers, sae.config.d_sae

    @staticmethod
    def share_of_rows(batch_size: int, peers: Peers) -> tuple[int, int]:
        """(rank, world) of this process among those that read different rows.

        Raises:
            ConfigError: a batch cannot be cut into equal parts.
        """
        if batch_size % peers.world:
            raise ConfigError(
                f"batch_size is {batch_size}, over {peers.world} processes; every process takes as many rows of a "
                "batch, so it must be a multiple of their number."
            )
        return peers.rank, peers.world

    def reduce(self, result: Loss, gradients: dict[str, Tensor], dead: Tensor) -> Sums:
        """Sums a step over the processes, gradients in place."""
        loss, sse = self.peers.sum(torch.stack([result.loss, result.sse])).tolist()
        fired = self.peers.sum(result.fired)
        sum_gradients(gradients, fired, dead, self.peers)
        return Sums(loss, sse, float(result.variance), int(fired.sum()), fired)

    def norm(self, gradients: dict[str, Tensor]) -> Tensor | None:
        """() norm of the gradients of the whole dictionary, or None if these are they."""
        return None

    def count(self, mask: Tensor) -> int:
        """Features of the whole dictionary in a mask over those of this process."""
        return int(mask.sum())

    def whole(self) -> Dictionary | None:
        """The whole dictionary, in the first process."""
        return self.sae

    def agree(self, name: str, tensor: Tensor) -> None:
        """Gives a tensor of the state the first process's values, where the processes hold the same."""
        self.peers.copy_first(tensor)

    def distribute(self, name: str, whole: Tensor | None, into: Tensor) -> None:
        """Puts a stored tensor into the state of every process; `whole` is given in the first."""
        if whole is not None:
            into.copy_(whole)
        self.peers.copy_first(into)

    def collect(self, name: str, tensor: Tensor) -> Tensor | None:
        """A tensor of the state as it is stored, on the CPU; needed in the first process."""
        return tensor.detach().cpu() if self.peers.rank == 0 else None


def sum_gradients(gradients: dict[str, Tensor], fired: Tensor, dead: Tensor, peers: Peers) -> int:
    """Sums gradients over the processes, in place, in one exchange of the touched rows.

    Args:
        gradients: by tensor name.
        fired: (d_sae,) rows of the whole batch in which each feature was on.
        dead: (n_dead,) features under AuxK.

    Returns:
        Numbers exchanged.
    """
    if peers.world == 1:
        return 0
    touched = fired > 0
    touched[dead] = True
    rows = {name: _rows(name, len(g), touched) for name, g in gradients.items()}
    parts = [gradients[name][at] for name, at in rows.items()]
    flat = peers.sum(torch.cat([part.reshape(-1) for part in parts]))
    for (name, at), part, summed in zip(rows.items(), parts, flat.split([part.numel() for part in parts]), strict=True):
        gradients[name][at] = summed.view_as(part)
    return flat.numel()


def _rows(name: str, n: int, touched: Tensor) -> Tensor | slice:
    """Which of the n rows of a gradient travel."""
    core, _, plain = name.rpartition(".")
    if plain not in _ROW_SPARSE:
        return slice(None)
    first = int(core or 0) * n
    return touched[first : first + n].nonzero().squeeze(1)
