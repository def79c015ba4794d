"""ReLU sparse autoencoder with an L1 penalty: the plain baseline (Bricken et al. 2023).

    z = ReLU(p)                L = sum ||x - xh||^2 / V + lambda * sum z / (B sqrt(d_in))

Decoder rows have unit length, so shrinking z and growing W cannot cheat the penalty; rows have length sqrt(d_in) on
average, so lambda has no unit. At the start half of all entries are on, and the penalty thins them slowly: sparse
products would not pay, so each chunk of rows uses dense ones, and still no (B, d_sae) array exists. AuxK has nothing
to do here: a feature that is off everywhere has no positive entry to learn from.
"""

import math

import torch
from torch import Tensor

from sae.architectures.autoencoder import SparseAutoencoder
from sae.numerics.product import pre_activations
from sae.numerics.selection import entries_above
from sae.numerics.sparse import FlatCode
from sae.numerics.step import Aux, Measure, Parameters, StepResult, sum_of_squares


class ReluSAE(SparseAutoencoder):
    """A ReLU dictionary; `config.sparsity` is lambda, `config.k` is not used."""

    FILE_ARCHITECTURE = "standard"

    def gate(self, pre: Tensor) -> Tensor:
        """ReLU(p)."""
        return pre.relu()

    def sparse_code(self, centred: Tensor) -> FlatCode:
        """Positive entries."""
        return entries_above(**self._product(centred), floor=centred.new_zeros(()))

    def step(self, centred: Tensor, measure: Measure, aux: Aux) -> tuple[StepResult, dict[str, Tensor]]:
        """Loss and gradients; see the module. Errors always count alike: weights would let a small code cost less."""
        assert measure.weight is None
        return relu_step(self._four(), centred, self.config.sparsity, measure, self._scratch(centred.shape[0])), {}


def relu_step(
    parameters: Parameters, centred: Tensor, weight: float, measure: Measure, buffer: Tensor | None = None
) -> StepResult:
    """Loss and gradients of one batch.

    Args:
        parameters: the dictionary.
        centred: (B, d_in) rows less b_dec.
        weight: lambda.
        measure: the variance of the batch, and the processes that share it.
        buffer: (rows, d_sae) scratch space; its first axis sets the chunk.

    Cost: five dense products.
    """
    encoder, decoder = parameters.encoder, parameters.decoder
    d_sae, d_in = encoder.shape
    gradients = Parameters(*(torch.zeros_like(t) for t in parameters.tensors()))
    variance = measure.variance
    unit = -2 / variance
    penalty = weight / (measure.peers.total(centred.shape[0]) * math.sqrt(d_in))
    sse, total = torch.zeros_like(variance), torch.zeros_like(variance)
    fired = torch.zeros(d_sae, dtype=torch.int64, device=centred.device)
    for rows, pre in pre_activations(centred, encoder, parameters.b_enc, buffer=buffer):
        c, z = centred[rows], pre.relu_()
        on = z > 0
        residual = c - z @ decoder
        sse += sum_of_squares(residual)
        total += z.sum()
        fired += on.sum(0)
        grad_output = residual.mul_(unit)
        grad_pre = (grad_output @ decoder.T).add_(penalty).mul_(on)
        gradients.decoder.addmm_(z.T, grad_output)
        gradients.encoder.addmm_(grad_pre.T, c)
        gradients.b_enc.add_(grad_pre.sum(0))
        gradients.b_dec.add_(grad_output.sum(0))
    gradients.b_dec.sub_(encoder.T @ gradients.b_enc)
    return StepResult(sse / variance + penalty * total, sse, variance, torch.zeros_like(sse), fired, gradients)
