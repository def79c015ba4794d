"""A Gaussian as control variate: a denoiser whose likelihood is known, met by the same noisy samples.

The identity of ``likelihood`` holds for the exact denoiser of any density at any point x. For a Gaussian with the
moments of the images both sides are known, so its error can be subtracted from the model's on the same noise: what is
left is small, and what the window cuts off nearly cancels.

With many images the full covariance is used, otherwise variances alone (independent coordinates): any Gaussian keeps
the estimate unbiased, a better one makes it less noisy.
"""

from __future__ import annotations

import math

import torch

from probe.errors import InvalidRequest
from probe.model.eps_model import Cond, LogSnr, alpha_sigma, check_samples

_FULL_RATIO = 4
"""The full covariance is used from this many images a dimension."""


class GaussianControl:
    """The denoiser of a Gaussian over samples of any shape; unconditional.

    Args:
        mean: (*sample_shape).
        values: (d,) variances along the columns of ``vectors``, above zero.
        vectors: (d, d) orthonormal columns, or None for the coordinates themselves.
    """

    log_snr_range = (-60.0, 60.0)

    def __init__(self, mean: torch.Tensor, values: torch.Tensor, vectors: torch.Tensor | None = None) -> None:
        if not bool((values > 0).all()) or len(values) != mean.numel():
            raise InvalidRequest(f"GaussianControl: expected {mean.numel()} variances above zero.")
        self.mean, self.values, self.vectors = mean, values, vectors
        self.sample_shape: tuple[int, ...] = tuple(mean.shape)
        self.dtype, self.device = mean.dtype, mean.device

    @classmethod
    def fit(cls, x: torch.Tensor) -> GaussianControl:
        """The Gaussian with the moments of samples (B >= 2, *sample_shape).

        Variances are raised to a millionth of their mean at least, so that pixels that never change have a density.
        """
        if len(x) < 2:
            raise InvalidRequest(f"GaussianControl: {len(x)} samples; expected at least 2.")
        flat = x.reshape(len(x), -1).double()
        mean = flat.mean(0)
        vectors = None
        if len(x) >= _FULL_RATIO * flat.shape[1]:
            values, vectors = torch.linalg.eigh(torch.cov(flat.T).reshape(len(mean), -1))
        else:
            values = flat.var(0)
        values = values.clamp(min=max(1e-6 * float(values.mean()), 1e-12))
        kept = None if vectors is None else vectors.to(x.dtype)
        return cls(mean.to(x.dtype).reshape(x.shape[1:]), values.to(x.dtype), kept)

    def eps(self, z: torch.Tensor, log_snr: LogSnr, cond: Cond = None) -> torch.Tensor:
        """See ``EpsModel.eps``; conditions are ignored by whoever gives none."""
        check_samples(self, z)
        if cond is not None:
            raise InvalidRequest(f"GaussianControl: it has no conditions, got {cond!r}.")
        alpha, sigma = (v.reshape(-1, 1) for v in alpha_sigma(log_snr, z))
        flat = z.reshape(len(z), -1) - alpha * self.mean.reshape(-1)
        rotated = flat if self.vectors is None else flat @ self.vectors
        out = sigma * rotated / (alpha**2 * self.values + sigma**2)
        out = out if self.vectors is None else out @ self.vectors.T
        return out.reshape(z.shape)

    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        """(B,) log p(x) in nats of samples (B, ...), float64."""
        off = x.reshape(len(x), -1).double() - self.mean.reshape(-1).double()
        rotated = off if self.vectors is None else off @ self.vectors.double()
        values = self.values.double()
        return -0.5 * (rotated**2 / values + values.log() + math.log(2.0 * math.pi)).sum(1)
