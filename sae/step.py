"""One training step of a sparse autoencoder, with its gradient written out by hand.

Symbols, for a batch x (B, d) already in the dictionary's units (Gao et al. 2024, arXiv 2406.04093):

    c    = x - b_dec                        p  = c E^T + b_enc                E = W_enc^T, one feature a row
    z    = p where chosen, else 0           xh = z W + b_dec                  W = W_dec, unit rows
    V    = sum ||x - mean(x)||^2            L  = sum ||x - xh||^2 / V  +  alpha * L_aux

Which entries are chosen is the architecture (selection.py). AuxK revives dead features. Over the dead columns only,
with e = stopgrad(x - xh) and no b_dec anywhere:

    za   = ReLU(TopK_ka(c E_dead^T + b_enc,dead))      L_aux = s * sum ||za W_dead - e||^2 / V,      s =
    min(n_dead / ka, 1)

so gradient descent moves dead features *towards* what the live ones leave unexplained. Three published
implementations have the sign, the detach or the bias of this term wrong; `tests/test_sae_step.py` checks each
against an independent autograd model, `tests/test_sae_auxk.py` whole runs.

The gradient, with g = dL/dxh = 2 (xh - x) / V and q = (g W^T) at z's entries, zero where z = 0:

    dW = z^T g        dE = q^T c        db_enc = sum_rows q        db_dec = sum_rows g - E^T db_enc

q has as many entries as z, so no (B, d_sae) gradient exists; the pre-bias gradient is a matrix-vector product
because sum_rows(q E) = E^T-weighted column sums of q. The factor -2 / V of g = -2 (x - xh) / V goes into the few
entries instead of the rows. The AuxK part works on (rows of a chunk, n_dead) blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .peers import ALONE, Peers, among_largest
from .selection import chunk_rows_for, row_chunks, top_k
from .sparse import ByFeature, FlatCode, gather_sum, row_dots


@dataclass(frozen=True)
class Parameters:
    """The four tensors of a sparse autoencoder, or their gradients. One feature a row in both matrices."""

    encoder: Tensor  # (d_sae, d_in): W_enc transposed
    decoder: Tensor  # (d_sae, d_in): W_dec
    b_enc: Tensor  # (d_sae,)
    b_dec: Tensor  # (d_in,)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four tensors in declared order."""
        return (self.encoder, self.decoder, self.b_enc, self.b_dec)


@dataclass(frozen=True)
class StepResult:
    """What one evaluation of the loss gives. Where several processes share the batch, all but the variance are this
    process's share.
    """

    loss: Tensor  # (): L
    sse: Tensor  # (): sum ||x - xh||^2
    variance: Tensor  # (): V
    aux_loss: Tensor  # (): L_aux, 0 without dead features
    fired: Tensor  # (d_sae,) int64: rows in which each feature was on
    gradients: Parameters


@dataclass(frozen=True)
class Aux:
    """The loss that revives dead features."""

    dead: Tensor | None = None  # (n_dead,) int64 indices; None or empty turns it off for this batch
    n_aux: int = 0  # dead features used for a row, at most (ka above is min(n_aux, n_dead), s uses n_aux)
    alpha: float = 0.0  # its weight
    shards: Peers = ALONE  # the processes that hold the other features
    n_dead: int = field(init=False)  # dead features of all processes

    def __post_init__(self) -> None:
        here = 0 if self.dead is None else self.dead.numel()
        if self.dead is not None and self.shards.world > 1:
            here = int(self.shards.sum(self.dead.new_tensor(here)))
        object.__setattr__(self, "n_dead", here)

    @property
    def on(self) -> bool:
        """True if it adds anything."""
        return self.n_aux > 0 and self.alpha > 0 and self.n_dead > 0


