"""Denoisers whose information is known: a Gaussian channel, points with noise, scale mixtures and intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import log_ndtr
from seeded import gen, normal

from probe.information import Column, Nodes, measure
from probe.information.table import NodeTable
from probe.model.eps_model import LogSnr, alpha_sigma

WIDE = (1.0, 2.0, 8.0)  # location, scale and clip of the table of oracles


class Exact:
    log_snr_range = (-60.0, 60.0)
    dtype = torch.float64
    device = torch.device("cpu")

    def __init__(self, d: int) -> None:
        self.sample_shape: tuple[int, ...] = (d,)


class Channel(Exact):
    """x ~ N(b, S), y = A x + n, n ~ N(0, diag(v)). A condition is y (m,), NaN where nothing is observed."""

    def __init__(self, s: torch.Tensor, a: torch.Tensor, v: torch.Tensor, b: torch.Tensor | None = None) -> None:
        super().__init__(len(s))
        self.s, self.a, self.v = s, a, v
        self.b = torch.zeros(len(s), dtype=torch.float64) if b is None else b

    @classmethod
    def random(cls, seed: int, information: float = 2.76957, d: int = 8, m: int = 3) -> Channel:
        """A channel of a given information: the noise is found by bisection."""
        root, a = normal(seed, d, d), normal(seed + 100, m, d) / math.sqrt(d)
        s = root @ root.T / d + 0.1 * torch.eye(d, dtype=torch.float64)
        low, high = 1e-6, 1e6
        for _ in range(200):
            mid = math.sqrt(low * high)
            channel = cls(s, a, torch.full((m,), mid, dtype=torch.float64))
            low, high = (mid, high) if channel.information() > information else (low, mid)
        return cls(s, a, torch.full((m,), low, dtype=torch.float64))

    @classmethod
    def windowed(cls, seed: int) -> Channel:
        """The channel whose bias by windows is tabulated, in a random basis: three of eight coordinates are seen.

        Its variances and signal-to-noise ratios solve four equations: 2.76957 nats, of which 0.0254, 0.0035 and 0.0005
        lie outside [-5, 7], [-7, 9] and [-10, 10].
        """
        s = torch.ones(8, dtype=torch.float64)
        s[:3] = torch.tensor([0.864900360, 49.4408087, 4.55440213], dtype=torch.float64)
        ratio = torch.tensor([3.26365628, 0.00649162288, 58.2960256], dtype=torch.float64)
        basis = torch.linalg.qr(normal(seed + 200, 8, 8)).Q
        return cls(basis @ s.diag() @ basis.T, basis[:, :3].T.contiguous(), s[:3] / ratio)

    def given(self, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(gain (d, k), covariance (d, d)) of x given the rows of y that are seen."""
        a = self.a[seen]
        gain = self.s @ a.T @ torch.linalg.inv(a @ self.s @ a.T + self.v[seen].diag())
        return gain, self.s - gain @ a @ self.s

    def information(self, rows: Sequence[int] | None = None) -> float:
        a, v = (self.a, self.v) if rows is None else (self.a[list(rows)], self.v[list(rows)])
        return 0.5 * float(torch.logdet(torch.eye(len(v), dtype=v.dtype) + (a @ self.s @ a.T) / v[:, None]))

    def draw(self, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.b + normal(seed, n, len(self.s)) @ torch.linalg.cholesky(self.s).T
        return x, x @ self.a.T + normal(seed + 1, n, len(self.v)) * self.v.sqrt()

    def columns(self, y: torch.Tensor, /, **rows: Sequence[int]) -> list[Column]:
        """ "empty", and a column for every set of rows."""
        found = [Column("empty")]
        for name, seen in rows.items():
            part = torch.full_like(y, torch.nan)
            part[:, list(seen)] = y[:, list(seen)]
            found.append(Column(name, list(part)))
        return found

    def spectra(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues of the covariance before and after y."""
        after = self.given(torch.ones(len(self.v), dtype=torch.bool))[1]
        return tuple(torch.linalg.eigvalsh(c).numpy() for c in (self.s, after))  # type: ignore[return-value]

    def gap(self, a: np.ndarray) -> np.ndarray:
        """Exact mean gap at levels."""
        before, after = (np.exp(-np.logaddexp(0, -(a[:, None] + np.log(s)))) for s in self.spectra())
        return before.sum(1) - after.sum(1)

    def within(self, lo: float, hi: float) -> float:
        """Exact information inside a window."""
        before, after = (
            (np.logaddexp(0, hi + np.log(s)) - np.logaddexp(0, lo + np.log(s))).sum() for s in self.spectra()
        )
        return 0.5 * float(before - after)

    def pointwise(self, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
        """log p(x | y) - log p(x)."""
        gain, after = self.given(torch.ones(len(self.v), dtype=torch.bool))
        normal_of = torch.distributions.MultivariateNormal
        mean = self.b + (y - self.b @ self.a.T) @ gain.T
        return (normal_of(mean, after).log_prob(x) - normal_of(self.b, self.s).log_prob(x)).numpy()

    def eps(self, z: torch.Tensor, log_snr: LogSnr, cond: Any = None) -> torch.Tensor:
        alpha, sigma = alpha_sigma(log_snr, z)
        y = torch.full((len(z), len(self.v)), torch.nan) if cond is None or cond[0] is None else torch.stack(cond)
        seen = ~y[0].isnan()
        gain, after = self.given(seen)
        mean = self.b + (y[:, seen] - self.b @ self.a[seen].T) @ gain.T
        values, vectors = torch.linalg.eigh(after)
        rotated = (z - alpha * mean) @ vectors
        return (sigma * rotated / (alpha**2 * values + sigma**2)) @ vectors.T


class Points(Exact):
    """x = point[k] + sd * noise, P(k) = w. A condition is a number of ``groups``, a set of points that are allowed."""

    def __init__(self, points: torch.Tensor, sd: float, groups: torch.Tensor, weights: torch.Tensor) -> None:
        super().__init__(points.shape[1])
        self.points, self.sd, self.groups = points, sd, groups
        self.log_weights = (weights / weights.sum()).log()

    @classmethod
    def labelled(cls, points: torch.Tensor, sd: float, weights: Sequence[float] | None = None) -> Points:
        """Each point is a group of its own: a condition is the point's number."""
        k = len(points)
        w = torch.tensor([1.0] * k if weights is None else weights, dtype=torch.float64)
        return cls(points, sd, torch.eye(k, dtype=torch.bool), w)

    def draw(self, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=gen(seed))
        return self.points[labels] + self.sd * normal(seed + 1, n, self.points.shape[1]), labels

    def eps(self, z: torch.Tensor, log_snr: LogSnr, cond: Any = None) -> torch.Tensor:
        alpha, sigma = alpha_sigma(log_snr, z)
        total = (alpha * self.sd) ** 2 + sigma**2
        off = z[:, None] - alpha[..., None] * self.points
        log_joint = self.log_weights - 0.5 * (off**2).sum(2) / total
        if cond is not None and cond[0] is not None:
            allowed = self.groups[torch.tensor(cond)]
            log_joint = log_joint.masked_fill(~allowed, -torch.inf)
        share = torch.softmax(log_joint, 1)
        return sigma * (share[..., None] * off).sum(1) / total


class Student(Exact):
    """(x, y) jointly Student-t, identity dispersion: normal given w ~ Gamma(df/2, df/2), w on a grid of quantiles."""

    def __init__(self, k: int, df: int, n: int = 300) -> None:
        from scipy.stats import gamma

        super().__init__(k)
        self.w = torch.from_numpy(gamma.ppf((np.arange(n) + 0.5) / n, df / 2, scale=2 / df))

    def draw(self, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        w = self.w[torch.randint(len(self.w), (n,), generator=gen(seed))].sqrt()[:, None]
        k = self.sample_shape[0]
        return normal(seed + 1, n, k) / w, normal(seed + 2, n, k) / w

    def eps(self, z: torch.Tensor, log_snr: LogSnr, cond: Any = None) -> torch.Tensor:
        alpha, sigma = alpha_sigma(log_snr, z)
        total = alpha**2 / self.w + sigma**2
        k = self.sample_shape[0]
        log_joint = -0.5 * ((z**2).sum(1, keepdim=True) / total + k * total.log())
        if cond is not None and cond[0] is not None:
            y = torch.stack(cond)
            log_joint = log_joint + 0.5 * (k * self.w.log() - (y**2).sum(1, keepdim=True) * self.w)
        share = torch.softmax(log_joint, 1)
        return sigma * z * (share / total).sum(1, keepdim=True)


class Intervals(Exact):
    """x uniform on an interval: [0, 1], or what y = x + U(-e, e) leaves of it. A condition is y."""

    def __init__(self, e: float) -> None:
        super().__init__(1)
        self.e = e

    def draw(self, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        u = torch.rand(2, n, 1, generator=gen(seed), dtype=torch.float64)
        return u[0], u[0] + self.e * (2 * u[1] - 1)

    def eps(self, z: torch.Tensor, log_snr: LogSnr, cond: Any = None) -> torch.Tensor:
        alpha, sigma = (v.numpy() for v in alpha_sigma(log_snr, z))
        low, high = np.zeros_like(alpha), np.ones_like(alpha)
        if cond is not None and cond[0] is not None:
            y = torch.stack(cond).numpy()
            low, high = np.maximum(y - self.e, 0.0), np.minimum(y + self.e, 1.0)
        centre, sd = z.numpy() / alpha, sigma / alpha
        a, b = (low - centre) / sd, (high - centre) / sd
        flip = a > 0  # both limits in the upper tail: mirrored, where logarithms keep their digits
        a, b = np.where(flip, -b, a), np.where(flip, -a, b)
        upper, lower = log_ndtr(b), log_ndtr(a)
        log_mass = upper + np.log(-np.expm1(np.minimum(lower - upper, -1e-300)))
        log_phi = -0.5 * math.log(2 * math.pi)
        shift = np.exp(log_phi - 0.5 * a**2 - log_mass) - np.exp(log_phi - 0.5 * b**2 - log_mass)
        mean = np.clip(centre + sd * np.where(flip, -shift, shift), low, high)
        return torch.from_numpy((z.numpy() - alpha * mean) / sigma)


def one_node(seed: int) -> Nodes:
    """One level an image, dealt over all images."""
    return Nodes.logistic(1, *WIDE, placement="dealt", seed=seed)


def channel_table(channel: Channel, n: int, seed: int, nodes: Nodes | None = None, **rows: Sequence[int]) -> NodeTable:
    """Errors of n images of a channel, with a column for every set of rows of y; all of y by default."""
    x, y = channel.draw(n, 1000 * seed + 17)
    columns = channel.columns(y, **(rows or {"y": range(len(channel.v))}))
    return measure(channel, x, columns, nodes or one_node(seed), seed=seed, batch=8192)
