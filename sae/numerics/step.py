"""One training step of a sparse autoencoder, with its gradient written out by hand.

Symbols, for a batch x (B, d) already in the dictionary's units (Gao et al. 2024, arXiv 2406.04093):

    c    = x - b_dec                        p  = c E^T + b_enc                E = W_enc^T, one feature a row
    z    = p where chosen, else 0           xh = z W + b_dec                  W = W_dec, unit rows
    V    = sum ||x - mean(x)||^2            L  = sum ||x - xh||^2 / V  +  alpha * L_aux

Which entries are chosen is the architecture (selection.py). AuxK revives dead features. Over the dead columns only,
with e = stopgrad(x - xh) and no b_dec anywhere:

    za   = ReLU(TopK_ka(c E_dead^T + b_enc,dead))      L_aux = s * sum ||za W_dead - e||^2 / V
                                                       s     = min(n_dead / ka, 1)

so gradient descent moves dead features *towards* what the live ones leave unexplained. Three published
implementations have the sign, the detach or the bias of this term wrong; `tests/test_sae_step.py` checks each
against an independent autograd model, `tests/test_sae_auxk.py` whole runs.

The gradient, with g = dL/dxh = 2 (xh - x) / V and q = (g W^T) at z's entries, zero where z = 0:

    dW = z^T g        dE = q^T c        db_enc = sum_rows q        db_dec = sum_rows g - E^T db_enc

q has as many entries as z, so no (B, d_sae) gradient exists; the pre-bias gradient is a matrix-vector product
because sum_rows(q E) = E^T-weighted column sums of q. The factor -2 / V of g = -2 (x - xh) / V goes into the few
entries instead of the rows. The AuxK part works on (rows of a chunk, n_dead) blocks.
"""

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from sae.numerics.peers import ALONE, Peers, among_largest
from sae.numerics.product import chunk_rows_for, row_chunks
from sae.numerics.scratch import Scratch
from sae.numerics.selection import top_k
from sae.numerics.sparse import ByFeature, FlatCode, gather_sum, occurrences, row_dots

_BLOCK = 256  # rows of an elementwise intermediate on a CPU: it stays in the cache


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
    grad_rows: Tensor | None = None  # (B, d_in): dL/dc for fixed weights w, without the AuxK part; where w is given
    grad_weight: Tensor | None = None  # (B, d_in): dL/dw


@dataclass(frozen=True)
class BatchLoss:
    """What a loss evaluation reports besides its gradients; as in `StepResult`."""

    loss: Tensor
    sse: Tensor
    variance: Tensor
    fired: Tensor


@dataclass(frozen=True)
class Measure:
    """How errors count: sum ||w (x - xh)||^2 / V with a weight for every entry of the batch; 1 where none is given."""

    variance: Tensor  # (): V, of the batch of all processes
    weight: Tensor | None = None  # (B, d_in): w
    peers: Peers = ALONE  # the processes that share the batch

    @classmethod
    def of(cls, centred: Tensor, peers: Peers = ALONE) -> Self:
        """All errors alike, over the variance of the batch."""
        return cls(batch_variance(centred, peers), peers=peers)

    def weigh(self, error: Tensor, rows: slice | None = None) -> Tensor:
        """w * error, of some rows of the batch or of all."""
        if self.weight is None:
            return error
        return error * (self.weight if rows is None else self.weight[rows])


@dataclass(frozen=True)
class Aux:
    """The loss that revives dead features; off as it stands."""

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


NO_AUX = Aux()


def sparse_step(
    parameters: Parameters,
    centred: Tensor,
    code: FlatCode,
    measure: Measure,
    aux: Aux = NO_AUX,
    scratch: Scratch | None = None,
) -> StepResult:
    """Loss and gradients of one batch.

    Args:
        parameters: the dictionary, or this process's part of it where `aux.shards` are several.
        centred: (B, d_in), c above.
        code: z, entries >= 0.
        measure: how errors count.
        aux: the loss that revives dead features.
        scratch: arrays to use again; the two large gradients lie in it until the next step.

    Cost: four sparse products. Memory: a few (B, d_in) and (d_sae, d_in) arrays.
    """
    scratch, decoder, shards = scratch or Scratch(), parameters.decoder, aux.shards
    xh = shards.sum(gather_sum(code, decoder, out=scratch.get("residual", centred.shape, centred)))
    residual = torch.sub(centred, xh, out=xh)  # b_dec cancels
    error = measure.weigh(residual)
    sse = sum_of_squares(error)
    unit = -2 / measure.variance
    pull = measure.weigh(error)  # g = unit * pull

    grad_code = row_dots(code, pull, decoder).mul_(unit).mul_(code.values > 0)  # ReLU
    by_feature = ByFeature(code, decoder.shape[0])
    grad_b_enc = by_feature.sum_entries(grad_code)
    gradients = Parameters(
        encoder=by_feature.sum_rows(grad_code, centred, out=scratch.get("encoder", decoder.shape, decoder)),
        decoder=by_feature.sum_rows(code.values * unit, pull, out=scratch.get("decoder", decoder.shape, decoder)),
        b_enc=grad_b_enc,
        b_dec=pull.sum(0) * unit - shards.sum(parameters.encoder.T @ grad_b_enc),
    )
    loss, aux_loss = sse / measure.variance, torch.zeros_like(sse)
    if aux.on:
        aux_loss = add_aux(parameters, gradients, centred, residual, measure, aux)
        loss = loss + aux.alpha * aux_loss
    return StepResult(
        loss,
        sse,
        measure.variance,
        aux_loss,
        fired(code, decoder.shape[0]),
        gradients,
        *row_gradients(measure, residual, code._replace(values=grad_code), parameters.encoder),
    )


