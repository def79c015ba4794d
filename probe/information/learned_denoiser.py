"""Small denoisers of rows, trained for them with and without y: an ``EpsModel`` as any other.

For numbers that no diffusion model was trained on, such as the rows of a site in a store. One network learns both sides
of I(x; y), as in MINDE (Franzese et al. 2024, https://arxiv.org/abs/2310.09031) and MMG (Yu et al. 2025):

    eps(z, a, y) = sigma z + alpha F(z, a, y)      F = 0 is exact for x ~ N(0, 1): only what differs is learned
    loss = E |n - eps|^2                           each noisy row twice, once told y and once not

Half of the levels lie evenly over the range, half around the middle, where rows of variance 1 have most to tell.
F and its training: ``perceptrons.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from probe.information.perceptrons import RANGE, Perceptrons, Training, train_side_by_side
from probe.model.eps_model import LogSnr, check_samples, levels

_MIDDLE = (0.5, 1.5)  # location and scale of the logistic that half of the levels follow
_LOOKS, _LEAST_BETWEEN = 20, 100  # at the loss of rows that are not trained on, and steps between two
_CHECK_ROWS = 4096


class LearnedDenoiser:
    """A trained perceptron as an ``EpsModel``; a condition is a row of y, (k,) float32. CPU, float32.

    Attributes:
        k: coordinates of y.
    """

    log_snr_range = RANGE
    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, net: Perceptrons, d: int, k: int) -> None:
        self.sample_shape: tuple[int, ...] = (d,)
        self.k = k
        self._net = net

    def eps(self, z: torch.Tensor, log_snr: LogSnr, cond: Any = None) -> torch.Tensor:
        """See ``EpsModel.eps``; all rows of a batch have a condition, or none has."""
        check_samples(self, z)
        told = torch.zeros(len(z), self.k + 1)
        if cond is not None and cond[0] is not None:
            told = torch.cat([torch.stack(list(cond)), torch.ones(len(z), 1)], 1)
        with torch.no_grad():
            return _eps(self._net, z.float(), levels(log_snr, len(z)).float(), told[None])[0].to(z.dtype)


def train_denoisers(
    x: torch.Tensor,
    ys: torch.Tensor,
    held: tuple[torch.Tensor, torch.Tensor],
    training: Training,
    progress: Callable[[int, int], None] | None = None,
) -> list[LearnedDenoiser]:
    """Train on rows, told each y.

    Args:
        x: (n, d) float32, every coordinate with mean 0 and variance about 1.
        ys: (m, n, k), what each of m denoisers is told.
        held: the same for rows that choose the weights.
        training: sizes and lengths; each row of a batch is told y and not told.
        progress: called with (done, total) steps, a hundred times.
    """
    d, k = x.shape[1], ys.shape[2]
    again = torch.arange(max(len(held[0]), _CHECK_ROWS)) % len(held[0])
    nets = train_side_by_side(
        Perceptrons(len(ys), d + k + 1, d, training),
        _loss,
        x,
        ys,
        (held[0][again], held[1][:, again]),
        between=max(_LEAST_BETWEEN, training.steps // _LOOKS),
        progress=progress,
    )
    return [LearnedDenoiser(net, d, k) for net in nets]


def _eps(net: Perceptrons, z: torch.Tensor, a: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
    """(m, n, d) noise in samples (n, d) at levels (n,), with y and a mark that it is told, (m, n, k + 1)."""
    alpha, sigma = _alpha_sigma(a)
    return sigma * z + alpha * net(torch.cat([z.expand(len(told), *z.shape), told], 2), a)


def _loss(net: Perceptrons, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(m,) mean squared errors over rows (n, d), told y (m, n, k) and not told it."""
    n = len(x)
    share = (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n
    even = RANGE[0] + (RANGE[1] - RANGE[0]) * share
    middle = (_MIDDLE[0] + _MIDDLE[1] * torch.logit(share)).clamp(*RANGE)
    a = torch.where(torch.rand(n, generator=generator) < 0.5, even, middle)
    noise = torch.randn(x.shape, generator=generator)
    alpha, sigma = _alpha_sigma(a)
    z = alpha * x + sigma * noise
    told = torch.cat([y, torch.ones_like(y[..., :1])], 2)
    answers = _eps(net, z.repeat(2, 1), a.repeat(2), torch.cat([told, torch.zeros_like(told)], 1))
    return (noise.repeat(2, 1) - answers).square().sum(2).mean(1)


def _alpha_sigma(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.sigmoid(a).sqrt()[:, None], torch.sigmoid(-a).sqrt()[:, None]
