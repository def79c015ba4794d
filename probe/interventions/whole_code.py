"""Operations that look at the whole code of a row, or at all rows of a map.

    norm-scaled   z_i' = gamma (|z| / |d_i|) z_i where z_i > threshold_i     SAEmnesia (2025, arXiv 2509.21379)
    flagged       rows where a listed feature is on are overwritten by other rows of the same map: the features are
                  only a detector, so there is no strength to choose         PER (2026, arXiv 2606.31699)
    gated         z_i' = gamma z_i in all rows but the first, for samples that the dictionary, so edited, no longer
                  reconstructs: mean (x - x_hat')^2 >= tau                   Interpret-then-Deactivate (2025,
                                                                              arXiv 2503.09447)

All write back x' = x + (z' - z) W_dec, as in ``features.py``. Costs the full encoder for every row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from probe.errors import InvalidIntervention
from probe.interventions.dictionary import feature_directions
from probe.interventions.features import FeatureOp, dictionary_of, dictionary_record, feature_table, value_table
from probe.interventions.ops import (
    Pack,
    StepContext,
    TableLike,
    Unpack,
    Weight,
    add_change,
    check_table,
    timesteps_of,
)
from probe.interventions.patching import overwrite


@dataclass(frozen=True, eq=False)
class NormScaleFeatures(FeatureOp):
    """z_i' = multiplier_i (|z| / |d_i|) z_i where z_i > threshold_i(step).

    Attributes:
        dictionary: the features' dictionary; d_i is its row of W_dec.
        features: (n_steps, m) int64, padded with -1, or (m,) for all steps.
        multipliers, thresholds: same shape, or one number.
        timesteps: the timestep of each row of the tables; needed to apply them at another step count.
    """

    kind: ClassVar[str] = "norm_scale_features"
    multipliers: TableLike = -1.0
    thresholds: TableLike = 0.0
    timesteps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _tables(self, "multipliers", "thresholds")

    def apply(self, x: torch.Tensor, weight: Weight, context: StepContext) -> torch.Tensor:
        row, used, features = self.chosen(x, context)
        if not len(features):
            return x
        gain, above = (self.table(name)[row][used].to(x.device) for name in ("multipliers", "thresholds"))
        code = self.code(x, context)
        z = code[..., features.to(code.device)]
        sizes = feature_directions(self.at(x, context), features).norm(dim=-1).to(x.device)
        new = gain * code.norm(dim=-1, keepdim=True) / sizes * z
        return self.write_back(x, torch.where(z > above, new - z, 0.0), features, weight, context)

    def to_record(self, pack: Pack) -> dict[str, Any]:
        return _record(self, pack, "multipliers", "thresholds")

    @classmethod
    def from_record(cls, record: Mapping[str, Any], unpack: Unpack) -> NormScaleFeatures:
        return cls(*_fields(record, unpack, "multipliers", "thresholds"), timesteps=timesteps_of(record))


@dataclass(frozen=True, eq=False)
class ReplaceFlagged(FeatureOp):
    """x'_p = x_q for rows p where any listed feature exceeds its threshold; q is a row where none does.

    q is drawn at random, the same draw for every sample, from the seed and the step. A map that is flagged all over is
    left as it is: there is nothing to take.

    Attributes:
        dictionary: the features' dictionary.
        features: (n_steps, m) int64, padded with -1, or (m,) for all steps.
        thresholds: same shape, or one number, >= 0.
        seed: of the draws.
        timesteps: the timestep of each row of the tables; needed to apply them at another step count.
    """

    kind: ClassVar[str] = "replace_flagged"
    thresholds: TableLike = 0.0
    seed: int = 0
    timesteps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _tables(self, "thresholds")

    def apply(self, x: torch.Tensor, weight: Weight, context: StepContext) -> torch.Tensor:
        row, used, features = self.chosen(x, context)
        if not len(features):
            return x
        above = self.table("thresholds")[row][used].to(x.device)
        flagged = (self.codes(x, features, above, context) > above).any(-1)  # (B, tokens)
        draws = torch.Generator().manual_seed(1_000_003 * self.seed + max(context.step, 0))
        chance = torch.randint(2**31, (x.shape[1],), generator=draws).to(x.device)
        new = x.clone()
        for sample, flags in enumerate(flagged):
            clean = (~flags).nonzero().squeeze(-1)
            if len(clean):
                new[sample, flags] = x[sample, clean[chance[flags] % len(clean)]]
        return overwrite(x, new, weight) if bool((new != x).any()) else x

    def to_record(self, pack: Pack) -> dict[str, Any]:
        return _record(self, pack, "thresholds") | {"seed": self.seed}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], unpack: Unpack) -> ReplaceFlagged:
        fields = _fields(record, unpack, "thresholds")
        return cls(*fields, seed=int(record["seed"]), timesteps=timesteps_of(record))


@dataclass(frozen=True, eq=False)
class DeactivateFeatures(FeatureOp):
    """z_i' = multiplier z_i in all rows but the first (the start token), for samples with mean (x - x_hat')^2 >= tau.

    Attributes:
        dictionary: the features' dictionary.
        features: (m,) int64.
        multiplier: -8 in the paper, -6 for styles.
        tau: the gate; 0 edits every sample. The mean is over rows and channels.
        keep_error: whether what the dictionary does not explain stays in place; False writes x_hat', as published.
    """

    kind: ClassVar[str] = "deactivate_features"
    multiplier: float = -8.0
    tau: float = 0.0
    keep_error: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", feature_table("DeactivateFeatures", self.dictionary, self.features))
        if not float(self.tau) >= 0 or self.table("features").shape[0] != 1:
            raise InvalidIntervention("DeactivateFeatures: expected tau of at least 0 and one set of features.")

    def apply(self, x: torch.Tensor, weight: Weight, context: StepContext) -> torch.Tensor:
        _, _, features = self.chosen(x, context)
        code = self.code(x, context)
        edited = code.clone()
        at = features.to(code.device)
        edited[:, 1:, at] *= self.multiplier
        rebuilt = self.at(x, context).decode(edited).to(x)
        gate = (x - rebuilt).square().mean((1, 2)) >= self.tau
        if not bool(gate.any()):
            return x
        if self.keep_error:
            dz = torch.where(gate[:, None, None], edited[..., at] - code[..., at], 0.0)
            return self.write_back(x, dz, features, weight, context)
        return add_change(x, torch.where(gate[:, None, None], rebuilt - x, 0.0), weight)

    def to_record(self, pack: Pack) -> dict[str, Any]:
        record = {"multiplier": self.multiplier, "tau": self.tau, "keep_error": self.keep_error}
        dictionary = {"dictionary": dictionary_record(self.dictionary, pack)}
        return dictionary | {"features": pack(self.table("features"))} | record

    @classmethod
    def from_record(cls, record: Mapping[str, Any], unpack: Unpack) -> DeactivateFeatures:
        dictionary = dictionary_of(record["dictionary"], unpack)
        fields = (float(record["multiplier"]), float(record["tau"]), bool(record["keep_error"]))
        return cls(dictionary, unpack(record["features"]), *fields)


def _tables(op: Any, *names: str) -> None:
    what = type(op).__name__
    object.__setattr__(op, "features", feature_table(what, op.dictionary, op.features))
    for name in names:
        object.__setattr__(op, name, value_table(f"{what}: {name}", getattr(op, name), op.features))
    if bool((op.thresholds < 0).any()):
        raise InvalidIntervention(f"{what}: a threshold is negative; codes are at least 0.")
    object.__setattr__(op, "timesteps", check_table(what, len(op.features), op.timesteps))


def _record(op: FeatureOp, pack: Pack, *names: str) -> dict[str, Any]:
    tables = {name: pack(op.table(name)) for name in ("features", *names)}
    return {"dictionary": dictionary_record(op.dictionary, pack), "timesteps": getattr(op, "timesteps")} | tables  # noqa: B009


def _fields(record: Mapping[str, Any], unpack: Unpack, *names: str) -> list[Any]:
    return [dictionary_of(record["dictionary"], unpack), *(unpack(record[name]) for name in ("features", *names))]
