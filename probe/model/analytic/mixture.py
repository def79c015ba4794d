"""A mixture of Gaussians whose component is its label, x | y=k ~ N(mu_k, S_k), P(y=k) = w_k.

Noise keeps it a mixture: z | k ~ N(alpha mu_k, C_k), C_k = alpha^2 S_k + sigma^2 I. With the label posterior
r_k(z) = w_k N(z; alpha mu_k, C_k) / sum_j ..., which is what a perfect classifier of noisy samples says,

    eps(z)     = sum_k r_k eps_k(z)             eps_k(z) = sigma C_k^-1 (z - alpha mu_k) = eps(z | y=k)
    E[x | z]   = sum_k r_k m_k                  m_k = mu_k + alpha S_k C_k^-1 (z - alpha mu_k)
    Cov(x | z) = sum_k r_k (P_k + m_k m_k^T) - m m^T,      P_k = S_k - alpha^2 S_k C_k^-1 S_k
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from probe.errors import InvalidRequest
from probe.model.analytic.base import Analytic, factors, spectral
from probe.model.eps_model import Cond, LogSnr, check_samples, conditions


class GaussianMixture(Analytic):
    """A mixture of K Gaussians, conditioned on the component.

    Args:
        means: (K, d).
        covariances: (K, d, d), or (d, d) shared; of any rank.
        weights: (K,) positive, divided by their sum; equal if None.

    A condition is a component's number 0 ... K-1.
    """

    def __init__(
        self, means: torch.Tensor, covariances: torch.Tensor, weights: torch.Tensor | Sequence[float] | None = None
    ) -> None:
        k, d = means.shape if means.ndim == 2 else (0, 0)
        super().__init__(d)
        self.means = means.double()
        if covariances.shape not in ((k, d, d), (d, d)) or k == 0:
            raise InvalidRequest(
                f"GaussianMixture: means {tuple(means.shape)}, covariances {tuple(covariances.shape)}."
            )
        self.covariances = covariances.double().expand(k, d, d)
        self.weights = torch.as_tensor([1.0] * k if weights is None else weights, dtype=torch.float64)
        if self.weights.shape != (k,) or not bool((self.weights > 0).all()):
            raise InvalidRequest(f"GaussianMixture: weights {self.weights.tolist()}; expected {k} positive numbers.")
        self.weights = self.weights / self.weights.sum()
        self._vectors, self._values = spectral(self.covariances, "GaussianMixture")

    @property
    def n_components(self) -> int:
        """K."""
        return len(self.means)

    def eps(self, z: torch.Tensor, log_snr: LogSnr, cond: Cond = None) -> torch.Tensor:
        """See ``EpsModel.eps``."""
        check_samples(self, z)
        each, log_joint, sigma = self._whitened(z, log_snr)
        share = torch.softmax(log_joint + self._allowed(cond, len(z)), 1)
        rotated = sigma * torch.einsum("bki,kji->bkj", each, self._vectors)
        return (share[..., None] * rotated).sum(1).to(z.dtype)

    def label_posterior(self, z: torch.Tensor, log_snr: LogSnr) -> torch.Tensor:
        """P(y=k | z), (B, K)."""
        return torch.softmax(self._whitened(z, log_snr)[1], 1)

    def sample(
        self, n: int, generator: torch.Generator | None = None, labels: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, d) clean samples and their (n,) labels; labels may be given."""
        if labels is None:
            labels = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        w = torch.randn(n, self.d, generator=generator, dtype=self.dtype) * self._values[labels].sqrt()
        return self.means[labels] + torch.einsum("nji,ni->nj", self._vectors[labels], w), labels

    def covariance_given(self, z: torch.Tensor, log_snr: LogSnr) -> torch.Tensor:
        """Cov(x | z), (B, d, d)."""
        alpha, sigma = (v[:, :, None] for v in factors(log_snr, z))
        share = self.label_posterior(z, log_snr)
        total = alpha**2 * self._values + sigma**2
        rotated = torch.einsum("bki,kij->bkj", z.double()[:, None] - alpha * self.means, self._vectors)
        means = self.means + torch.einsum("bki,kji->bkj", alpha * self._values * rotated / total, self._vectors)
        own = torch.einsum("kil,bkl,kjl->bkij", self._vectors, self._values * sigma**2 / total, self._vectors)
        second = (share[..., None, None] * (own + means[..., :, None] * means[..., None, :])).sum(1)
        mean = (share[..., None] * means).sum(1)
        return second - mean[:, :, None] * mean[:, None, :]

    def log_density(self, z: torch.Tensor, log_snr: LogSnr) -> torch.Tensor:
        """log p(z) in nats at a level, (B,); the clean density is its limit at high levels."""
        return torch.logsumexp(self._whitened(z, log_snr)[1], 1)

    def _whitened(self, z: torch.Tensor, log_snr: LogSnr) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """C_k^-1 (z - alpha mu_k) in component coordinates (B, K, d); log w_k N(z; ...) (B, K); sigma (B, 1, 1)."""
        alpha, sigma = (v[:, :, None] for v in factors(log_snr, z))
        total = alpha**2 * self._values + sigma**2
        rotated = torch.einsum("bki,kij->bkj", z.double()[:, None] - alpha * self.means, self._vectors)
        each = rotated / total
        log_2pi = torch.log(torch.tensor(2.0 * torch.pi, dtype=torch.float64))
        log_joint = self.weights.log() - 0.5 * (rotated * each + total.log() + log_2pi).sum(-1)
        return each, log_joint, sigma

    def _allowed(self, cond: Cond, n: int) -> torch.Tensor:
        """(n, K) zero where a component is allowed by the condition, -inf where not."""
        wanted = [-1 if label is None else self._component(label) for label in conditions(cond, n)]
        label = torch.tensor(wanted)[:, None]
        allowed = (label < 0) | (label == torch.arange(self.n_components))
        return torch.zeros(allowed.shape, dtype=torch.float64).masked_fill(~allowed, -torch.inf)

    def _component(self, label: Any) -> int:
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < self.n_components:
            raise InvalidRequest(f"cond: {label!r} is no component; expected 0 to {self.n_components - 1}, or None.")
        return label
