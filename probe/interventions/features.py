"""Operations on single features of a dictionary: scale, set, clamp, ablate, add; see ``feature_op.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from probe.errors import InvalidIntervention
from probe.interventions.dictionary import Dictionary
from probe.interventions.directions import AddDirection
from probe.interventions.feature_op import FeatureOp, check_one_site
from probe.interventions.ops import Op, StepContext, TableLike, Weight


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
    TABLES: ClassVar[tuple[str, ...]] = ("multipliers", "thresholds")
    AT_LEAST_ZERO: ClassVar[tuple[str, ...]] = ("thresholds",)
    multipliers: TableLike = 0.0
    thresholds: TableLike = 0.0
    timesteps: tuple[int, ...] | None = None

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
    TABLES: ClassVar[tuple[str, ...]] = ("values",)
    AT_LEAST_ZERO: ClassVar[tuple[str, ...]] = ("values",)
    values: TableLike = 0.0
    timesteps: tuple[int, ...] | None = None

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
    TABLES: ClassVar[tuple[str, ...]] = ("low", "high")
    low: TableLike = 0.0
    high: TableLike = 0.0
    timesteps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.table("low"), self.table("high")
        if bool((low < 0).any()) or bool((high < low).any()):
            raise InvalidIntervention("ClampFeatures: expected 0 <= low <= high everywhere; codes are at least 0.")

    def apply(self, x: torch.Tensor, weight: Weight, context: StepContext) -> torch.Tensor:
        row, used, features = self.chosen(x, context)
        if not len(features):
            return x
        low, high = (self.table(name)[row][used].to(x.device) for name in ("low", "high"))
        # codes below high stay, so they need not be known where no lower end asks for them
        above = torch.where(low > 0, 0.0, high)
        z = self.codes(x, features, above, context)
        return self.write_back(x, z.clamp(low, high) - z, features, weight, context)


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
