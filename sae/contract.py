"""What every dictionary architecture offers, so that training, metrics, scores and bundles are written once.

`SparseDictionary` is what can be *used*: dense and sparse encoding, decoding, unit decoder rows. `Architecture` adds
what the trainer needs: named tensors, a loss with explicit gradients, and a hook after each update. A new architecture
is one file with one class that satisfies both; the trainer, the optimiser and the checkpoints know none by name.
"""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from sae.config import SAEConfig
from sae.numerics.peers import Peers
from sae.numerics.sparse import TopKCode


class Loss(Protocol):
    """What a loss evaluation reports besides its gradients (`step.StepResult` is one)."""

    @property
    def loss(self) -> Tensor: ...
    @property
    def sse(self) -> Tensor: ...
    @property
    def variance(self) -> Tensor: ...
    @property
    def fired(self) -> Tensor: ...


@runtime_checkable
class SparseDictionary(Protocol):
    """Anything that turns rows into sparse codes and back; decode(z) = z @ W_dec + a constant."""

    config: SAEConfig
    metadata: dict[str, Any]

    @property
    def W_dec(self) -> Tensor:
        """(d_sae, d_in), one feature a row; unit rows unless a whitening was folded in."""
        ...

    @property
    def directions(self) -> Tensor:
        """(d_sae, d_in): what a code of 1 adds to x; W_dec where no input map stands before it."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """(..., d_in) rows to (..., d_sae) dense codes."""
        ...

    def encode_sparse(self, x: Tensor) -> TopKCode:
        """(..., d_in) rows to a sparse code; rows may leave slots unused (value 0)."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """(..., d_sae) dense codes to (..., d_in) rows."""
        ...

    def decode_sparse(self, code: TopKCode) -> Tensor:
        """A sparse code to (..., d_in) rows."""
        ...


@runtime_checkable
class Architecture(SparseDictionary, Protocol):
    """A dictionary that `sae.train` can train."""

    peers: Peers  # the processes that share the batches of `loss`

    def initialise(self, rows: Tensor, log_snr: Tensor | None = None) -> None:
        """Sets what depends on the data (pre-bias, input scale) from (n, d_in) rows spread over it, and their noise
        levels (n,).
        """
        ...

    def fixed_tensors(self) -> dict[str, Tensor]:
        """Name -> tensor that `initialise` or the training rule sets and the optimiser does not."""
        ...

    def trained_tensors(self) -> dict[str, Tensor]:
        """Name -> contiguous tensor that the optimiser updates in place; shares memory with the module."""
        ...

    def loss(
        self, x: Tensor, dead: Tensor | None = None, log_snr: Tensor | None = None
    ) -> tuple[Loss, dict[str, Tensor]]:
        """Loss of (B, d_in) rows and its gradient by tensor name, ready for the optimiser. No autograd graph.

        The noise levels of the rows, (B,), are needed by dictionaries in which time enters (timed.py).

        Where several processes share the batch, both are this process's share.
        """
        ...

    def after_update(self) -> None:
        """Restores what the update may have broken, e.g. unit decoder rows."""
        ...
