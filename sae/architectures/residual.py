"""One dictionary of what the step before does not predict (residualized temporal autoencoders, Yeung et al. 2026,
arXiv 2605.27813).

With x_t the row of a sample, branch and token at step t, and A_t, c_t fitted once by ridge regression:

    r_t = x_t - x_(t-1) A_t - c_t        r_0 = x_0 - c_0        xh_t = dec(enc(r_t)) + x_(t-1) A_t + c_t

The predictor reads the activation of the step before, not its reconstruction, so errors do not add up over steps and
any step can be coded by itself. Features are of r, and each is on at the steps where something new happens; the paper
codes whole trajectories [r_0, r_1, ...] at once, this dictionary one step at a time, so that it can stand inside a
running generation. Explained variance is measured on x, as for every other dictionary: the predictor's part counts,
and it uses the true x_(t-1), which other dictionaries do not have.

Fit: with S_pp and S_pt the covariances of x_(t-1) with itself and with x_t, and lambda = 1e-3 tr(S_pp) / d,

    A_t = (S_pp + lambda 1)^-1 S_pt        c_t = E x_t - E x_(t-1) A_t
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sae.architectures.inputs import Moments, Residual
from sae.architectures.timed import TimedSAE
from sae.config import SAEConfig
from sae.contract import Loss, SparseDictionary
from sae.errors import ConfigError

RIDGE = 1e-3


class Predictor(NamedTuple):
    """Attributes: transition: (T, d, d), A_t, zero at the first step. offset: (T, d), c_t."""

    transition: Tensor
    offset: Tensor


class ResidualSAE(TimedSAE):
    """One core behind a linear predictor for each step.

    In training a row is (2 d,): x_t, then x_(t-1); at the first step the second half does not matter.
    """

    READS_PREVIOUS = True
    transition: Tensor
    offset: Tensor

    def make_own(self, seed: int) -> None:
        n, d = len(self.levels), self.config.d_in
        self.register_buffer("transition", torch.zeros(n, d, d))
        self.register_buffer("offset", torch.zeros(n, d))

    def predict(self, level: int, previous: Tensor | None) -> Tensor:
        """(..., d) what step `level` is expected to be after rows `previous`."""
        if level == 0:
            return self.offset[0]
        if previous is None:
            raise ConfigError(
                f"A residual dictionary was asked for step {level} of its levels without the rows of the step before. "
                "Give `previous`; in a generation, edit every step up to the last one that is edited."
            )
        return previous.to(self.offset) @ self.transition[level] + self.offset[level]

    def at(self, log_snr: float, previous: Tensor | None = None) -> SparseDictionary:
        """The core behind the prediction for these rows; it encodes and decodes rows of the shape of `previous`."""
        core = self.cores[0]
        with torch.no_grad():
            prediction = self.predict(int(self.level_of(log_snr)), previous)
        return core.through(Residual(core.input, prediction))

    def set_predictor(self, predictor: Predictor) -> None:
        """Takes over A and c; before `initialise`."""
        self.transition.copy_(predictor.transition)
        self.offset.copy_(predictor.offset)

    def residual(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """(n, d) residuals of rows (n, 2 d)."""
        now, before = x.to(self.offset).chunk(2, dim=-1)
        level = self.level_of(log_snr)
        r = now - self.offset[level]
        for t in level.unique().tolist():
            if t:
                rows = level == t
                r[rows] -= before[rows] @ self.transition[t]
        return r

    def initialise(self, rows: Tensor, log_snr: Tensor) -> None:
        """As for the architecture, from residuals."""
        self.cores[0].initialise(self.residual(rows, log_snr))

    def loss(
        self, x: Tensor, dead: Tensor | None = None, log_snr: Tensor | None = None
    ) -> tuple[Loss, dict[str, Tensor]]:
        """The architecture's, of the residuals."""
        assert log_snr is not None
        result, gradients = self.cores[0].loss(self.residual(x, log_snr), dead)
        return result, {f"0.{name}": gradient for name, gradient in gradients.items()}

    def fixed_tensors(self) -> dict[str, Tensor]:
        """The core's and the predictor."""
        return super().fixed_tensors() | {"transition": self.transition, "offset": self.offset}

    def folded(self) -> "ResidualSAE":
        """A copy with a folded core."""
        copy = super().folded().to(self.offset)
        copy.set_predictor(Predictor(self.transition, self.offset))
        return copy

    @classmethod
    def own_shapes(cls, config: SAEConfig) -> dict[str, tuple[int, ...]]:
        """The predictor's."""
        n, d = len(config.levels or ()), config.d_in
        return {"transition": (n, d, d), "offset": (n, d)}

    def file_tensors(self) -> dict[str, Tensor]:
        """The core's and the predictor."""
        return super().file_tensors() | {"transition": self.transition, "offset": self.offset}

    def load_file_tensors(self, tensors: dict[str, Tensor]) -> None:
        """As for an architecture."""
        super().load_file_tensors(tensors)
        self.set_predictor(Predictor(tensors["transition"], tensors["offset"]))


class TrajectoryMoments:
    """Streaming sums over trajectories, from which the predictor and the moments of its residuals follow."""

    def __init__(self, n_steps: int, d: int) -> None:
        self._n = 0
        self._sum = torch.zeros(n_steps, d, dtype=torch.float64)
        self._own = torch.zeros(n_steps, d, d, dtype=torch.float64)
        self._with_next = torch.zeros(max(0, n_steps - 1), d, d, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Adds (n, T, d) trajectories."""
        x = x.double()
        self._n += len(x)
        self._sum += x.sum(0)
        self._own += torch.einsum("nti,ntj->tij", x, x)
        self._with_next += torch.einsum("nti,ntj->tij", x[:, :-1], x[:, 1:])

    def fit(self) -> tuple[Predictor, Moments]:
        """The predictor, and mean and covariance of the residuals of all steps together."""
        mean = self._sum / self._n
        own = self._own / self._n - mean[:, :, None] * mean[:, None, :]
        cross = self._with_next / self._n - mean[:-1, :, None] * mean[1:, None, :]
        d = mean.shape[1]
        transition, offset = torch.zeros_like(own), mean.clone()
        left: list[Tensor] = [own[0]]
        for t in range(1, len(mean)):
            before = own[t - 1]
            ridge = RIDGE * before.diagonal().mean() * torch.eye(d, dtype=before.dtype)
            a = torch.linalg.solve(before + ridge, cross[t - 1])
            transition[t], offset[t] = a, mean[t] - mean[t - 1] @ a
            half = a.T @ cross[t - 1]
            left.append(own[t] - half - half.T + a.T @ before @ a)
        return Predictor(transition, offset), Moments(torch.zeros(d, dtype=torch.float64), torch.stack(left).mean(0))