def sparse_step(
    parameters: Parameters,
    centred: Tensor,
    choose: Callable[[Tensor], FlatCode],
    aux: Aux | None = None,
    peers: Peers = ALONE,
    shards: Peers = ALONE,
) -> StepResult:
    """Loss and gradients of one batch.

    Args:
        parameters: the dictionary.
        centred: (B, d_in), c above.
        choose: centred rows to the code z, entries >= 0.
        aux: the loss that revives dead features; None = without.
        peers: the processes that share the batch.
        shards: the processes that hold the other features; `parameters` and the code are then this process's part.

    Cost: one dense product (the encoder's) and four sparse ones. Memory: a few (B, d_in) and (d_sae, d_in)
    arrays.
    """
    code = choose(centred)
    residual = centred - shards.sum(gather_sum(code, parameters.decoder))  # x - xh: b_dec cancels
    sse = sum_of_squares(residual)
    variance = batch_variance(centred, peers)
    unit = -2 / variance  # g = unit * residual

    grad_code = row_dots(code, residual, parameters.decoder).mul_(unit).mul_(code.values > 0)  # ReLU
    by_feature = ByFeature(code, parameters.encoder.shape[0])
    grad_b_enc = torch.zeros_like(parameters.b_enc).index_add_(0, code.indices, grad_code)
    gradients = Parameters(
        encoder=by_feature.sum_rows(grad_code, centred),
        decoder=by_feature.sum_rows(code.values * unit, residual),
        b_enc=grad_b_enc,
        b_dec=residual.sum(0) * unit - shards.sum(parameters.encoder.T @ grad_b_enc),
    )
    loss, aux_loss = sse / variance, torch.zeros_like(sse)
    if aux is not None and aux.on:
        aux_loss = add_aux(parameters, gradients, centred, residual, variance, aux)
        loss = loss + aux.alpha * aux_loss
    return StepResult(loss, sse, variance, aux_loss, fired(code, parameters.encoder.shape[0]), gradients)


def fired(code: FlatCode, d_sae: int) -> Tensor:
    """(d_sae,) int64: rows in which each feature was on."""
    return torch.bincount(code.indices[code.values > 0], minlength=d_sae)


def sum_of_squares(x: Tensor) -> Tensor:
    """() sum of x^2 over all entries of a contiguous tensor, without a second array."""
    flat = x.reshape(-1)
    return torch.dot(flat, flat)


def batch_variance(x: Tensor, peers: Peers = ALONE) -> Tensor:
    """() sum ||x - mean(x)||^2 of the (B, d) rows of all processes. A constant batch has no variance to explain; the
    floor keeps its gradient finite.
    """
    mean = peers.sum(x.mean(0)) / peers.world  # every process has as many rows
    return peers.sum(sum_of_squares(x - mean)).clamp_min(torch.finfo(x.dtype).tiny)


def add_aux(
    parameters: Parameters, gradients: Parameters, centred: Tensor, residual: Tensor, variance: Tensor, aux: Aux
) -> Tensor:
    """Adds alpha * dL_aux to the dead rows of `gradients`, in place, and returns L_aux.

    k_aux of n_dead is rarely sparse, so each chunk of rows uses dense products over the dead columns.
    """
    dead = aux.dead
    assert dead is not None
    keep = min(aux.n_aux, aux.n_dead)
    weight = min(aux.n_dead / aux.n_aux, 1.0) / variance
    encoder, decoder, bias = parameters.encoder[dead], parameters.decoder[dead], parameters.b_enc[dead]
    grad_encoder, grad_decoder = torch.zeros_like(encoder), torch.zeros_like(decoder)
    grad_bias = torch.zeros_like(bias)
    total = torch.zeros_like(variance)
    for rows in row_chunks(centred.shape[0], chunk_rows_for(aux.n_dead)):
        c = centred[rows]
        values, indices = top_k(torch.addmm(bias, c, encoder.T), min(keep, dead.numel()))
        values = among_largest(values.relu_(), keep, aux.shards)
        code = torch.zeros(c.shape[0], dead.numel(), dtype=c.dtype, device=c.device).scatter_(1, indices, values)
        error = aux.shards.sum(code @ decoder) - residual[rows]
        total += error.square().sum()
        grad_error = error * (2 * aux.alpha * weight)
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
    gradient.addcmul_(torch.linalg.vecdot(gradient, decoder).unsqueeze(1), decoder, value=-1)


def normalise_rows(decoder: Tensor) -> None:
    """d_i <- d_i / ||d_i||, in place; a row of zeros is left as it is."""
    decoder.div_(decoder.norm(dim=1, keepdim=True).clamp_min(torch.finfo(decoder.dtype).tiny))
