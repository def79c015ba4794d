"""One interface to a denoiser: ``eps(z, log_snr, cond)``, the noise it sees in a noisy sample.

Every model is met in one convention, whatever it was trained in. With a = log SNR and sig the logistic function,

    z = alpha x + sigma n,   alpha = sqrt(sig(a)),   sigma = sqrt(sig(-a)),   alpha^2 + sigma^2 = 1

x is a clean sample in the scale that the denoiser takes (a latent of a latent model, already scaled), n unit noise, and
eps(z, a, c) estimates E[n | z, c]. Everything else follows:

    x0hat = (z - sigma eps) / alpha = E[x | z, c]          score = -eps / sigma = grad_z log p_a(z | c)

``EpsModel`` is the interface. ``PipelineEps`` puts a diffusers pipeline behind it and hides what it predicts (noise,
velocity, sample, flow), its schedule, its time and its dtype; ``probe.model.analytic`` has models whose answer is known
in closed form. An estimator that sees only this interface runs on both. All of them are differentiable in z.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from probe.errors import InvalidRequest

LogSnr = float | torch.Tensor
"""One level for all samples, or (B,) one a sample."""
Cond = Any
"""None (unconditional), one condition for all samples, or a sequence or tensor of B, None among them unconditional.

What a condition is depends on the model: a prompt for pipelines, a label for mixtures."""


class EpsModel(Protocol):
    """A denoiser."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, without batch."""
        ...

    @property
    def log_snr_range(self) -> tuple[float, float]:
        """Lowest and highest finite level that the model knows."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What samples should be made in: float32 for networks, float64 for closed forms."""
        ...

    @property
    def device(self) -> torch.device:
        """Where samples should be made."""
        ...

    def eps(self, z: torch.Tensor, log_snr: LogSnr, cond: Cond = None) -> torch.Tensor:
        """Estimated noise.

        Args:
            z: (B, *sample_shape), alpha x + sigma n.
            log_snr: one level, or (B,) one a sample; rows of a batch do not touch each other.
            cond: see ``Cond``. Rows of one batch may have different conditions, so that several conditions share
                their noise in one call.

        Returns:
            (B, *sample_shape), z's dtype and device.

        Raises:
            InvalidRequest: a level outside ``log_snr_range``, a condition that the model does not know, or arguments
                that do not fit together.
        """
        ...


def alpha_sigma(log_snr: LogSnr, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(alpha, sigma) that broadcast against samples z (B, ...), computed in float64, of z's dtype.

    Raises:
        InvalidRequest: ``log_snr`` is neither a number nor (B,).
    """
    a = levels(log_snr, len(z)).to(z.device)
    a = a.reshape(-1, *(1,) * (z.ndim - 1))
    return torch.sigmoid(a).sqrt().to(z.dtype), torch.sigmoid(-a).sqrt().to(z.dtype)


def levels(log_snr: LogSnr, n: int) -> torch.Tensor:
    """One level a sample: (n,) float64 on the CPU."""
    a = torch.as_tensor(log_snr, dtype=torch.float64).detach().cpu()
    if a.ndim > 1 or (a.ndim == 1 and len(a) not in (1, n)) or bool(a.isnan().any()):
        raise InvalidRequest(f"log_snr: shape {tuple(a.shape)}; expected a number, or one for each of {n} samples.")
    return a.expand(n)


def conditions(cond: Cond, n: int) -> list[Any]:
    """One condition a sample.

    Raises:
        InvalidRequest: a sequence of another length.
    """
    if isinstance(cond, torch.Tensor):
        cond = cond.tolist()
    if cond is None or isinstance(cond, str) or not isinstance(cond, Sequence):
        return [cond] * n
    if len(cond) != n:
        raise InvalidRequest(f"cond: {len(cond)} conditions for {n} samples; give one, or one a sample.")
    return list(cond)


def noised(x: torch.Tensor, noise: torch.Tensor, log_snr: LogSnr) -> torch.Tensor:
    """z = alpha x + sigma n for clean samples and unit noise of one shape (B, ...)."""
    alpha, sigma = alpha_sigma(log_snr, x)
    return alpha * x + sigma * noise


def x0_hat(model: EpsModel, z: torch.Tensor, log_snr: LogSnr, cond: Cond = None) -> torch.Tensor:
    """Posterior mean E[x | z, c], of z's shape.

    Raises:
        InvalidRequest: a level of pure noise, where z says nothing about x.
    """
    if bool((levels(log_snr, len(z)) == -math.inf).any()):
        raise InvalidRequest("x0_hat: at log-SNR -inf there is no signal to divide by; choose a finite level.")
    alpha, sigma = alpha_sigma(log_snr, z)
    return (z - sigma * model.eps(z, log_snr, cond)) / alpha


def score(model: EpsModel, z: torch.Tensor, log_snr: LogSnr, cond: Cond = None) -> torch.Tensor:
    """grad_z log p(z | c) at the level, of z's shape."""
    _, sigma = alpha_sigma(log_snr, z)
    return -model.eps(z, log_snr, cond) / sigma


def check_samples(model: EpsModel, z: torch.Tensor) -> None:
    """Raise InvalidRequest unless z is (B >= 1, *sample_shape)."""
    if tuple(z.shape[1:]) != tuple(model.sample_shape) or z.ndim == 0 or len(z) == 0:
        raise InvalidRequest(f"eps: samples {tuple(z.shape)}; expected (B, {', '.join(map(str, model.sample_shape))}).")
