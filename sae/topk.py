"""TopK sparse autoencoder (Makhzani & Frey 2013; Gao et al. 2024, arXiv 2406.04093).

    p = (s x - b_dec) W_enc + b_enc        z = ReLU(TopK_k(p)) / s        xhat = z W_dec + b_dec / s

W_dec has unit rows, so z_i is the length of feature i's contribution in the units of x, whatever the input
scale s used in training. Dividing by s folds the scale away exactly (TopK and ReLU commute with a positive
factor): `folded()` returns the same function with s = 1, which is what is saved and what other libraries
load.
"""

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from .config import SAEConfig
from .errors import ShapeMismatch
from .sparse import TopKCode, chunk_rows_for, encode_rows, gather_sum
from .step import StepResult, TopKParameters, normalise_rows, remove_parallel, topk_step


class TopKSAE(nn.Module):
    """A TopK dictionary.

    Attributes:
        W_enc: (d_in, d_sae). Stored transposed, so that a feature's weights are contiguous.
        W_dec: (d_sae, d_in), unit rows.
        b_enc: (d_sae,).
        b_dec: (d_in,), in units of s x.
        scale: (), the input scale s.
        config: shape and objective.
        metadata: JSON values that say what the dictionary belongs to (site, store hashes, model).
    """

    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_enc: nn.Parameter
    b_dec: nn.Parameter
    scale: Tensor

    def __init__(self, config: SAEConfig, *, seed: int = 0, metadata: dict[str, Any] | None = None) -> None:
        """Random unit decoder rows, encoder = decoder^T, zero biases, scale 1."""
        super().__init__()
        self.config = config
        self.metadata: dict[str, Any] = dict(metadata or {})
        generator = torch.Generator().manual_seed(seed)
        decoder = torch.randn(config.d_sae, config.d_in, generator=generator)
        normalise_rows(decoder)
        self.W_enc = nn.Parameter(decoder.clone().T)
        self.W_dec = nn.Parameter(decoder)
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))
        self.register_buffer("scale", torch.ones(()))
        self._buffer: Tensor | None = None

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return self.config.d_in

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.config.d_sae

    @property
    def k(self) -> int:
        """Features kept for a row."""
        return self.config.k

    def initialise(self, rows: Tensor) -> None:
        """Sets the pre-bias to the mean row and, if the configuration asks, the scale so that E||s x|| =
        sqrt(d_in).

        Args:
            rows: (n, d_in), spread over the data: rows of one region or one step would bias both.
        """
        self._check(rows)
        rows = rows.to(torch.float64)
        mean_norm = float(rows.norm(dim=-1).mean())
        if self.config.input_scale and mean_norm > 0:
            self.scale.fill_(math.sqrt(self.d_in) / mean_norm)
        with torch.no_grad():
            self.b_dec.copy_(rows.mean(0) * self.scale.double())

    def encode(self, x: Tensor) -> Tensor:
        """(..., d_in) rows to (..., d_sae) codes, z >= 0 with at most k non-zero. Differentiable.

        Builds the dense array: use `encode_sparse` for more than a few thousand rows.
        """
        pre = self._centre(x) @ self.W_enc + self.b_enc
        values, indices = pre.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, indices, values.relu()) / self.scale

    def encode_sparse(self, x: Tensor) -> TopKCode:
        """(..., d_in) rows to values and indices (..., k). In chunks, without gradient: no (rows, d_sae)
        array is built.
        """
        with torch.no_grad():
            centred = self._centre(x).reshape(-1, self.d_in)
            values, indices = encode_rows(centred, self.W_enc.detach().T, self.b_enc.detach(), self.k)
            shape = (*x.shape[:-1], self.k)
            return TopKCode((values / self.scale).view(shape), indices.view(shape))

    def decode(self, z: Tensor) -> Tensor:
        """(..., d_sae) codes to (..., d_in) rows. Differentiable."""
        if z.shape[-1] != self.d_sae:
            raise ShapeMismatch(f"decode got codes of width {z.shape[-1]}; this dictionary has {self.d_sae} features.")
        return z @ self.W_dec + self.b_dec / self.scale

    def decode_sparse(self, code: TopKCode) -> Tensor:
        """A (..., k) sparse code to (..., d_in) rows. Differentiable."""
        n_slots = code.indices.shape[-1]
        flat = TopKCode(code.values.reshape(-1, n_slots), code.indices.reshape(-1, n_slots))
        return (gather_sum(flat, self.W_dec) + self.b_dec / self.scale).view(*code.indices.shape[:-1], self.d_in)

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of (..., d_in) rows."""
        return self.decode(self.encode(x))

    def to_dense(self, code: TopKCode) -> Tensor:
        """A sparse code as a (..., d_sae) array."""
        return code.to_dense(self.d_sae)

    def folded(self) -> Self:
        """A copy with scale 1 and the same codes and reconstructions: b_enc / s and b_dec / s, the matrices
        unchanged.
        """
        copy = type(self)(self.config, metadata=self.metadata).to(device=self.W_dec.device, dtype=self.W_dec.dtype)
        with torch.no_grad():
            copy.W_enc.copy_(self.W_enc)
            copy.W_dec.copy_(self.W_dec)
            copy.b_enc.copy_(self.b_enc / self.scale)
            copy.b_dec.copy_(self.b_dec / self.scale)
        return copy

    # What the trainer needs; see contract.Architecture.

    def trained_tensors(self) -> dict[str, Tensor]:
        """The four trained tensors as contiguous arrays that share the module's memory."""
        return {
            "encoder": self.W_enc.detach().T,
            "decoder": self.W_dec.detach(),
            "b_enc": self.b_enc.detach(),
            "b_dec": self.b_dec.detach(),
        }

    def fixed_tensors(self) -> dict[str, Tensor]:
        """The input scale."""
        return {"scale": self.scale}

    def loss(self, x: Tensor, dead: Tensor | None = None) -> tuple[StepResult, dict[str, Tensor]]:
        """Loss of (B, d_in) rows and its gradient; the decoder's has no part along the decoder's rows."""
        self._check(x)
        config = self.config
        tensors = self.trained_tensors()
        with torch.no_grad():
            result = topk_step(
                TopKParameters(**tensors),
                x * self.scale,
                config.k,
                dead=dead,
                n_aux=config.n_aux,
                aux_alpha=config.aux_alpha,
                buffer=self._scratch(x.shape[0]),
            )
            remove_parallel(result.gradients.decoder, tensors["decoder"])
        return result, dict(zip(tensors, result.gradients.tensors(), strict=True))

    def after_update(self) -> None:
        """Unit decoder rows again."""
        with torch.no_grad():
            normalise_rows(self.W_dec)

    def _centre(self, x: Tensor) -> Tensor:
        self._check(x)
        return x.to(self.W_dec.dtype) * self.scale - self.b_dec

    def _check(self, x: Tensor) -> None:
        if x.ndim < 1 or x.shape[-1] != self.d_in:
            raise ShapeMismatch(
                f"The dictionary of site {self.config.site or '(unnamed)'} reads rows of width {self.d_in}; "
                f"found a tensor of shape {tuple(x.shape)}."
            )

    def _scratch(self, n_rows: int) -> Tensor:
        rows = max(1, min(chunk_rows_for(self.d_sae), n_rows))
        buffer = self._buffer
        if (
            buffer is None
            or buffer.shape[0] != rows
            or buffer.device != self.W_dec.device
            or buffer.dtype != self.W_dec.dtype
        ):
            self._buffer = buffer = torch.empty(rows, self.d_sae, dtype=self.W_dec.dtype, device=self.W_dec.device)
        return buffer
