"""Operations on features of a dictionary.

All of them write back ``x' = x + (z' - z) W_dec``: what the dictionary does not explain stays in place, and
where no code changes, x stays bit for bit. Which features, and by how much, may differ from step to step:
tables have one row a step and are padded with feature -1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

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
from probe.interventions.directions import AddDirection
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
    """Shared by operations with a feature table ``features``, (n_steps, m) with -1 for none, on the CPU."""

    dictionary: Dictionary
    features: TableLike

    def table(self, name: str) -> torch.Tensor:
        """One of the tables."""
        return torch.as_tensor(getattr(self, name))

    def chosen(self, x: torch.Tensor, context: StepContext) -> tuple[int, torch.Tensor, torch.Tensor]:
        """Row of the tables at this step, which of its entries are features, and those features."""
        what = type(self).__name__
        check_width(what, self.dictionary.W_dec.shape[1], x, context)
        self.at(x, context)  # a dictionary that reads two steps remembers this one, also where nothing is edited
        row = table_row(len(self.table("features")), getattr(self, "timesteps", None), context, what)
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


@dataclass(frozen=True, eq=False)
class ScaleFeatures(FeatureOp):
    """z_i' = multiplier_i(step) z_i where z_i > threshold_i(step), for the features i listed for the step.

    Multiplier 0 ablates, a negative one pushes away (SAeUron), 1 changes nothing.

    Attributes:
        dictionary: the features' dictionary.
        features: (n_steps, m) int64, padded with -1, or (m,) for all steps.
        multipliers: same shape, or one number.
        thresholds: same shape, or one number, >= 0.
        timesteps: the timestep of each row of the tables; needed to apply them at another step count.
    """

    kind: ClassVar[str] = "scale_features"
    multipliers: TableLike = 0.0
    thresholds: TableLike = 0.0
    timesteps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", feature_table("ScaleFeatures", self.dictionary, self.features))
        for name in ("multipliers", "thresholds"):
            table = value_table(f"ScaleFeatures: {name}", getattr(self, name), self.table("features"))
            object.__setattr__(self, name, table)
        if bool((self.table("thresholds") < 0).any()):
            raise InvalidIntervention("ScaleFeatures: a threshold is negative; codes are at least 0.")
        object.__setattr__(self, "timesteps", check_table("ScaleFeatures", len(self.table("features")), self.timesteps))

    def apply(self, x: torch.Tensor, weight: Weight, context: StepContext) -> torch.Tensor:
        row, used, features = self.chosen(x, context)
        gain = self.table("multipliers")[row][used].to(x.device) - 1.0
        active = gain != 0
        if not bool(active.any()):
            return x
        features, gain = features[active.cpu()], gain[active]
        above = self.table("thresholds")[row][used].to(x.device)[active]
        z = self.codes(x, features, above, context)
        return self.write_back(x, torch.where(z > above, gain * z, 0.0), features, weight, context)

    def to_record(self, pack: Pack) -> dict[str, Any]:
        return {
            "dictionary": dictionary_record(self.dictionary, pack),
            "features": pack(self.table("features")),
            "multipliers": pack(self.table("multipliers")),
            "thresholds": pack(self.table("thresholds")),
            "timesteps": self.timesteps,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any], unpack: Unpack) -> ScaleFeatures:
        dictionary = dictionary_of(record["dictionary"], unpack)
        tables = (unpack(record[name]) for name in ("features", "multipliers", "thresholds"))
        return cls(dictionary, *tables, timesteps=timesteps_of(record))


@dataclass(frozen=True, eq=False)
class SetFeatures(FeatureOp):
    """z_i' = value_i(step) at every token, for the features i listed for the step.

    Attributes:
        dictionary: the features' dictionary.
        features: (n_steps, m) int64, padded with -1, or (m,) for all steps.
        values: same shape, or one number, >= 0.
        timesteps: the timestep of each row of the tables; needed to apply them at another step count.
    """

    kind: ClassVar[str] = "set_features"
    values: TableLike = 0.0
    timesteps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", feature_table("SetFeatures", self.dictionary, self.features))
        object.__setattr__(self, "values", value_table("SetFeatures: values", self.values, self.table("features")))
        object.__setattr__(self, "timesteps", check_table("SetFeatures", len(self.table("features")), self.timesteps))

    def apply(self, x: torch.Tensor, weight: Weight, context: StepContext) -> torch.Tensor:
        row, used, features = self.chosen(x, context)
        if not len(features):
            return x
        values = self.table("values")[row][used].to(x.device)
        z = self.codes(x, features, torch.zeros(len(features)), context)
        return self.write_back(x, values - z, features, weight, context)

    def clash(self, other: Op) -> str | None:
        if isinstance(other, SetFeatures) and other.dictionary is self.dictionary:
            shared = self.feature_set() & other.feature_set()
            if shared:
                return f"both set feature {', '.join(map(str, sorted(shared)[:5]))}"
        return super().clash(other)

    def to_record(self, pack: Pack) -> dict[str, Any]:
        return {
            "dictionary": dictionary_record(self.dictionary, pack),
            "features": pack(self.table("features")),
            "values": pack(self.table("values")),
            "timesteps": self.timesteps,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any], unpack: Unpack) -> SetFeatures:
        dictionary = dictionary_of(record["dictionary"], unpack)
        return cls(dictionary, unpack(record["features"]), unpack(record["values"]), timesteps_of(record))


@dataclass(frozen=True, eq=False)
class ClampFeatures(FeatureOp):
    """z_i' = min(max(z_i, low_i(step)), high_i(step)), for the features i listed for the step.

    Attributes:
        dictionary: the features' dictionary.
        features: (n_steps, m) int64, padded with -1, or (m,) for all steps.
        low, high: same shape, or one number; 0 <= low <= high.
        timesteps: the timestep of each row of the tables; needed to apply them at another step count.
    """

    kind: ClassVar[str] = "clamp_features"
    low: TableLike = 0.0
    high: TableLike = 0.0
    timesteps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", feature_table("ClampFeatures", self.dictionary, self.features))
        for name in ("low", "high"):
            table = value_table(f"ClampFeatures: {name}", getattr(self, name), self.table("features"))
            object.__setattr__(self, name, table)
        low, high = self.table("low"), self.table("high")
        if bool((low < 0).any()) or bool((high < low).any()):
            raise InvalidIntervention("ClampFeatures: expected 0 <= low <= high everywhere; codes are at least 0.")
        object.__setattr__(self, "timesteps", check_table("ClampFeatures", len(self.table("features")), self.timesteps))

    def apply(self, x: torch.Tensor, weight: Weight, context: StepContext) -> torch.Tensor:
        row, used, features = self.chosen(x, context)
        if not len(features):
            return x
        low, high = (self.table(name)[row][used].to(x.device) for name in ("low", "high"))
        # codes below high stay, so they need not be known where no lower end asks for them
        above = torch.where(low > 0, 0.0, high)
        z = self.codes(x, features, above, context)
        return self.write_back(x, z.clamp(low, high) - z, features, weight, context)

    def to_record(self, pack: Pack) -> dict[str, Any]:
        return {
            "dictionary": dictionary_record(self.dictionary, pack),
            "features": pack(self.table("features")),
            "low": pack(self.table("low")),
            "high": pack(self.table("high")),
            "timesteps": self.timesteps,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any], unpack: Unpack) -> ClampFeatures:
        dictionary = dictionary_of(record["dictionary"], unpack)
        tables = (unpack(record[name]) for name in ("features", "low", "high"))
        return cls(dictionary, *tables, timesteps=timesteps_of(record))


def ablate_features(
    dictionary: Dictionary, features: TableLike, *, timesteps: tuple[int, ...] | None = None
) -> ScaleFeatures:
    """Set features to 0 where they are on.

    Args:
        dictionary: the features' dictionary.
        features: (n_steps, m) int64, padded with -1, or (m,) for all steps.
        timesteps: the timestep of each row of the table; needed to apply it at another step count.
    """
    return ScaleFeatures(dictionary, features, 0.0, timesteps=timesteps)


def add_feature(
    dictionary: Dictionary,
    feature: int,
    *,
    unit: str = "raw",
    scale: TableLike | None = None,
    timesteps: tuple[int, ...] | None = None,
) -> AddDirection:
    """Steer along a feature's direction, whether the feature is on or not: x' = x + strength * scale(step) *
    d_f.

    Args:
        dictionary: the feature's dictionary.
        feature: its index.
        unit: what strength 1 means: ``raw`` (code 1), ``p99`` (the 99th percentile of the feature's code
            where it is on) or ``std`` (the site's standard deviation).
        scale: the size of the unit, a number or (n_steps,); None for ``raw``.
        timesteps: the timestep of each entry of ``scale``; needed to apply it at another step count.

    Returns:
        The operation. It holds the direction alone, so a recipe of it needs no dictionary.
    """
    check_one_site("add_feature", dictionary)
    d_sae = dictionary.W_dec.shape[0]
    if not 0 <= feature < d_sae:
        raise InvalidIntervention(f"add_feature: feature {feature!r}; the dictionary has 0 to {d_sae - 1}.")
    return AddDirection(dictionary.W_dec[feature].detach().cpu().clone(), unit, scale, timesteps)
