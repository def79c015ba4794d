"""Matryoshka BatchTopK sparse autoencoder (Bussmann et al. 2025, arXiv 2503.17547).

The dictionary is nested: its first m_1 features must reconstruct a row by themselves, its first m_2 > m_1 too, up to
all of them. With z chosen once, as in BatchTopK, over the whole dictionary, and z[:m] its entries below m:

    xh_j = z[:m_j] W[:m_j] + b_dec          L = mean_j sum ||x - xh_j||^2 / V  +  alpha * L_aux

So early features stay general instead of being split among later ones. A feature of group j (m_(j-1) <= i < m_j) is
part of the reconstructions j, j+1, ..., n; with R_j = -2 (x - xh_j) / (n V), its gradient follows from

    S_j = R_j + ... + R_n           q = (S_j W^T) at its entries           dW = z^T S_j          dE = q^T c

and each group costs no more than its own entries. L_aux uses the residual of the whole dictionary.
"""

import torch
from torch import Tensor

from sae.architectures.batchtopk import BatchTopKSAE
from sae.numerics.sparse import ByFeature, FlatCode, gather_sum, row_dots
from sae.numerics.step import NO_AUX, Aux, Measure, Parameters, StepResult, add_aux, fired, sum_of_squares


class MatryoshkaSAE(BatchTopKSAE):
    """A nested BatchTopK dictionary; `config.nested` are the sizes m_j."""

    def step(self, centred: Tensor, measure: Measure, aux: Aux) -> tuple[StepResult, dict[str, Tensor]]:
        """Loss and gradients; see the module."""
        return nested_step(self._four(), centred, self.choose(centred), self.config.nested, measure, aux), {}


def nested_step(
    parameters: Parameters,
    centred: Tensor,
    code: FlatCode,
    sizes: tuple[int, ...],
    measure: Measure,
    aux: Aux = NO_AUX,
) -> StepResult:
    """Loss and gradients of one batch.

    Args:
        parameters: the dictionary.
        centred: (B, d_in) rows less b_dec.
        code: z, entries >= 0.
        sizes: m_1 < m_2 < ... < m_n = d_sae.
        measure: how errors count.
        aux: the loss that revives dead features.

    Memory: n arrays of (B, d_in).
    """
    d_sae = parameters.encoder.shape[0]
    bounds = list(zip((0, *sizes[:-1]), sizes, strict=True))
    groups = [code.keep((code.indices >= low) & (code.indices < high)) for low, high in bounds]
    residuals, residual = [], centred
    for group in groups:
        residual = residual - gather_sum(group, parameters.decoder)
        residuals.append(residual)
    errors = [measure.weigh(r) for r in residuals]
    pulls = [measure.weigh(e) for e in errors]
    sse = [sum_of_squares(e) for e in errors]
    unit = -2 / (len(sizes) * measure.variance)

    gradients = Parameters(*(torch.zeros_like(t) for t in parameters.tensors()))
    suffix = torch.zeros_like(centred)
    through = torch.zeros_like(centred)  # dL/dc by way of the code; only where weights are given
    for (low, high), group, after in zip(reversed(bounds), reversed(groups), reversed(pulls), strict=True):
        suffix += after  # S_j up to the factor
        own = slice(low, high)
        shifted = group._replace(indices=group.indices - low)
        grad_code = row_dots(shifted, suffix, parameters.decoder[own]).mul_(unit).mul_(group.values > 0)
        by_feature = ByFeature(shifted, high - low)
        gradients.encoder[own] = by_feature.sum_rows(grad_code, centred)
        gradients.decoder[own] = by_feature.sum_rows(group.values * unit, suffix)
        gradients.b_enc[own] = by_feature.sum_entries(grad_code)
        if measure.weight is not None:
            through += gather_sum(shifted._replace(values=grad_code), parameters.encoder[own])
    gradients.b_dec.copy_(suffix.sum(0) * unit - parameters.encoder.T @ gradients.b_enc)

    loss = torch.stack(sse).mean() / measure.variance
    aux_loss = torch.zeros_like(loss)
    if aux.on:
        aux_loss = add_aux(parameters, gradients, centred, residual, measure, aux)
        loss = loss + aux.alpha * aux_loss
    by_row: tuple[Tensor | None, Tensor | None] = (None, None)
    if measure.weight is not None:
        by_weight = sum(e * r for e, r in zip(errors, residuals, strict=True)) * -unit
        by_row = through - suffix * unit, by_weight
    return StepResult(loss, sse[-1], measure.variance, aux_loss, fired(code, d_sae), gradients, *by_row)
