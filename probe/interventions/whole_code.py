"""Operations that look at the whole code of a row, or at all rows of a map.

    norm-scaled   z_i' = gamma (|z| / |d_i|) z_i where z_i > threshold_i     SAEmnesia (2025, arXiv 2509.21379)
    flagged       rows where a listed feature is on are overwritten by other rows of the same map: the features are
                  only a detector, so there is no strength to choose         PER (2026, arXiv 2606.31699)
    gated         z_i' = gamma z_i in all rows but the first, for samples that the dictionary, so edited, no longer
                  reconstructs: mean (x - x_hat')^2 >= tau                   Interpret-then-Deactivate (2025,
                                                                              arXiv 2503.09447)

All write back x' = x + (z' - z) W_dec, as in ``feature_op.py``. Costs the full encoder for every row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from probe.errors import InvalidIntervention
from probe.interventions.dictionary import feature_directions
from probe.interventions.feature_op import FeatureOp
from probe.interventions.ops import Pack, StepContext, TableLike, Unpack, Weight, add_change, timesteps_of
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
    TABLES: ClassVar[tuple[str, ...]] = ("multipliers", "thresholds")
    AT_LEAST_ZERO: ClassVar[tuple[str, ...]] = ("thresholds",)
    multipliers: TableLike = -1.0
    thresholds: TableLike = 0.0
    timesteps: tuple[int, ...] | None = None

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
    TABLES: ClassVar[tuple[str, ...]] = ("thresholds",)
    AT_LEAST_ZERO: ClassVar[tuple[str, ...]] = ("thresholds",)
    thresholds: TableLike = 0.0
    seed: int = 0
    timesteps: tuple[int, ...] | None = None

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
        return super().to_record(pack) | {"seed": self.seed}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], unpack: Unpack) -> ReplaceFlagged:
        return cls(**cls.fields_of(record, unpack), seed=int(record["seed"]), timesteps=timesteps_of(record))


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
        super().__post_init__()
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
        record = super().to_record(pack) | {
            "multiplier": self.multiplier,
            "tau": self.tau,
            "keep_error": self.keep_error,
        }
        del record["timesteps"]  # one set of features for all steps
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any], unpack: Unpack) -> DeactivateFeatures:
        fields = cls.fields_of(record, unpack)
        multiplier, tau = float(record["multiplier"]), float(record["tau"])
        return cls(**fields, multiplier=multiplier, tau=tau, keep_error=bool(record["keep_error"]))
