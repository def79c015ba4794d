"""One Gaussian, x ~ N(mu, S) with S of any rank: a linear manifold if it is low.

With S = U diag(l) U^T the noisy sample is z ~ N(alpha mu, U diag(alpha^2 l + sigma^2) U^T), and

    eps(z)     = sigma U diag(1 / (alpha^2 l + sigma^2)) U^T (z - alpha mu)
    Cov(x | z) = U diag(l sigma^2 / (alpha^2 l + sigma^2)) U^T                     the same for every z
    H(x)       = 1/2 sum log(2 pi e l)
"""

from __future__ import annotations

import math

import torch

from probe.errors import InvalidRequest
from probe.model.analytic.base import Analytic, factors, log_normal, spectral
from probe.model.eps_model import Cond, LogSnr, check_samples


class Gaussian(Analytic):
    """A Gaussian; unconditional.

    Args:
        mean: (d,).
        covariance: (d, d), of any rank.

    Raises:
        InvalidRequest: shapes that do not fit, or no covariance.
    """

    def __init__(self, mean: torch.Tensor, covariance: torch.Tensor) -> None:
        super().__init__(len(mean))
        self.mean, self.covariance = mean.double(), covariance.double()
        if self.covariance.shape != (self.d, self.d):
            raise InvalidRequest(f"Gaussian: mean of {self.d}, covariance {tuple(covariance.shape)}.")
        self.vectors, self.values = spectral(self.covariance, "Gaussian")

    @classmethod
    def linear_manifold(cls, basis: torch.Tensor, scale: float = 1.0) -> Gaussian:
        """x = scale B w with w ~ N(0, I_k): a k-dimensional linear manifold, B (d, k)."""
        return cls(torch.zeros(len(basis)), scale**2 * (basis.double() @ basis.double().T))

    def eps(self, z: torch.Tensor, log_snr: LogSnr, cond: Cond = None) -> torch.Tensor:
        """See ``EpsModel.eps``; there are no conditions."""
        check_samples(self, z)
        if cond is not None:
            raise InvalidRequest(f"Gaussian: it has no conditions, got {cond!r}.")
        alpha, sigma = factors(log_snr, z)
        rotated = (z.double() - alpha * self.mean) @ self.vectors
        return (sigma * rotated / (alpha**2 * self.values + sigma**2) @ self.vectors.T).to(z.dtype)

    def sample(self, n: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """(n, d) clean samples."""
        w = torch.randn(n, self.d, generator=generator, dtype=self.dtype)
        return self.mean + (w * self.values.sqrt()) @ self.vectors.T

    def covariance_given(self, z: torch.Tensor, log_snr: LogSnr) -> torch.Tensor:
        """Cov(x | z), (B, d, d)."""
        alpha, sigma = factors(log_snr, z)
        kept = self.values * sigma**2 / (alpha**2 * self.values + sigma**2)
        return (self.vectors * kept[:, None, :]) @ self.vectors.T

    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        """log p(x) in nats, (B,); -inf has no density where the rank is not full, so that is refused."""
        self._full_rank("log_density")
        return log_normal((x.double() - self.mean) @ self.vectors, self.values)

    def entropy(self) -> float:
        """Differential entropy in nats."""
        self._full_rank("entropy")
        return float(0.5 * (self.values.log() + math.log(2.0 * math.pi * math.e)).sum())

    def _full_rank(self, what: str) -> None:
        if not bool((self.values > 0).all()):
            raise InvalidRequest(f"Gaussian.{what}: the covariance is singular, so there is no density.")
