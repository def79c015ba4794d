"""What operations on features of a dictionary share: tables of features and values by step, and the way back to rows.

All of them write back ``x' = x + (z' - z) W_dec``: what the dictionary does not explain stays in place, and where no
code changes, x stays bit for bit. Which features, and by how much, may differ from step to step: tables have one row a
step and are padded with feature -1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import torch

from probe.errors import InvalidIntervention
from probe.interventions.dictionary import (
    Dictionary,
    TimedDictionary,
    as_dictionary,
    dictionary_of,
    dictionary_record,
    feature_codes,
    feature_directions,
)
from probe.interventions.ops import (
    Op,
    Pack,
    StepContext,
    TableLike,
    Unpack,
    Weight,
    add_change,
    check_table,
    check_width,
    table_row,
    timesteps_of,
)
from probe.interventions.timed_dictionary import RowMemory


def check_one_site(what: str, dictionary: Any) -> None:
    """Raises InvalidIntervention for a crosscoder: its codes need rows of several sites or steps, and an operation sees
    those of one site at one step. The others may not have been computed yet, and rows of later steps never have.
    """
    blocks = getattr(getattr(dictionary, "config", None), "blocks", None)
    if blocks:
        places = ", ".join(site if step is None else f"{site} at step {step}" for site, step, _ in blocks)
        raise InvalidIntervention(
            f"{what}: the dictionary is a crosscoder over {places}; its codes need the rows of all of them, and an "
            "edit sees one site at one step. Add the feature's direction at a site instead: AddDirection with "
            "sae.architectures.crosscoder.direction(sae, feature, site)."
        )


def feature_table(what: str, dictionary: Dictionary, values: Any) -> torch.Tensor:
    """(n_steps, m) int64 features, -1 for none; checked against the dictionary and for repetitions within a
    step.
    """
    check_one_site(what, dictionary)
    table = torch.as_tensor(values).detach().to("cpu")
    if table.is_floating_point() or table.dtype == torch.bool:
        raise InvalidIntervention(f"{what}: features have dtype {table.dtype}; expected integers.")
    table = table.to(torch.int64)
    table = table.reshape(1, 1) if table.ndim == 0 else table.unsqueeze(0) if table.ndim == 1 else table
    d_sae = dictionary.W_dec.shape[0]
    if table.ndim != 2 or not table.shape[0]:
        raise InvalidIntervention(f"{what}: features have shape {tuple(table.shape)}; expected (n_steps, m) or (m,).")
    if table.numel() and not -1 <= int(table.min()) <= int(table.max()) < d_sae:
        raise InvalidIntervention(
            f"{what}: features run from {int(table.min())} to {int(table.max())}; the dictionary has 0 to {d_sae - 1}."
        )
    for step, row in enumerate(table.tolist()):
        real = [feature for feature in row if feature >= 0]
        if len(set(real)) != len(real):
            raise InvalidIntervention(f"{what}: a feature is named twice at step {step}: {sorted(real)}.")
    return table


def value_table(what: str, values: Any, features: torch.Tensor) -> torch.Tensor:
    """Values beside a feature table: same shape, or one number for all."""
    tensor = torch.as_tensor(values, dtype=torch.float32).detach().to("cpu")
    if tensor.ndim == 0:
        tensor = tensor.expand(features.shape)
    elif tensor.ndim == 1:
        tensor = tensor.unsqueeze(0)
    if tensor.shape != features.shape:
        raise InvalidIntervention(
            f"{what}: shape {tuple(tensor.shape)}; expected that of the features, {tuple(features.shape)}, "
            "or one number."
        )
    if not bool(torch.isfinite(tensor).all()):
        raise InvalidIntervention(f"{what}: holds NaN or infinity.")
    return tensor.contiguous()


@dataclass(frozen=True, eq=False)
class FeatureOp(Op):
    """An operation with a feature table ``features``, (n_steps, m) with -1 for none, on the CPU.

    Attributes:
        dictionary: the features' dictionary.
        features: (n_steps, m) int64, padded with -1, or (m,) for all steps.
    """

    TABLES: ClassVar[tuple[str, ...]] = ()
    """Attributes with a value for every entry of ``features``: given in the same shape, or as one number."""
    AT_LEAST_ZERO: ClassVar[tuple[str, ...]] = ()
    """Those of them that may not be negative, as codes are not."""

    dictionary: Dictionary
    features: TableLike

    def __post_init__(self) -> None:
        what = type(self).__name__
        features = feature_table(what, self.dictionary, self.features)
        object.__setattr__(self, "features", features)
        for name in self.TABLES:
            table = value_table(f"{what}: {name}", getattr(self, name), features)
            if name in self.AT_LEAST_ZERO and bool((table < 0).any()):
                raise InvalidIntervention(f"{what}: {name} go below 0; codes are at least 0.")
            object.__setattr__(self, name, table)
        if hasattr(self, "timesteps"):
            object.__setattr__(self, "timesteps", check_table(what, len(features), self._timesteps))

    @property
    def _timesteps(self) -> tuple[int, ...] | None:
        """The timestep of each row of the tables, for operations that have them."""
        return getattr(self, "timesteps", None)

    def to_record(self, pack: Pack) -> dict[str, Any]:
        tables = {name: pack(self.table(name)) for name in ("features", *self.TABLES)}
        return {"dictionary": dictionary_record(self.dictionary, pack)} | tables | {"timesteps": self._timesteps}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], unpack: Unpack) -> Self:
        return cls(**cls.fields_of(record, unpack), timesteps=timesteps_of(record))  # type: ignore[call-arg]

    @classmethod
    def fields_of(cls, record: Mapping[str, Any], unpack: Unpack) -> dict[str, Any]:
        """The dictionary and the tables in a recipe's record."""
        tables = {name: unpack(record[name]) for name in ("features", *cls.TABLES)}
        return {"dictionary": dictionary_of(record["dictionary"], unpack)} | tables

    def table(self, name: str) -> torch.Tensor:
        """One of the tables."""
        return torch.as_tensor(getattr(self, name))

    def chosen(self, x: torch.Tensor, context: StepContext) -> tuple[int, torch.Tensor, torch.Tensor]:
        """Row of the tables at this step, which of its entries are features, and those features."""
        what = type(self).__name__
        check_width(what, self.dictionary.W_dec.shape[1], x, context)
        self.at(x, context)  # a dictionary that reads two steps remembers this one, also where nothing is edited
        row = table_row(len(self.table("features")), self._timesteps, context, what)
        listed = self.table("features")[row]
        return row, listed >= 0, listed[listed >= 0]

    def codes(self, x: torch.Tensor, features: torch.Tensor, above: torch.Tensor, context: StepContext) -> torch.Tensor:
        """Codes (..., m) of a few features; 0 allowed where they are not above ``above``."""
        return feature_codes(self.at(x, context), x, features, above)

    def code(self, x: torch.Tensor, context: StepContext) -> torch.Tensor:
        """Whole codes (B, tokens, d_sae) of the rows."""
        code = self.at(x, context).encode(x.to(self.dictionary.W_dec.device)).float().to(x.device)
        return code if x.requires_grad else code.detach()

    def at(self, x: torch.Tensor, context: StepContext) -> Dictionary:
        """The dictionary of this step, to read rows x."""
        timed = self._timed
        if timed is None:
            return self.dictionary
        previous = None
        if timed.predictor is not None:
            previous = self._memory.previous((context.site, context.branch), timed.level_of(context.log_snr), x)
        return timed.at(context.log_snr, previous)

    @cached_property
    def _timed(self) -> TimedDictionary | None:
        """The dictionary, if time enters in it."""
        held = as_dictionary(self.dictionary) if hasattr(self.dictionary, "levels") else None
        return held if isinstance(held, TimedDictionary) else None

    @cached_property
    def _memory(self) -> RowMemory:
        return RowMemory()

    def write_back(
        self, x: torch.Tensor, dz: torch.Tensor, features: torch.Tensor, weight: Weight, context: StepContext
    ) -> torch.Tensor:
        """x + weight * dz times the features' directions, computed for the tokens whose code changes."""
        changed = (dz != 0).any(-1)
        if not bool(changed.any()):
            return x
        W = feature_directions(self.at(x, context), features).to(x.device, torch.float32)
        change = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        change[changed] = dz[changed].float() @ W
        return add_change(x, change, weight)

    def feature_set(self) -> set[int]:
        """All features that any step touches."""
        return set(self.table("features").flatten().tolist()) - {-1}
