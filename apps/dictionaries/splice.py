"""What can stand in the place of a site's rows: a dictionary's reconstruction, the mean row of the step, nothing.

Each is a function of rows (B, tokens, d) and the step that gives rows of the same shape; ``Splice`` puts one in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from apps.errors import InvalidOption
from probe.errors import InvalidIntervention
from probe.interventions.ops import Op, Pack, StepContext, Unpack, Weight, add_change
from sae import OpenedSAE
from sae.architectures.timed import TimedSAE

_NOISIEST = -30.0  # where a store writes minus infinity
Rows = Callable[[Tensor, StepContext], Tensor]
"""Rows (B, tokens, d) to what takes their place."""


@dataclass(frozen=True, eq=False)
class Splice(Op):
    """x' = function(x). A measurement, so it is no part of recipes."""

    kind: ClassVar[str] = "splice"
    replaces: ClassVar[bool] = True
    function: Rows

    def apply(self, x: Tensor, weight: Weight, context: StepContext) -> Tensor:
        return add_change(x, self.function(x, context).to(x.dtype) - x, weight)

    def to_record(self, pack: Pack) -> dict[str, Any]:
        raise InvalidIntervention("splice: a substitution is measured, not saved; recipes hold edits.")

    @classmethod
    def from_record(cls, record: Mapping[str, Any], unpack: Unpack) -> Splice:
        raise InvalidIntervention("splice: a recipe cannot hold a substitution.")


def reconstruction(sae: OpenedSAE) -> Rows:
    """x to its reconstruction; a dictionary that knows time is asked for the level.

    Raises:
        InvalidOption: it needs more than the rows of one site and step.
    """
    if sae.config.blocks is not None or getattr(sae, "READS_PREVIOUS", False):
        raise InvalidOption(
            "substitute: this dictionary reads a row together with rows of other sites or of the step before, which a "
            "single call of a module does not have."
        )

    def function(x: Tensor, context: StepContext) -> Tensor:
        now = sae.at(max(context.log_snr, _NOISIEST)) if isinstance(sae, TimedSAE) else sae
        return now.decode_sparse(now.encode_sparse(x.float()))

    return function


def zero(x: Tensor, context: StepContext) -> Tensor:
    """Nothing in the place of the rows."""
    return torch.zeros_like(x)


class Means:
    """Mean row of each step, gathered while a generation runs unedited."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._n: dict[int, int] = {}

    def watch(self, x: Tensor, context: StepContext) -> Tensor:
        """Counts the rows and leaves them as they are."""
        rows = x.reshape(-1, x.shape[-1]).double()
        self._sums[context.step] = self._sums.get(context.step, 0) + rows.sum(0)
        self._n[context.step] = self._n.get(context.step, 0) + len(rows)
        return x

    def row(self, x: Tensor, context: StepContext) -> Tensor:
        """The mean row of the step, at every token."""
        return (self._sums[context.step] / self._n[context.step]).to(x.dtype).expand(x.shape)
