"""Small denoisers of rows, trained for them with and without y: an ``EpsModel`` as any other.

For numbers that no diffusion model was trained on, such as the rows of a site in a store. One network learns both sides
of I(x; y), as in MINDE (Franzese et al. 2024, https://arxiv.org/abs/2310.09031) and MMG (Yu et al. 2025):

    eps(z, a, y) = sigma z + alpha F(z, a, y)      F = 0 is exact for x ~ N(0, 1): only what differs is learned
    loss = E |n - eps|^2                           each noisy row twice, once told y and once not
    F: h <- silu((W h + b) (1 + s(a)) + t(a))      the level scales and shifts every hidden unit (FiLM, Perez et al.
                                                   2018); s and t are sums of bumps over the levels

Half of the levels lie evenly over the range, half around the middle, where rows of variance 1 have most to tell. The
weights that count are averages along training (Polyak and Juditsky 1992), and of those the ones with the least loss on
rows that are neither trained on nor measured: with few rows a network knows them by heart before training is over.

Several denoisers of the same rows, each told another y, are trained side by side on the same noise, as one network with
a leading axis: the null comes at less than the price of a second training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from probe.errors import InvalidRequest
from probe.model.eps_model import LogSnr, check_samples, levels

RANGE = (-8.0, 10.0)
_BUMPS = 12  # over the levels, each as wide as their distance
_MIDDLE = (0.5, 1.5)  # location and scale of the logistic that half of the levels follow
_AVERAGE = 0.995
_CHECKS, _LEAST_BETWEEN = 20, 100  # looks at the loss of rows that are not trained on, and steps between two
_CHECK_ROWS = 4096


@dataclass(frozen=True)
class Training:
    """How denoisers are trained.

    Attributes:
        width, depth: of the hidden layers.
        steps, batch_size: of Adam; rows of a batch, each of which is told y and not told.
        learning_rate: the highest; it rises for a twentieth of the steps and falls to zero along a cosine.
        seed: of weights, noise and levels.
    """

    width: int = 64
    depth: int = 2
    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.steps, self.batch_size) < 1 or not self.learning_rate > 0:
            raise InvalidRequest(f"{self}: expected sizes of at least 1 and a rate above 0.")


class _Perceptrons(nn.Module):
    """m perceptrons of one shape; weights have a leading axis m."""

    def __init__(self, m: int, d_in: int, d_out: int, training: Training) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(training.seed)
        hidden = [training.width] * training.depth
        sizes = list(zip([d_in, *hidden], [*hidden, d_out], strict=True))

        def drawn(rows: int, columns: int, fan_in: int) -> nn.Parameter:  # as torch's own linear layers begin
            values = torch.rand(m, rows, columns, generator=generator)
            return nn.Parameter((2.0 * values - 1.0) / math.sqrt(fan_in))

        self.weights = nn.ParameterList([drawn(a, b, a) for a, b in sizes])
        self.biases = nn.ParameterList([drawn(1, b, a) for a, b in sizes])
        self.film = drawn(_BUMPS, 2 * training.depth * training.width, _BUMPS)

    def forward(self, h: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """(m, n, d_out) for inputs (m, n, d_in) at levels (n,)."""
        centre = torch.linspace(*RANGE, _BUMPS)
        bumps = torch.exp(-0.5 * ((a[:, None] - centre) / (centre[1] - centre[0])) ** 2)
        film = (bumps @ self.film).chunk(2 * (len(self.weights) - 1), 2)
        last = len(self.weights) - 1
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(b, h, w)
            if i < last:
                h = nn.functional.silu(h * (1.0 + film[2 * i]) + film[2 * i + 1])
        return h

    def eps(self, z: torch.Tensor, a: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """(m, n, d) noise in samples (n, d) at levels (n,), with y and a mark that it is told, (m, n, k + 1)."""
        alpha, sigma = _alpha_sigma(a)
        return sigma * z + alpha * self(torch.cat([z.expand(len(told), *z.shape), told], 2), a)

    def loss(self, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
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
        answers = self.eps(z.repeat(2, 1), a.repeat(2), torch.cat([told, torch.zeros_like(told)], 1))
        return (noise.repeat(2, 1) - answers).square().sum(2).mean(1)


class LearnedDenoiser:
    """A trained perceptron as an ``EpsModel``; a condition is a row of y, (k,) float32. CPU, float32.

    Attributes:
        k: coordinates of y.
    """

    log_snr_range = RANGE
    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, net: _Perceptrons, d: int, k: int) -> None:
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
            return self._net.eps(z.float(), levels(log_snr, len(z)).float(), told[None])[0].to(z.dtype)


def train_denoisers(
    x: torch.Tensor,
    ys: torch.Tensor,
    held: tuple[torch.Tensor, torch.Tensor],
    training: Training,
    progress: Callable[[int, int], None] | None = None,
) -> list[LearnedDenoiser]:
    """Train on rows and keep the weights that do best on others, for each y.

    Args:
        x: (n, d) float32, every coordinate with mean 0 and variance about 1.
        ys: (m, n, k), what each of m denoisers is told.
        held: the same for rows that choose the weights.
        training: sizes and lengths. A step costs about 12 m x batch_size x parameters floating point operations.
        progress: called with (done, total) steps, a hundred times.
    """
    generator = torch.Generator().manual_seed(training.seed)
    shape = (len(ys), x.shape[1] + ys.shape[2] + 1, x.shape[1], training)
    net = _Perceptrons(*shape)
    optimizer = torch.optim.Adam(net.parameters(), lr=training.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / training.steps))
    mean = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(_AVERAGE))
    average = mean.module
    assert isinstance(average, _Perceptrons)
    best, kept = torch.full((len(ys),), math.inf), [p.detach().clone() for p in net.parameters()]
    every, tell = max(_LEAST_BETWEEN, training.steps // _CHECKS), max(1, training.steps // 100)
    for step in range(1, training.steps + 1):
        at = torch.randint(len(x), (training.batch_size,), generator=generator)
        optimizer.zero_grad()
        net.loss(x[at], ys[:, at], generator).sum().backward()
        optimizer.step()
        schedule.step()
        mean.update_parameters(net)
        if step % every == 0 or step == training.steps:
            found = _held_loss(average, *held, training.seed)
            for old, new in zip(kept, average.parameters(), strict=True):
                old[found < best] = new.detach()[found < best]
            best = torch.minimum(best, found)
        if progress is not None and (step % tell == 0 or step == training.steps):
            progress(step, training.steps)
    return [_part(shape, kept, i) for i in range(len(ys))]


def training_seconds(d: int, k: int, training: Training, m: int = 2) -> float:
    """Seconds that training m denoisers will take, by a trial of a hundredth of it (d and k: widths of x and y)."""
    trial = replace(training, steps=max(5, training.steps // 100))
    x, ys = torch.randn(256, d), torch.randn(m, 256, k)
    train_denoisers(x, ys, (x, ys), replace(trial, steps=2))  # the first calls are slow
    start = time.perf_counter()
    train_denoisers(x, ys, (x, ys), trial)
    return (time.perf_counter() - start) * training.steps / trial.steps


@torch.no_grad()
def _held_loss(net: _Perceptrons, x: torch.Tensor, ys: torch.Tensor, seed: int) -> torch.Tensor:
    """(m,) losses on rows that are not trained on, always with the same noise."""
    at = torch.arange(max(len(x), _CHECK_ROWS)) % len(x)
    return net.loss(x[at], ys[:, at], torch.Generator().manual_seed(seed + 1))


def _part(shape: tuple[int, int, int, Training], kept: Sequence[torch.Tensor], i: int) -> LearnedDenoiser:
    """The i-th denoiser by itself."""
    net = _Perceptrons(1, *shape[1:])
    with torch.no_grad():
        for own, values in zip(net.parameters(), kept, strict=True):
            own.copy_(values[i : i + 1])
    d = shape[2]
    return LearnedDenoiser(net.requires_grad_(False), d, shape[1] - d - 1)


def _alpha_sigma(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.sigmoid(a).sqrt()[:, None], torch.sigmoid(-a).sqrt()[:, None]


def _rate(done: float) -> float:
    return min(1.0, 20.0 * done + 0.01) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
