"""Several small networks of one shape, trained side by side on the same rows and noise.

    F: h <- silu((W h + b) (1 + s(a)) + t(a))      the level a scales and shifts every hidden unit (FiLM, Perez et al.
                                                   2018); s and t are sums of bumps over the levels

Weights have a leading axis, one network an entry, so that a second network that is told something else comes at less
than the price of a second training. The weights that count are averages along training (Polyak and Juditsky 1992), and
of those the ones with the least loss on rows that are neither trained on nor measured: with few rows a network knows
them by heart before training is over.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from probe.errors import InvalidRequest

RANGE = (-8.0, 10.0)
"""Log SNR between which there are bumps."""
_BUMPS = 12  # each as wide as their distance
_AVERAGE = 0.995


@dataclass(frozen=True)
class Training:
    """How networks are trained.

    Attributes:
        width, depth: of the hidden layers.
        steps, batch_size: of Adam.
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


class Perceptrons(nn.Module):
    """m perceptrons of one shape.

    Args:
        m: how many: the leading axis of the weights.
        d_in, d_out: width of rows, and of the answers to them.
        training: the hidden layers, and the seed of the weights.
    """

    def __init__(self, m: int, d_in: int, d_out: int, training: Training) -> None:
        super().__init__()
        self.settings = training
        generator = torch.Generator().manual_seed(training.seed)
        hidden = [training.width] * training.depth
        sizes = list(zip([d_in, *hidden], [*hidden, d_out], strict=True))

        def drawn(rows: int, columns: int, fan_in: int) -> nn.Parameter:  # as torch's own linear layers begin
            values = torch.rand(m, rows, columns, generator=generator)
            return nn.Parameter((2.0 * values - 1.0) / math.sqrt(fan_in))

        self.weights = nn.ParameterList([drawn(a, b, a) for a, b in sizes])
        self.biases = nn.ParameterList([drawn(1, b, a) for a, b in sizes])
        self.film = drawn(_BUMPS, 2 * training.depth * training.width, _BUMPS)

    def forward(self, h: torch.Tensor, a: torch.Tensor | None = None) -> torch.Tensor:
        """(m, n, d_out) for inputs (m, n, d_in) at levels (n,), or at none."""
        last = len(self.weights) - 1
        film = self._film(a) if a is not None else ()
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(b, h, w)
            if i < last:
                h = nn.functional.silu(h * (1.0 + film[2 * i]) + film[2 * i + 1] if film else h)
        return h

    def _film(self, a: torch.Tensor) -> tuple[torch.Tensor, ...]:
        centre = torch.linspace(*RANGE, _BUMPS)
        bumps = torch.exp(-0.5 * ((a[:, None] - centre) / (centre[1] - centre[0])) ** 2)
        return (bumps @ self.film).chunk(2 * (len(self.weights) - 1), 2)


Loss = Callable[[Perceptrons, torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]
"""(m,) of m networks on rows (n, ...), told (m, n, k)."""


def train_side_by_side(
    net: Perceptrons,
    loss: Loss,
    x: torch.Tensor,
    ys: torch.Tensor,
    held: tuple[torch.Tensor, torch.Tensor],
    *,
    between: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Perceptrons]:
    """Train on rows and keep the weights that do best on others, for each y.

    A step costs about 6 m x rows of the loss x parameters floating point operations.

    Args:
        net: m networks, as they begin; they are changed.
        loss: of all networks on some rows, by chance that a generator gives.
        x: (n, ...).
        ys: (m, n, k), what each of m networks is told.
        held: the same for rows that choose the weights.
        between: steps from one look at ``held`` to the next.
        progress: called with (done, total) steps, a hundred times.

    Returns:
        m perceptrons with a leading axis of one, not to be trained further.
    """
    training = net.settings
    generator = torch.Generator().manual_seed(training.seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=training.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / training.steps))
    mean = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(_AVERAGE))
    average = mean.module
    assert isinstance(average, Perceptrons)
    best, kept = torch.full((len(ys),), math.inf), [p.detach().clone() for p in net.parameters()]
    tell = max(1, training.steps // 100)
    for step in range(1, training.steps + 1):
        at = torch.randint(len(x), (training.batch_size,), generator=generator)
        optimizer.zero_grad()
        loss(net, x[at], ys[:, at], generator).sum().backward()
        optimizer.step()
        schedule.step()
        mean.update_parameters(net)
        if step % between == 0 or step == training.steps:
            with torch.no_grad():  # always with the same noise
                found = loss(average, *held, torch.Generator().manual_seed(training.seed + 1))
            for old, new in zip(kept, average.parameters(), strict=True):
                old[found < best] = new.detach()[found < best]
            best = torch.minimum(best, found)
        if progress is not None and (step % tell == 0 or step == training.steps):
            progress(step, training.steps)
    return [_part(net, kept, i) for i in range(len(ys))]


def _part(net: Perceptrons, kept: list[torch.Tensor], i: int) -> Perceptrons:
    """The i-th network by itself."""
    own = Perceptrons(1, net.weights[0].shape[1], net.weights[-1].shape[2], net.settings)
    with torch.no_grad():
        for mine, values in zip(own.parameters(), kept, strict=True):
            mine.copy_(values[i : i + 1])
    return own.requires_grad_(False)


def _rate(done: float) -> float:
    return min(1.0, 20.0 * done + 0.01) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
