"""JumpReLU sparse autoencoder (Rajamanoharan et al. 2024, arXiv 2407.14435).

    z_i = p_i where p_i > theta_i, else 0        L = sum ||x - xh||^2 / V + lambda (L0 / k - 1)^2 + alpha * L_aux

with L0 the mean number of features on for a row, so that k is the number aimed at. Neither z nor L0 has a useful
derivative by theta; both get that of a smoothed step, a rectangle of width eps around the threshold:

    dz_i / dtheta_i  = -(theta_i / eps) [ |p_i - theta_i| < eps / 2 ]
    dL0 / dtheta_i   = -(1 / (B eps))   sum_rows [ |p_i - theta_i| < eps / 2 ]

p itself gets a gradient where the feature is on, and none from L0. Only entries above theta - eps / 2 matter, so a
step stays as sparse as a code; thresholds start where k entries a row are above them. theta = exp(log_threshold) is
trained in its logarithm, which keeps it positive.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sae.architectures.autoencoder import SparseAutoencoder
from sae.config import SAEConfig
from sae.numerics.selection import entries_above
from sae.numerics.sparse import ByFeature, FlatCode, gather_sum, row_dots
from sae.numerics.step import (
    NO_AUX,
    Aux,
    Measure,
    Parameters,
    StepResult,
    add_aux,
    fired,
    row_gradients,
    sum_of_squares,
)

_SMALLEST = 1e-6  # first threshold of a dictionary whose features are silent on the rows it was initialised with


class JumpReLUSAE(SparseAutoencoder):
    """A JumpReLU dictionary.

    Attributes:
        log_threshold: (d_sae,), log theta in units of s x.
    """

    FILE_ARCHITECTURE = "jumprelu"
    HAS_THRESHOLD = True
    log_threshold: nn.Parameter

    def __init__(self, config: SAEConfig, *, seed: int = 0, metadata: dict[str, Any] | None = None) -> None:
        super().__init__(config, seed=seed, metadata=metadata)
        self.log_threshold = nn.Parameter(torch.full((config.d_sae,), _SMALLEST).log())

    def gate(self, pre: Tensor) -> Tensor:
        """p where p > theta. Its derivative by theta is zero here: the smoothed one is for training."""
        return pre * (pre > self.thresholds())

    def sparse_code(self, centred: Tensor) -> FlatCode:
        """Entries above their threshold."""
        return entries_above(**self._product(centred), floor=self.thresholds())

    def initialise(self, rows: Tensor, log_snr: Tensor | None = None) -> None:
        """Also sets every threshold to what keeps k entries a row now."""
        super().initialise(rows)
        with torch.no_grad():
            self.log_threshold.fill_(torch.tensor(max(self._first_threshold(rows), _SMALLEST)).log())

    def trained_tensors(self) -> dict[str, Tensor]:
        """The four tensors and log theta."""
        return {**super().trained_tensors(), "log_threshold": self.log_threshold.detach()}

    def thresholds(self) -> Tensor:
        """theta."""
        return self.log_threshold.detach().exp()

    def set_thresholds(self, values: Tensor) -> None:
        """Takes over theta; one of zero or less becomes the smallest positive number."""
        with torch.no_grad():
            self.log_threshold.copy_(values.clamp_min(torch.finfo(values.dtype).tiny).log())

    def step(self, centred: Tensor, measure: Measure, aux: Aux) -> tuple[StepResult, dict[str, Tensor]]:
        """Loss and gradients; see the module."""
        theta, config = self.thresholds(), self.config
        near = entries_above(**self._product(centred), floor=theta - config.bandwidth / 2, matmul=config.matmul)
        result, grad_theta = jumprelu_step(self._four(), centred, near, theta, config, measure, aux)
        return result, {"log_threshold": grad_theta * theta}


def jumprelu_step(
    parameters: Parameters,
    centred: Tensor,
    near: FlatCode,
    theta: Tensor,
    config: SAEConfig,
    measure: Measure,
    aux: Aux = NO_AUX,
) -> tuple[StepResult, Tensor]:
    """Loss and gradients of one batch, the last of theta.

    Args:
        parameters: the dictionary.
        centred: (B, d_in) rows less b_dec.
        near: entries with p > theta - eps / 2, values p.
        theta: (d_sae,) thresholds.
        config: `bandwidth` is eps, `k` the number aimed at, `sparsity` lambda.
        measure: how errors count.
        aux: the loss that revives dead features.
    """
    peers, width, k, weight = measure.peers, config.bandwidth, config.k, config.sparsity
    n_rows, d_sae = peers.total(centred.shape[0]), theta.shape[0]
    own = theta[near.indices]
    on = (near.values > own).to(centred.dtype)
    # A negative p can lie within eps / 2 of a small threshold; above it, p > theta > 0.
    code = near._replace(values=near.values * on)
    residual = centred - gather_sum(code, parameters.decoder)
    error = measure.weigh(residual)
    pull = measure.weigh(error)
    sse = sum_of_squares(error)
    unit = -2 / measure.variance
    excess = peers.sum(on.sum()) / n_rows / k - 1

    by_entry = row_dots(code, pull, parameters.decoder).mul_(unit)  # dL/dz, also where z is off
    window = ((near.values - own).abs() < width / 2).to(centred.dtype)
    by_theta = window * (by_entry * own + 2 * weight * excess / (k * n_rows)) / -width

    grad_code = by_entry * on
    by_feature = ByFeature(near, d_sae)
    grad_theta, grad_b_enc = by_feature.sum_entries(by_theta), by_feature.sum_entries(grad_code)
    gradients = Parameters(
        encoder=by_feature.sum_rows(grad_code, centred),
        decoder=by_feature.sum_rows(code.values * unit, pull),
        b_enc=grad_b_enc,
        b_dec=pull.sum(0) * unit - parameters.encoder.T @ grad_b_enc,
    )
    loss, aux_loss = sse / measure.variance + weight * excess.square() / peers.world, torch.zeros_like(sse)
    if aux.on:
        aux_loss = add_aux(parameters, gradients, centred, residual, measure, aux)
        loss = loss + aux.alpha * aux_loss
    by_row = row_gradients(measure, residual, near._replace(values=grad_code), parameters.encoder)
    result = StepResult(loss, sse, measure.variance, aux_loss, fired(code, d_sae), gradients, *by_row)
    return result, grad_theta
