"""The encoder product p = x E^T + b, one chunk of rows at a time, exactly or coarsely.

Most of a training step is this product, and of p only the largest entries are used. So a coarse product may choose
them, if the values of the chosen ones are then computed again in full precision (selection.py):

    fp32    p itself
    bf16    both factors rounded to 8 significant bits
    int8    both factors rounded to 255 levels of their own row:  x_i ~ s_i q_i,  E_j ~ u_j r_j,
            p_ij ~ s_i u_j <q_i, r_j> + b_j       with s_i = max |x_i| / 127, u_j likewise, the inner product exact

Rounding errors of different entries are unrelated, so p_ij is off by about |x_i| |E_j| sqrt((e_i^2 + e_j^2) / d) with
e = (error of an entry) / (size of an entry): 3e-4 |x_i| |E_j| for Gaussian rows of d = 1280, where unrelated rows have
|p| = 0.03 |x_i| |E_j|. Two entries closer than that may change places. A row with a few entries far above the rest has
no levels left for the rest. The size of an entry is therefore (mean sqrt|x|)^2, which a few large entries hardly
raise, and rows of either factor with e above 3 % are multiplied in fp32.

Processors since about 2019 multiply 8-bit integers two to four times as fast as floats (VNNI); bf16 needs a later one.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

_TOLERANCE = 0.03
_MOST_POOR = 0.25  # share of features above which the coarse product is not worth it
_LEVELS = 127
_BLOCK = 256  # rows rounded at a time: they stay in the cache


def chunk_rows_for(d_sae: int) -> int:
    """Rows of pre-activations to hold at a time: about 32 MB of float32. With fewer, the product spends its time on
    reading the encoder again for each chunk.
    """
    return max(256, min(4096, 2**23 // d_sae))


def row_chunks(n_rows: int, chunk_rows: int) -> Iterator[slice]:
    """Consecutive slices that cover range(n_rows)."""
    for start in range(0, n_rows, chunk_rows):
        yield slice(start, min(start + chunk_rows, n_rows))


def pre_activations(
    x: Tensor, encoder: Tensor, bias: Tensor, *, buffer: Tensor | None = None, matmul: str = "fp32"
) -> Iterator[tuple[slice, Tensor]]:
    """Yields (rows, p of these rows) over all rows of x (B, d_in). Each p is overwritten by the next.

    Args:
        x: (B, d_in), already scaled and centred.
        encoder: (d_sae, d_in), one feature a row (W_enc transposed).
        bias: (d_sae,).
        buffer: (rows, d_sae) scratch space to reuse between calls; its first axis sets the chunk.
        matmul: "fp32": in the dtype of x. "bf16": p is bfloat16 too. "int8": for float32 on a CPU; elsewhere as
            "fp32".
    """
    d_sae = encoder.shape[0]
    n_chunk = buffer.shape[0] if buffer is not None else min(chunk_rows_for(d_sae), max(1, x.shape[0]))
    if matmul == "bf16":
        x, encoder, bias = x.bfloat16(), encoder.bfloat16(), bias.bfloat16()
        for rows in row_chunks(x.shape[0], n_chunk):
            yield rows, F.linear(x[rows], encoder, bias)
        return
    buffer = x.new_empty(n_chunk, d_sae) if buffer is None else buffer
    coarse = CoarseRows.of(encoder) if matmul == "int8" and x.dtype == torch.float32 and x.is_cpu else None
    if coarse is not None and coarse.poor.numel() > _MOST_POOR * d_sae:
        coarse = None
    for rows in row_chunks(x.shape[0], n_chunk):
        p = buffer[: rows.stop - rows.start]
        if coarse is None:
            torch.addmm(bias, x[rows], encoder.T, out=p)
        else:
            _int8_product(x[rows], encoder, bias, coarse, p)
        yield rows, p


class CoarseRows(NamedTuple):
    """Rows rounded to 255 levels each.

    Attributes:
        levels: (n, d) int8, q.
        scale: (n,) float32, s.
        poor: (m,) int64, the rows with e above the tolerance.
    """

    levels: Tensor
    scale: Tensor
    poor: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Self:
        """Rounds (n, d) rows. A row of zeros stays one."""
        levels = torch.empty(x.shape, dtype=torch.int8)
        largest, size = x.new_empty(x.shape[0]), x.new_empty(x.shape[0])
        tiny = torch.finfo(x.dtype).tiny * _LEVELS**2
        buffer = x.new_empty(min(_BLOCK, x.shape[0]), x.shape[1])
        for rows in row_chunks(x.shape[0], _BLOCK):
            block = buffer[: rows.stop - rows.start]
            torch.abs(x[rows], out=block)
            torch.amax(block, 1, out=largest[rows]).clamp_min_(tiny)
            torch.mean(block.sqrt_(), 1, out=size[rows]).square_()
            levels[rows] = torch.mul(x[rows], _LEVELS / largest[rows, None], out=block).round_()
        scale = largest / _LEVELS
        # Uniform errors have variance s^2 / 12. A row with exact zeros does better; where that matters, look.
        suspects = (scale > math.sqrt(12) * _TOLERANCE * size).nonzero().squeeze(1)
        errors = torch.linalg.vector_norm(x[suspects] - levels[suspects] * scale[suspects, None], dim=1)
        return cls(levels, scale, suspects[errors > _TOLERANCE * math.sqrt(x.shape[1]) * size[suspects]])


def _int8_product(x: Tensor, encoder: Tensor, bias: Tensor, coarse: CoarseRows, p: Tensor) -> None:
    """p <- x E^T + b, coarsely, for the rows of one chunk."""
    rows = CoarseRows.of(x)
    p.copy_(torch._int_mm(rows.levels, coarse.levels.T, out=p.view(torch.int32)))
    p.mul_(rows.scale.unsqueeze(1))
    torch.addcmul(bias, p, coarse.scale, out=p)
    if rows.poor.numel():
        p[rows.poor] = torch.addmm(bias, x[rows.poor], encoder.T)
    if coarse.poor.numel():
        p[:, coarse.poor] = torch.addmm(bias[coarse.poor], x, encoder[coarse.poor].T)
