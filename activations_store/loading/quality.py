"""How well a stream of rows is shuffled: the effective batch size.

Rows of one image resemble each other, so a batch of B rows is worth less than B independent ones. With m the mean
number of rows of the batch that share a row's image (itself included) and rho the correlation of two rows of one
image, the variance of the batch mean is that of

    B_eff = B / (1 + (m - 1) rho)

independent rows (the design effect of cluster sampling; Kish, Survey Sampling, 1965). A full permutation of the N
rows has m = 1 + (B - 1)(R - 1) / (N - 1) in expectation, R rows an image: no order of the data does better on average
without choosing images on purpose, so the ratio to it is the loss that the shuffle causes.
"""

from dataclasses import dataclass

import numpy as np

from activations_store.errors import InvalidSelection, explain
from activations_store.loading.loader import RowLoader

RHO = 0.3
"""Correlation that is assumed between rows of one image; report the figure with it."""


@dataclass(frozen=True)
class ShuffleQuality:
    """What `shuffle_quality` measured, mean over batches.

    Attributes:
        batch_size: B.
        rho: the correlation assumed.
        images: different images a batch.
        same_image: m, mean rows of a batch that share a row's image, itself included.
        effective: effective batch size of the loader.
        effective_full: the same for a full permutation of all rows.
    """

    batch_size: int
    rho: float
    images: float
    same_image: float
    effective: float
    effective_full: float

    @property
    def ratio(self) -> float:
        """Share of a full permutation's effective batch size that is left."""
        return self.effective / self.effective_full


def effective_batch_size(images: np.ndarray, rho: float = RHO) -> float:
    """Effective size of one batch.

    Args:
        images: (B,) which image each row belongs to, any integers.
        rho: correlation of two rows of one image, 0 to 1.

    Returns:
        B / (1 + (m - 1) rho), between 1 and B.
    """
    if not 0.0 <= rho <= 1.0 or not len(images):
        raise InvalidSelection(explain("rho or the batch is out of range", found=f"rho {rho}, {len(images)} rows"))
    counts = np.unique(images, return_counts=True)[1].astype(float)
    return float(len(images) / (1.0 + ((counts**2).sum() / len(images) - 1.0) * rho))


def shuffle_quality(loader: RowLoader, *, batches: int = 16, rho: float = RHO) -> ShuffleQuality:
    """Measure the order of a loader against a full permutation, without reading any row.

    Args:
        loader: whose order; its position does not change.
        batches: how many batches to look at, spread evenly over the first epoch.
        rho: see `effective_batch_size`.

    Raises:
        InvalidSelection: no batch to look at, or rho is out of range.

    Cost: about 0.1 s a batch for pools of 65,536 rows.
    """
    if batches < 1:
        raise InvalidSelection(explain("batches is too small", found=batches, expected="1 or more"))
    size, rows = loader.batch_size, loader.rank_rows_per_epoch
    last = max(1, rows // size)
    seen = [loader.coordinates(int(at))[0] for at in np.unique(np.linspace(0, last - 1, batches).astype(int))]
    counts = [np.unique(images, return_counts=True)[1].astype(float) for images in seen]
    same = float(np.mean([(c**2).sum() / size for c in counts]))
    per_image = rows / loader.n_samples
    full = 1.0 + (size - 1) * max(0.0, per_image - 1.0) / max(1, rows - 1)
    return ShuffleQuality(
        size,
        rho,
        float(np.mean([len(c) for c in counts])),
        same,
        float(np.mean([effective_batch_size(images, rho) for images in seen])),
        size / (1.0 + (full - 1.0) * rho),
    )
