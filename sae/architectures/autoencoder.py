"""What all architectures share: the four tensors, their initial values, the input scale, decoding, folding.

    p = (s y - b_dec) W_enc + b_enc        z = gate(p) / s        yhat = z W_dec + b_dec / s

with y = x, or what the input map makes of x (inputs.py). An architecture is its gate and how it is trained. W_dec has
unit rows, so z_i is the length of feature i's contribution in the units of y, whatever the input scale s used in
training. Every gate here commutes with a positive factor once its threshold, if it has one, is divided by s too; so
`folded()` returns the same function with s = 1, which is what is saved and what other libraries load.
"""

import copy
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sae.architectures.inputs import InputMap, Moments, input_map
from sae.config import SAEConfig, Sized
from sae.errors import ShapeMismatch
from sae.numerics.peers import ALONE, Peers
from sae.numerics.product import chunk_rows_for
from sae.numerics.scratch import Scratch
from sae.numerics.selection import largest_entries
from sae.numerics.sparse import FlatCode, TopKCode, gather_sum
from sae.numerics.step import Aux, Measure, Parameters, StepResult, normalise_rows, remove_parallel, sparse_step

_PROBE_ENTRIES = 2**23  # pre-activations looked at to set a first threshold


class SparseAutoencoder(nn.Module, Sized, ABC):
    """A dictionary and the rule that trains it.

    Attributes:
        W_enc: (d_in, d_sae). Stored transposed, so that a feature's weights are contiguous.
        W_dec: (d_sae, d_in), unit rows.
        b_enc: (d_sae,).
        b_dec: (d_in,), in units of s x.
        scale: (), the input scale s.
        input: what is done to a row first.
        config: shape and objective.
        metadata: JSON values that say what the dictionary belongs to (site, store hashes, model).
        peers, shards: the processes that share the batches of `loss`, and those that hold the other features; set by
            the trainer.
    """

    FILE_ARCHITECTURE: ClassVar[str]  # what its folder says to sae-lens
    HAS_THRESHOLD: ClassVar[bool] = False  # its folder holds a (d_sae,) threshold

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
        self.input = input_map(config)
        self._arrays = Scratch()
        self.peers: Peers = ALONE
        self.shards: Peers = ALONE

    # What an architecture defines.

    @abstractmethod
    def gate(self, pre: Tensor) -> Tensor:
        """(..., d_sae) pre-activations to codes in the same units, dense and differentiable."""

    @abstractmethod
    def sparse_code(self, centred: Tensor) -> FlatCode:
        """(B, d_in) centred rows to the same code without a (B, d_sae) array; entries of value 0 are off."""

    def choose(self, centred: Tensor) -> FlatCode:
        """The code that training uses for a batch, where it differs from `sparse_code`."""
        return self.sparse_code(centred)

    # Using it.

    def encode(self, x: Tensor) -> Tensor:
        """(..., d_in) rows to (..., d_sae) codes, z >= 0. Differentiable.

        Builds the dense array: use `encode_sparse` for more than a few thousand rows.
        """
        z = self.gate(self._centre(x) @ self.W_enc + self.b_enc) / self.scale
        return self.input.carry(z, x.to(self.W_dec.dtype))

    def encode_sparse(self, x: Tensor) -> TopKCode:
        """(..., d_in) rows to values and indices (..., slots). In chunks, without gradient: no (rows, d_sae)
        array is built.
        """
        with torch.no_grad():
            values, indices = self._slots(self.sparse_code(self._centre(x).reshape(-1, self.d_in)))
            shape = (*x.shape[:-1], values.shape[-1])
            values = self.input.carry((values / self.scale).view(shape), x.to(self.W_dec.dtype))
            return TopKCode(values, indices.view(shape))

    def decode(self, z: Tensor) -> Tensor:
        """(..., d_sae) codes to (..., d_in) rows. Differentiable."""
        if z.shape[-1] != self.d_sae:
            raise ShapeMismatch(f"decode got codes of width {z.shape[-1]}; this dictionary has {self.d_sae} features.")
        return self.input.out(z @ self.W_dec + self.b_dec / self.scale)

    def decode_sparse(self, code: TopKCode) -> Tensor:
        """A (..., slots) sparse code to (..., d_in) rows. Differentiable."""
        rows = gather_sum(code.flat(), self.W_dec) + self.b_dec / self.scale
        return self.input.out(rows.view(*code.indices.shape[:-1], self.d_in))

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of (..., d_in) rows."""
        return self.decode(self.encode(x))

    @property
    def directions(self) -> Tensor:
        """(d_sae, d_in): what a code of 1 adds to x. W_dec itself once the input map is folded in."""
        return self.input.directions(self.W_dec)

    def through(self, input: InputMap) -> Self:
        """The same weights behind another input map; they are shared, not copied."""
        view = copy.copy(self)
        object.__setattr__(view, "_modules", {**self._modules, "input": input})
        return view

    def folded(self, *, keep_input: bool = False) -> Self:
        """A copy with the same codes and reconstructions whose scale is 1, and that reads x itself where its input map
        is affine and not to be kept.

        Biases and thresholds are divided by s; with y = (x - m) P the encoder takes up P and the decoder P^-1. Rows of
        W_dec then need no longer have unit length: see inputs.py for what a code means.
        """
        plain = type(self)(self.config, metadata=self.metadata).to(device=self.W_dec.device, dtype=self.W_dec.dtype)
        with torch.no_grad():
            b_dec = self.b_dec / self.scale
            if self.input.affine and not keep_input:
                plain.input = InputMap()
                plain.W_enc.copy_(self.input.encoder_rows(self.W_enc.T).T)
                plain.W_dec.copy_(self.input.directions(self.W_dec))
                plain.b_dec.copy_(self.input.out(b_dec))
            else:
                plain.input = copy.deepcopy(self.input)
                plain.W_enc.copy_(self.W_enc)
                plain.W_dec.copy_(self.W_dec)
                plain.b_dec.copy_(b_dec)
            plain.b_enc.copy_(self.b_enc / self.scale)
            if self.HAS_THRESHOLD:
                plain.set_thresholds(self.thresholds() / self.scale)
        return plain

    def file_tensors(self) -> dict[str, Tensor]:
        """The tensors of a folded dictionary by their names in a file; `load_file_tensors` takes them back."""
        tensors = {name: getattr(self, name) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
        if self.HAS_THRESHOLD:
            tensors["threshold"] = self.thresholds()
        return tensors | {f"input_{name}": tensor for name, tensor in self.input.tensors().items()}

    def load_file_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Takes over what `file_tensors` of a folded dictionary of this configuration gave."""
        with torch.no_grad():
            for name, tensor in self.file_tensors().items():
                if name == "threshold":
                    self.set_thresholds(tensors[name].to(self.W_dec.dtype))
                else:
                    tensor.copy_(tensors[name])

    def thresholds(self) -> Tensor:
        """(d_sae,) smallest pre-activation at which each feature is on, in units of s x. Only where
        HAS_THRESHOLD.
        """
        raise NotImplementedError

    def set_thresholds(self, values: Tensor) -> None:
        """Takes over (d_sae,) thresholds in units of s x. Only where HAS_THRESHOLD."""
        raise NotImplementedError

    # What the trainer needs; see contract.Architecture.

    def initialise(self, rows: Tensor, log_snr: Tensor | None = None) -> None:
        """Sets the pre-bias to the mean row and, if the configuration asks, the scale so that E||s y|| =
        sqrt(d_in).

        Args:
            rows: (n, d_in), spread over the data: rows of one region or one step would bias both.
        """
        self._check(rows)
        rows = self.input.into(rows.to(self.W_dec.dtype)).to(torch.float64)
        mean_norm = float(rows.norm(dim=-1).mean())
        if self.config.input_scale and mean_norm > 0:
            self.scale.fill_(math.sqrt(self.d_in) / mean_norm)
        if not self.input.fixes_bias:
            with torch.no_grad():
                self.b_dec.copy_(rows.mean(0) * self.scale.double())

    def trained_tensors(self) -> dict[str, Tensor]:
        """The trained tensors as contiguous arrays that share the module's memory."""
        return {
            "encoder": self.W_enc.detach().T,
            "decoder": self.W_dec.detach(),
            "b_enc": self.b_enc.detach(),
            "b_dec": self.b_dec.detach(),
        }

    def fit(self, moments: Moments) -> None:
        """Takes over the statistics that the input map needs; before `initialise`."""
        self.input.fit(moments)

    def fixed_tensors(self) -> dict[str, Tensor]:
        """The input scale and the input map."""
        return {"scale": self.scale, **{f"input.{name}": t for name, t in self.input.tensors().items()}}

    def loss(
        self, x: Tensor, dead: Tensor | None = None, log_snr: Tensor | None = None
    ) -> tuple[StepResult, dict[str, Tensor]]:
        """Loss of (B, d_in) rows and its gradient; the decoder's has no part along the decoder's rows. Their noise
        levels do not matter here.
        """
        self._check(x)
        with torch.no_grad():
            centred = self._centre(x, out=self._arrays.get("centred", x.shape, self.W_dec))
            aux = Aux(dead, self.config.n_aux, self.config.aux_alpha, self.shards)
            result, more = self.step(centred, Measure.of(centred, self.peers), aux)
            gradients = dict(zip(("encoder", "decoder", "b_enc", "b_dec"), result.gradients.tensors(), strict=True))
            remove_parallel(gradients["decoder"], self.W_dec.detach())
            if self.input.fixes_bias:
                gradients["b_dec"].zero_()
        return result, {**gradients, **more}

    def step(self, centred: Tensor, measure: Measure, aux: Aux) -> tuple[StepResult, dict[str, Tensor]]:
        """Loss and gradients for (B, d_in) centred rows, and the gradients of tensors beyond the four."""
        return sparse_step(self._four(), centred, self.choose(centred), measure, aux, self._arrays), {}

    def after_update(self) -> None:
        """Unit decoder rows again."""
        with torch.no_grad():
            normalise_rows(self.W_dec)

    # Helpers of the architectures.

    def _slots(self, code: FlatCode) -> TopKCode:
        return code.padded()

    def _four(self) -> Parameters:
        return Parameters(self.W_enc.detach().T, self.W_dec.detach(), self.b_enc.detach(), self.b_dec.detach())

    def _product(self, centred: Tensor) -> dict[str, Any]:
        """Arguments of the selection functions."""
        return {
            "x": centred,
            "encoder": self.W_enc.detach().T,
            "bias": self.b_enc.detach(),
            "buffer": self._scratch(centred.shape[0]),
        }

    def _first_threshold(self, rows: Tensor) -> float:
        """The pre-activation that k entries a row exceed on average, on some of `rows`; for `initialise`."""
        few = rows[:: max(1, rows.shape[0] * self.d_sae // _PROBE_ENTRIES)]
        code = largest_entries(**self._product(self._centre(few).detach()), n=few.shape[0] * self.k)
        return float(code.values.min()) if code.values.numel() else 0.0

    def _centre(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        self._check(x)
        return torch.addcmul(-self.b_dec, self.input.into(x.to(self.W_dec.dtype)), self.scale, out=out)

    def _check(self, x: Tensor) -> None:
        if x.ndim < 1 or x.shape[-1] != self.d_in:
            raise ShapeMismatch(
                f"The dictionary of site {self.config.site or '(unnamed)'} reads rows of width {self.d_in}; "
                f"found a tensor of shape {tuple(x.shape)}."
            )

    def _scratch(self, n_rows: int) -> Tensor:
        rows = max(1, min(chunk_rows_for(self.d_sae), n_rows))
        return self._arrays.get("pre", (rows, self.d_sae), self.W_dec)
