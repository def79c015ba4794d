"""How processes divide the work of one dictionary: by its features, where one device cannot hold them all.

Process r of W holds features [r m / W, (r + 1) m / W): their rows of both weight matrices, their biases, their moments
in the optimiser. All processes take the same B rows of each step.

    choose        the k largest of a row among the processes' own k largest: B k values from each     (TopK)
                  the B k largest of the batch by three histograms of 2,048 counts                      (BatchTopK)
    decode        xh = sum of the processes' parts                                  B d values
    AuxK          as above, over dead features                                      B (ka + d) values
    update        each its own rows; the norm for clipping is summed                d + 1 values

So a step moves about 4 B (W k + d) bytes whatever the size of the dictionary, where dividing rows moves up to 8 m d:
less where B is smaller than 2 m. The code is the one that a single process would choose (except where two values are
equal to the last bit), and sums are those of a single process in another order.

A checkpoint and the result are one folder, as from one process: the first process gathers them in its CPU memory,
which must hold the whole dictionary with its moments. Every process draws the whole initial dictionary, on the CPU, and
keeps its part.
"""

import dataclasses

import torch
from torch import Tensor

from sae.architectures.autoencoder import SparseAutoencoder
from sae.architectures.make import CLASSES, Dictionary
from sae.contract import Loss
from sae.errors import ConfigError
from sae.numerics.peers import ALONE, Peers
from sae.training.division import Division, Sums

ARCHITECTURES = ("topk", "batchtopk")
_WHOLE = ("b_dec", "scale", "threshold", "input.", "step.")  # of a tensor's name: what every process holds whole


class FeatureDivision(Division):
    """Each process holds some features of the dictionary; see `Division` for what it offers.

    Raises:
        ConfigError: another architecture, a width that is not a multiple of the number of processes, or so many
            processes that one would hold fewer than k features.
    """

    BY = "features"

    def __init__(self, sae: Dictionary, peers: Peers = ALONE, device: torch.device | str = "cpu") -> None:
        config, world = sae.config, peers.world
        if not isinstance(sae, SparseAutoencoder) or config.blocks is not None:
            what = "A crosscoder" if config.blocks else f"A dictionary with time {config.time!r}"
            raise ConfigError(f"{what} cannot be divided by features. Divide rows instead.")
        if config.architecture not in ARCHITECTURES:
            raise ConfigError(
                f"architecture is {config.architecture!r}; processes can divide the features of "
                f"{' and '.join(ARCHITECTURES)}. Divide rows instead."
            )
        if config.d_sae % world or config.d_sae // world < config.k:
            raise ConfigError(
                f"d_sae is {config.d_sae}, over {world} processes; each needs as many features, and at least k = "
                f"{config.k}."
            )
        part_config = dataclasses.replace(config, d_sae=config.d_sae // world)
        part = CLASSES[config.architecture](part_config, metadata=sae.metadata)
        own = slice(peers.rank * part.d_sae, (peers.rank + 1) * part.d_sae)
        with torch.no_grad():
            for name, tensor in part.state_dict(keep_vars=True).items():
                whole = sae.state_dict()[name]
                tensor.copy_(whole if whole.shape == tensor.shape else whole[:, own] if name == "W_enc" else whole[own])
        super().__init__(part, ALONE, device)
        part.shards = self.peers = peers
        self.d_sae, self._config = config.d_sae, config

    @staticmethod
    def share_of_rows(batch_size: int, peers: Peers) -> tuple[int, int]:
        """Every process takes all rows."""
        return 0, 1

    def reduce(self, result: Loss, gradients: dict[str, Tensor], dead: Tensor) -> Sums:
        """The loss is that of the whole dictionary already; gradients are of this process's features."""
        n_on = int(self.peers.sum(result.fired.sum()))
        return Sums(float(result.loss), float(result.sse), float(result.variance), n_on, result.fired)

    def norm(self, gradients: dict[str, Tensor]) -> Tensor:
        """() over the features of all processes; b_dec, which all hold, counts once."""
        own = torch.stack([g.square().sum() for name, g in gradients.items() if name != "b_dec"]).sum()
        return (self.peers.sum(own) + gradients["b_dec"].square().sum()).sqrt()

    def count(self, mask: Tensor) -> int:
        return int(self.peers.sum(mask.sum()))

    def whole(self) -> SparseAutoencoder | None:
        state = {
            name: self.collect(name, tensor.T if name == "W_enc" else tensor)
            for name, tensor in self.sae.state_dict().items()
        }
        if self.peers.rank:
            return None
        sae = CLASSES[self._config.architecture](self._config, metadata=self.sae.metadata)
        with torch.no_grad():
            for name, tensor in sae.state_dict(keep_vars=True).items():
                found = state[name]
                assert found is not None
                tensor.copy_(found.T if name == "W_enc" else found)
        return sae

    def agree(self, name: str, tensor: Tensor) -> None:
        if _is_whole(name):
            self.peers.copy_first(tensor)

    def distribute(self, name: str, whole: Tensor | None, into: Tensor) -> None:
        if _is_whole(name):
            super().distribute(name, whole, into)
        else:
            self.peers.scatter(whole, into)

    def collect(self, name: str, tensor: Tensor) -> Tensor | None:
        return super().collect(name, tensor) if _is_whole(name) else self.peers.collect(tensor)


def _is_whole(name: str) -> bool:
    """Whether every process holds the whole of a tensor of the state."""
    return any(part in name for part in _WHOLE)