def row_gradients(
    measure: Measure, residual: Tensor, grad_code: FlatCode, encoder: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """dL/dc and dL/dw of (B, d_in) rows, where weights are given: L = sum ||w (c - z W)||^2 / V, z = c E^T.

    Args:
        residual: (B, d_in), c - z W.
        grad_code: dL/dz at the entries of the code.
    """
    if measure.weight is None:
        return None, None
    error = measure.weigh(residual) * (2 / measure.variance)
    return measure.weigh(error) + gather_sum(grad_code, encoder), error * residual


def fired(code: FlatCode, d_sae: int) -> Tensor:
    """(d_sae,) int64: rows in which each feature was on."""
    return occurrences(code.indices, d_sae, code.values > 0)


def sum_of_squares(x: Tensor) -> Tensor:
    """() sum of x^2 over all entries of a contiguous tensor, without a second array."""
    flat = x.reshape(-1)
    return torch.dot(flat, flat)


def batch_variance(x: Tensor, peers: Peers = ALONE) -> Tensor:
    """() sum ||x - mean(x)||^2 of the (B, d) rows of all processes. A constant batch has no variance to explain; the
    floor keeps its gradient finite.
    """
    mean = peers.sum(x.sum(0)) / peers.total(x.shape[0])
    parts = [sum_of_squares(rows - mean) for rows in _blocks(x)]
    return peers.sum(torch.stack(parts).sum()).clamp_min(torch.finfo(x.dtype).tiny)


def add_aux(
    parameters: Parameters, gradients: Parameters, centred: Tensor, residual: Tensor, measure: Measure, aux: Aux
) -> Tensor:
    """Adds alpha * dL_aux to the dead rows of `gradients`, in place, and returns L_aux.

    k_aux of n_dead is rarely sparse, so each chunk of rows uses dense products over the dead columns.
    """
    dead = aux.dead
    assert dead is not None
    keep = min(aux.n_aux, aux.n_dead)
    weight = min(aux.n_dead / aux.n_aux, 1.0) / measure.variance
    encoder, decoder, bias = parameters.encoder[dead], parameters.decoder[dead], parameters.b_enc[dead]
    grad_encoder, grad_decoder = torch.zeros_like(encoder), torch.zeros_like(decoder)
    grad_bias = torch.zeros_like(bias)
    total = torch.zeros_like(measure.variance)
    for rows in row_chunks(centred.shape[0], chunk_rows_for(aux.n_dead)):
        c = centred[rows]
        values, indices = top_k(torch.addmm(bias, c, encoder.T), min(keep, dead.numel()))
        values = among_largest(values.relu_(), keep, aux.shards)
        code = torch.zeros(c.shape[0], dead.numel(), dtype=c.dtype, device=c.device).scatter_(1, indices, values)
        error = measure.weigh(aux.shards.sum(code @ decoder) - residual[rows], rows)
        total += error.square().sum()
        grad_error = measure.weigh(error, rows) * (2 * aux.alpha * weight)
        grad_pre = (grad_error @ decoder.T).mul_(code > 0)
        grad_decoder.addmm_(code.T, grad_error)
        grad_encoder.addmm_(grad_pre.T, c)
        grad_bias += grad_pre.sum(0)
    gradients.encoder.index_add_(0, dead, grad_encoder)
    gradients.decoder.index_add_(0, dead, grad_decoder)
    gradients.b_enc.index_add_(0, dead, grad_bias)
    return weight * total


def remove_parallel(gradient: Tensor, decoder: Tensor) -> None:
    """grad_i <- grad_i - <grad_i, d_i> d_i, in place: with unit rows, a gradient along a row only changes its length.

    Args:
        gradient, decoder: (d_sae, d_in).
    """
    for g, d in zip(_blocks(gradient), _blocks(decoder), strict=True):
        g.addcmul_(torch.linalg.vecdot(g, d).unsqueeze(1), d, value=-1)


def normalise_rows(decoder: Tensor) -> None:
    """d_i <- d_i / ||d_i|| for the rows of a (d_sae, d_in) decoder, in place; a row of zeros is left as it is."""
    decoder.div_(decoder.norm(dim=1, keepdim=True).clamp_min(torch.finfo(decoder.dtype).tiny))


def _blocks(x: Tensor) -> tuple[Tensor, ...]:
    """Rows to work on together; a GPU takes all of them, since every operation there has to be started."""
    return x.split(_BLOCK) if x.is_cpu else (x,)
