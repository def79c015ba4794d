"""Shuffled rows as torch tensors.

Rows are copied once, from the loader's pool straight into the tensor. With CUDA that tensor lies in pinned memory, so
that `batch.x.to(device, non_blocking=True)` overlaps with the next batch.
"""

from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import torch

if TYPE_CHECKING:
    from activations_store.loading.loader import RowLoader


class TensorBatch(NamedTuple):
    """B rows of one site.

    Attributes:
        x: (B, d) float32, pinned when CUDA is there.
        sample, step, branch, token: (B,) int64 on the CPU; where each row comes from.
    """

    x: torch.Tensor
    sample: torch.Tensor
    step: torch.Tensor
    branch: torch.Tensor
    token: torch.Tensor


class TensorRows:
    """The batches of a `RowLoader` as tensors; made by `RowLoader.tensors`. Leaving its `with` block closes the loader.

    Args:
        loader: where the rows come from; its `position` counts these batches.
        pin: whether to use pinned memory; None for whether CUDA is there.
    """

    def __init__(self, loader: "RowLoader", *, pin: bool | None = None) -> None:
        self.loader = loader
        self.pin = torch.cuda.is_available() if pin is None else pin

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TensorBatch:
        if self.pin:
            x = torch.empty(self.loader.batch_size, self.loader.d, pin_memory=True)  # torch keeps pinned memory itself
        else:
            x = torch.from_numpy(self.loader.new_rows())
        return TensorBatch(x, *torch.from_numpy(self.loader.next_into(x.numpy(), _cast)).unbind(0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.loader.close()


def _cast(target: np.ndarray, source: np.ndarray) -> None:
    torch.from_numpy(target).copy_(torch.from_numpy(source))
