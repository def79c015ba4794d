"""What the closed-form models share: float64, vectors of length d as samples, all finite levels."""

from __future__ import annotations

import math

import torch

from probe.errors import InvalidRequest
from probe.model.eps_model import LogSnr, levels

LIMIT = 60.0
"""Levels reach from -60 to 60: beyond, alpha or sigma is zero to float64."""


class Analytic:
    """Base of the closed-form models. Samples are (d,) vectors."""

    log_snr_range = (-LIMIT, LIMIT)
    dtype = torch.float64
    device = torch.device("cpu")

    def __init__(self, d: int) -> None:
        self.sample_shape: tuple[int, ...] = (d,)

    @property
    def d(self) -> int:
        """Length of a sample."""
        return self.sample_shape[0]


def factors(log_snr: LogSnr, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(alpha, sigma), each (B, 1) float64.

    Raises:
        InvalidRequest: a level beyond +-60.
    """
    a = levels(log_snr, len(z))
    if bool((a.abs() > LIMIT).any()):
        raise InvalidRequest(f"log_snr: closed-form models know levels from {-LIMIT:g} to {LIMIT:g}.")
    return torch.sigmoid(a).sqrt()[:, None], torch.sigmoid(-a).sqrt()[:, None]


def spectral(covariance: torch.Tensor, what: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvectors (..., d, d) and eigenvalues (..., d) of covariances; those that are rounding become zero.

    Raises:
        InvalidRequest: not symmetric, or an eigenvalue is clearly negative.
    """
    if covariance.shape[-1] != covariance.shape[-2]:
        raise InvalidRequest(f"{what}: covariance of shape {tuple(covariance.shape)}; expected (..., d, d).")
    values, vectors = torch.linalg.eigh(covariance)
    size = covariance.abs().amax().clamp(min=1e-300)
    asymmetry = (covariance - covariance.mT).abs().amax() / size
    if not bool(asymmetry < 1e-9) or not bool((values >= -1e-9 * size).all()):
        raise InvalidRequest(f"{what}: a covariance must be symmetric with no negative eigenvalue.")
    return vectors, torch.where(values > 1e-13 * values.amax(-1, keepdim=True), values, 0.0)


def log_normal(x: torch.Tensor, variances: torch.Tensor) -> torch.Tensor:
    """Log-density of independent normal coordinates with mean zero, summed over the last axis."""
    return -0.5 * (x**2 / variances + variances.log() + math.log(2.0 * math.pi)).sum(-1)
