"""Uniform on a sphere: x = R u, u uniform on the unit sphere of a (k+1)-dimensional subspace with basis B (d, k+1).

The simplest curved manifold, of dimension k. Given z, u follows a von Mises-Fisher law around the direction of
y = B^T z with concentration kappa = alpha R |y| / sigma^2, so with p = k + 1

    E[x | z] = R A_p(kappa) B y / |y|,     A_p(kappa) = I_{p/2}(kappa) / I_{p/2 - 1}(kappa)
    eps(z)   = (z - alpha E[x | z]) / sigma

A_p is differentiable any number of times through A' = 1 - A^2 - (p - 1) A / kappa (Mardia and Jupp 2000).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.special import ive

from probe.errors import InvalidRequest
from probe.model.analytic.base import Analytic, factors
from probe.model.eps_model import Cond, LogSnr, check_samples


class Sphere(Analytic):
    """A k-sphere; unconditional.

    Args:
        basis: (d, k + 1), orthonormal columns.
        radius: R > 0.
    """

    def __init__(self, basis: torch.Tensor, radius: float = 1.0) -> None:
        super().__init__(len(basis))
        self.basis, self.radius = basis.double(), float(radius)
        p = basis.shape[1] if basis.ndim == 2 else 0
        eye = torch.eye(p, dtype=torch.float64)
        if p < 2 or not radius > 0 or not torch.allclose(self.basis.T @ self.basis, eye, atol=1e-6):
            raise InvalidRequest("Sphere: expected a basis (d, k + 1 >= 2) with orthonormal columns and a radius > 0.")

    def eps(self, z: torch.Tensor, log_snr: LogSnr, cond: Cond = None) -> torch.Tensor:
        """See ``EpsModel.eps``; there are no conditions. Not differentiable where B^T z = 0."""
        check_samples(self, z)
        if cond is not None:
            raise InvalidRequest(f"Sphere: it has no conditions, got {cond!r}.")
        alpha, sigma = factors(log_snr, z)
        y = z.double() @ self.basis
        length = y.norm(dim=1, keepdim=True).clamp(min=1e-300)
        kappa = alpha * self.radius * length / sigma**2
        mean = self.radius * mean_resultant(kappa, self.basis.shape[1]) * (y / length) @ self.basis.T
        return ((z.double() - alpha * mean) / sigma).to(z.dtype)

    def sample(self, n: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """(n, d) clean samples."""
        u = torch.randn(n, self.basis.shape[1], generator=generator, dtype=self.dtype)
        return self.radius * (u / u.norm(dim=1, keepdim=True)) @ self.basis.T


def mean_resultant(kappa: torch.Tensor, p: int) -> torch.Tensor:
    """A_p(kappa) = I_{p/2}(kappa) / I_{p/2-1}(kappa) for kappa >= 0, float64, differentiable; 0 ... 1."""
    return _MeanResultant.apply(kappa, p)  # type: ignore[no-any-return]


class _MeanResultant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kappa: torch.Tensor, p: int) -> torch.Tensor:
        ctx.save_for_backward(kappa)
        ctx.p = p
        return torch.from_numpy(_ratio(kappa.detach().numpy(), p / 2 - 1))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (kappa,) = ctx.saved_tensors
        a = mean_resultant(kappa, ctx.p)
        slope = 1.0 - a**2 - (ctx.p - 1) * a / kappa.clamp(min=1e-12)
        return grads[0] * torch.where(kappa > 1e-6, slope, torch.full_like(slope, 1.0 / ctx.p)), None


def _ratio(kappa: np.ndarray, order: float) -> np.ndarray:
    """I_{order+1} / I_order, from scipy where it does not underflow, else from its continued fraction.

    1 / (2 (v+1) / kappa + 1 / (2 (v+2) / kappa + ...)) converges within a few terms for kappa << v, which is where the
    Bessel functions underflow. Beyond scipy's largest argument the asymptotic series 1 - (2v+1) / (2 kappa) is exact.
    """
    low = ive(order, kappa)
    good = low > 1e-250
    out = np.divide(ive(order + 1, kappa), low, out=np.zeros_like(kappa), where=good)
    large = kappa > 1e8
    out[large] = 1.0 - (2 * order + 1) / (2 * kappa[large])
    rest = ~good & ~large
    if rest.any():
        x, fraction = kappa[rest], np.zeros(rest.sum())
        for term in range(200, 0, -1):
            fraction = x / (2 * (order + term) + x * fraction)
        out[rest] = fraction
    return out
