"""A dictionary of rows that are each brought to mean 0 and deviation 1 first: SAeUron's `input_unit_norm`, the
`normalize` of OpenAI's TopK.

With m and s the mean and standard deviation (n - 1 below) of a row x over its d channels,

    y = (x - m) / (s + 1e-5)        z = gate of y        yh = z W + b_dec        xh = s yh + m

so xh is not a function of z alone. But with m+ and m- the positive and negative part of m,

    xh = (s z) W  +  s b_dec  +  m+ 1  -  m- 1

which is a dictionary whose codes are s z, in the units of x, and three more: s along b_dec, m+ along (1, ..., 1) and m-
against it. Decoding then needs no row and no constant. Features keep their numbers; the three come last, and the first
of them is on at every row that is not constant.
"""

from typing import Any, Self

import torch
from torch import Tensor

from sae.architectures.topk import TopKSAE
from sae.config import SAEConfig, Sized
from sae.numerics.sparse import TopKCode, gather_sum

EPS = 1e-5
N_MORE = 3  # codes that say how a row was standardised


class StandardisedSAE(Sized):
    """A TopK dictionary behind the standardisation of each row; to use, not to train.

    Attributes:
        core: reads standardised rows.
        config: as of the core, with three features more.
        metadata: of the whole.
    """

    standardises_rows = True

    def __init__(self, core: TopKSAE, metadata: dict[str, Any] | None = None) -> None:
        fields = core.config.to_json()
        self.core = core
        self.config = SAEConfig.from_json({**fields, "d_sae": core.d_sae + N_MORE})
        self.metadata: dict[str, Any] = dict(metadata or core.metadata)

    @property
    def W_dec(self) -> Tensor:
        """(d_sae, d_in); the last three rows are not of unit length."""
        bias = self.core.b_dec.detach()
        ones = torch.ones_like(bias)
        return torch.cat([self.core.W_dec.detach(), torch.stack([bias, ones, -ones])])

    @property
    def directions(self) -> Tensor:
        """(d_sae, d_in): what a code of 1 adds to x."""
        return self.W_dec

    def encode(self, x: Tensor) -> Tensor:
        """(..., d_in) rows to (..., d_sae) codes."""
        y, more = standardise(x.to(self.core.W_dec.dtype))
        return torch.cat([self.core.encode(y) * more[..., :1], more], -1)

    def encode_sparse(self, x: Tensor) -> TopKCode:
        """(..., d_in) rows to values and indices (..., k + 3)."""
        y, more = standardise(x.to(self.core.W_dec.dtype))
        values, indices = self.core.encode_sparse(y)
        last = torch.arange(self.core.d_sae, self.d_sae, device=indices.device).expand(more.shape)
        return TopKCode(torch.cat([values * more[..., :1], more], -1), torch.cat([indices, last], -1))

    def decode(self, z: Tensor) -> Tensor:
        """(..., d_sae) codes to (..., d_in) rows."""
        return z @ self.W_dec

    def decode_sparse(self, code: TopKCode) -> Tensor:
        """A sparse code to (..., d_in) rows."""
        return gather_sum(code.flat(), self.W_dec).view(*code.indices.shape[:-1], self.d_in)

    def __call__(self, x: Tensor) -> Tensor:
        """The reconstruction of (..., d_in) rows."""
        return self.decode_sparse(self.encode_sparse(x))

    def to(self, device: str | torch.device) -> Self:
        """Moves the core; returns itself."""
        self.core.to(device)
        return self


def standardise(x: Tensor) -> tuple[Tensor, Tensor]:
    """(..., d) rows as y, and (..., 3) the codes that undo it: s, m+, m-."""
    mean = x.mean(-1, keepdim=True)
    centred = x - mean
    deviation = centred.std(-1, keepdim=True)
    return centred / (deviation + EPS), torch.cat([deviation, mean.relu(), (-mean).relu()], -1)
