"""Negative log-likelihood of images by how well they can be denoised, in nats and bits a dimension.

For the exact denoiser (Kong et al. 2023, https://arxiv.org/abs/2302.03792), with d dimensions and sig the logistic,

    -log p(x) = (d / 2) log(2 pi e) + 1/2 INT da [ E ||n - eps(z)||^2 - d sig(a) ]

The subtracted d sig(a) is the error of a unit Gaussian, on average. Subtracting the error of a Gaussian with the
images' own moments, on the same noise, is the same identity with far less noise (``control``):

    -log p(x) = -log p_G(x) + 1/2 INT da E [ ||n - eps(z)||^2 - ||n - eps_G(z)||^2 ]

The density is that of the samples in the denoiser's own scale: latents of a latent model, whose numbers cannot be
compared with bits of pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.special import expit

from probe.information.columns import CONTROL, EMPTY
from probe.information.control import GaussianControl
from probe.information.intervals import Interval, interval, pointwise_error
from probe.information.table import NodeTable


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Negative log-likelihoods.

    Attributes:
        column: under which condition.
        terms: (images, nodes) nats, to be summed over nodes.
        offset: (images,) nats to be added, of the control or the unit Gaussian.
        dimensions: numbers in a sample.
        shared_nodes: whether all images have the same nodes.
    """

    column: str
    terms: np.ndarray
    offset: np.ndarray
    dimensions: int
    shared_nodes: bool = True

    @cached_property
    def nats(self) -> np.ndarray:
        """(images,) -log p(x)."""
        return self.offset + self.terms.sum(1)

    @property
    def bits_per_dimension(self) -> np.ndarray:
        """(images,) -log2 p(x) a dimension."""
        return self.nats / (self.dimensions * math.log(2.0))

    @property
    def mean(self) -> float:
        """Mean in nats: the entropy, for images from the model's own distribution."""
        return float(self.nats.mean())

    @property
    def pointwise_error(self) -> np.ndarray:
        """(images,) standard error in nats by the noise and places of the nodes."""
        return pointwise_error(self.terms)

    def interval(self, level: float = 0.95, n: int = 1000, seed: int = 0) -> Interval:
        """Interval of the mean in nats by bootstrap over images and nodes."""
        terms = self.terms.copy()
        # The first two nodes take the offset by halves: it belongs to the image, and no difference of nodes sees it.
        last = min(2, terms.shape[1])
        terms[:, :last] += self.offset[:, None] / last
        return interval(
            [terms], lambda v: float(v[0].mean()), level=level, n=n, seed=seed, shared_nodes=self.shared_nodes
        )


def likelihood(table: NodeTable, column: str = EMPTY, *, control: GaussianControl | None = None) -> Likelihood:
    """Negative log-likelihood of every image under one column.

    Args:
        table: has the column, and a column "control" with ``control`` as its denoiser if one is given.
        column: e.g. "empty" for p(x), "caption" for p(x | caption).
        control: the Gaussian; without one the plain identity is used, which is much noisier.

    Raises:
        InvalidRequest: no such column.
    """
    half, error = 0.5 * table.weight, table.errors(column).sum(2, dtype=np.float64)
    if control is None:
        expected = table.dimensions * expit(table.log_snr)
        offset = np.full(table.n_images, 0.5 * table.dimensions * math.log(2.0 * math.pi * math.e))
    else:
        expected = table.errors(CONTROL).sum(2, dtype=np.float64)
        offset = -control.log_density(torch.from_numpy(table.x)).cpu().numpy()
    return Likelihood(column, half * (error - expected), offset, table.dimensions, table.nodes.shared)
