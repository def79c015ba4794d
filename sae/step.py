"""One training step of a TopK sparse autoencoder, with its gradient written out by hand.

Symbols, for a batch x (B, d) already in the dictionary's units (Gao et al. 2024, arXiv 2406.04093):

    c    = x - b_dec                        p  = c E^T + b_enc                E = W_enc^T, one feature a row
    z    = ReLU(TopK_k(p))                  xh = z W + b_dec                  W = W_dec, unit rows
    V    = sum ||x - mean(x)||^2            L  = sum ||x - xh||^2 / V  +  alpha * L_aux

AuxK revives dead features. Over the dead columns only, with e = stopgrad(x - xh) and no b_dec anywhere:

    za   = ReLU(TopK_ka(c E_dead^T + b_enc,dead))      L_aux = s * sum ||za W_dead - e||^2 / V,      s =
    min(n_dead / ka, 1)

so gradient descent moves dead features *towards* what the live ones leave unexplained. Three published
implementations have the sign, the detach or the bias of this term wrong; `tests/test_sae_step.py` checks each
against an independent autograd model.

The gradient, with g = dL/dxh = 2 (xh - x) / V and q = (g W^T) at z's entries, zero where z = 0:

    dW = z^T g        dE = q^T c        db_enc = sum_rows q        db_dec = sum_rows g - E^T db_enc

q has k entries a row, so no (B, d_sae) gradient exists; the pre-bias gradient is a matrix-vector product
because sum_rows(q E) = E^T-weighted column sums of q. The AuxK part works on (rows of a chunk, n_dead)
blocks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .sparse import ByFeature, GatherSum, TopKCode, chunk_rows_for, encode_rows, row_chunks, top_k


@dataclass(frozen=True)
class TopKParameters:
    """The four tensors of a TopK SAE, or their gradients. One feature a row in both matrices."""

    encoder: Tensor  # (d_sae, d_in): W_enc transposed
    decoder: Tensor  # (d_sae, d_in): W_dec
    b_enc: Tensor  # (d_sae,)
    b_dec: Tensor  # (d_in,)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four tensors in declared order."""
        return (self.encoder, self.decoder, self.b_enc, self.b_dec)


@dataclass(frozen=True)
class StepResult:
    """What one evaluation of the loss gives."""

    loss: Tensor  # (): L
    sse: Tensor  # (): sum ||x - xh||^2
    variance: Tensor  # (): V
    aux_loss: Tensor  # (): L_aux, 0 without dead features
    code: TopKCode  # (B, k)
    gradients: TopKParameters


def topk_step(
    parameters: TopKParameters,
    x: Tensor,
    k: int,
    *,
    dead: Tensor | None = None,
    n_aux: int = 0,
    aux_alpha: float = 0.0,
    buffer: Tensor | None = None,
) -> StepResult:
    """Loss and gradients of one batch.

    Args:
        parameters: the dictionary.
        x: (B, d_in) rows in the dictionary's units.
        k: features kept for a row.
        dead: (n_dead,) int64 indices of dead features; None or empty turns AuxK off for this batch.
        n_aux: dead features used for a row, at most (ka above is min(n_aux, n_dead), s uses n_aux).
        aux_alpha: weight alpha of AuxK.
        buffer: (rows, d_sae) scratch space, see `encode_rows`.

    Cost: one dense product (the encoder's) and four k-sparse ones. Memory: a few (B, d_in) and (d_sae, d_in)
    arrays.
    """
    centred = x - parameters.b_dec
    code = encode_rows(centred, parameters.encoder, parameters.b_enc, k, buffer=buffer)

    reconstruction = GatherSum(code, parameters.decoder)
    residual = centred - reconstruction.output  # x - xh: b_dec cancels
    sse = residual.square().sum()
    spread = x - x.mean(0)
    # A constant batch has no variance to explain; the floor keeps its gradient finite.
    variance = spread.square().sum().clamp_min(torch.finfo(x.dtype).tiny)

    grad_output = residual * (-2 / variance)
    grad_code = reconstruction.code_gradient(grad_output)
    grad_code.mul_(code.values > 0)  # ReLU

    by_feature = ByFeature(code.indices, parameters.encoder.shape[0])
    grad_b_enc = torch.zeros_like(parameters.b_enc).index_add_(0, code.indices.reshape(-1), grad_code.reshape(-1))
    gradients = TopKParameters(
        encoder=by_feature.sum_rows(grad_code, centred),
        decoder=by_feature.sum_rows(code.values, grad_output),
        b_enc=grad_b_enc,
        b_dec=grad_output.sum(0) - parameters.encoder.T @ grad_b_enc,
    )
    aux_loss = torch.zeros_like(sse)
    if dead is not None and dead.numel() > 0 and n_aux > 0 and aux_alpha > 0:
        aux_loss = _add_aux(parameters, gradients, centred, residual, variance, dead, n_aux, aux_alpha)
    return StepResult(sse / variance + aux_alpha * aux_loss, sse, variance, aux_loss, code, gradients)


def _add_aux(
    parameters: TopKParameters,
    gradients: TopKParameters,
    centred: Tensor,
    residual: Tensor,
    variance: Tensor,
    dead: Tensor,
    n_aux: int,
    aux_alpha: float,
) -> Tensor:
    """Adds alpha * dL_aux to the dead rows of `gradients`, in place, and returns L_aux.

    k_aux of n_dead is rarely sparse, so each chunk of rows uses dense products over the dead columns.
    """
    n_dead = dead.numel()
    keep = min(n_aux, n_dead)
    weight = min(n_dead / n_aux, 1.0) / variance
    encoder, decoder, bias = parameters.encoder[dead], parameters.decoder[dead], parameters.b_enc[dead]
    grad_encoder, grad_decoder = torch.zeros_like(encoder), torch.zeros_like(decoder)
    grad_bias = torch.zeros_like(bias)
    total = torch.zeros_like(variance)
    for rows in row_chunks(centred.shape[0], chunk_rows_for(n_dead)):
        c = centred[rows]
        values, indices = top_k(torch.addmm(bias, c, encoder.T), keep)
        code = torch.zeros(c.shape[0], n_dead, dtype=c.dtype, device=c.device).scatter_(1, indices, values.relu_())
        error = code @ decoder - residual[rows]
        total += error.square().sum()
        grad_error = error * (2 * aux_alpha * weight)
        grad_pre = (grad_error @ decoder.T).mul_(code > 0)
        grad_decoder.addmm_(code.T, grad_error)
        grad_encoder.addmm_(grad_pre.T, c)
        grad_bias += grad_pre.sum(0)
    gradients.encoder.index_add_(0, dead, grad_encoder)
    gradients.decoder.index_add_(0, dead, grad_decoder)
    gradients.b_enc.index_add_(0, dead, grad_bias)
    return weight * total


def remove_parallel(gradient: Tensor, decoder: Tensor) -> None:
    """grad_i <- grad_i - <grad_i, d_i> d_i, in place: with unit rows, a gradient along a row only changes its
    length.
    """
    gradient.sub_((gradient * decoder).sum(1, keepdim=True) * decoder)


def normalise_rows(decoder: Tensor) -> None:
    """d_i <- d_i / ||d_i||, in place; a row of zeros is left as it is."""
    decoder.div_(decoder.norm(dim=1, keepdim=True).clamp_min(torch.finfo(decoder.dtype).tiny))
