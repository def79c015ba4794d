"""Everything that determines a collection, fixed before it runs.

The plan says which prompts, seeds and steps are run in which batches, so that any rerun on the same kind of
CPU, also after a kill, writes the same bytes. Its content hash names the collection.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from probe.capture.sites import Site, resolve_sites
from probe.errors import EmptyPrompts, InvalidPlan
from probe.model.fingerprint import model_name
from probe.model.generate import generation_defaults
from probe.model.pipeline import Pipeline
from probe.model.steps import BRANCHES

DTYPES = ("float16", "float32", "bfloat16")
_MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class CapturePlan:
    """A collection of activations.

    Attributes:
        model: the model's short name (``probe.model.model_name``).
        sites: full site names, such as ``unet.mid_block:out``.
        prompts: one for each sample.
        seeds: seed of each sample's initial noise.
        labels: for each labelled factor, one value a sample.
        steps: denoising steps.
        guidance: guidance scale.
        dtype: stored type, ``float16``, ``float32`` or ``bfloat16``.
        batch_size: samples in one call of the pipeline.
        branches: guidance branches to keep, of ``uncond`` and ``cond``.
        compression: None, or ``zstd``.
        images: whether the generated images are saved beside the activations.
        max_samples_per_shard: bound on a shard, which is what a killed run loses at most; shards of large maps are
            smaller, so that memory stays bounded.
    """

    model: str
    sites: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    steps: int = 20
    guidance: float = 2.0
    dtype: str = "float16"
    batch_size: int = 16
    branches: tuple[str, ...] = BRANCHES
    compression: str | None = None
    images: bool = True
    max_samples_per_shard: int = 64

    def __post_init__(self) -> None:
        for name in ("sites", "prompts", "seeds", "branches"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "labels", {str(k): tuple(map(str, v)) for k, v in self.labels.items()})
        object.__setattr__(self, "guidance", float(self.guidance))
        if not self.prompts:
            raise EmptyPrompts("plan: there are no prompts; give at least one.")
        if not self.sites:
            raise InvalidPlan("plan: there are no sites; name at least one, such as 'mid_block'.")
        if len(self.seeds) != len(self.prompts):
            raise InvalidPlan(f"plan: {len(self.prompts)} prompts but {len(self.seeds)} seeds; give one seed a prompt.")
        for seed in self.seeds:
            if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= _MAX_SEED:
                raise InvalidPlan(f"plan: seed {seed!r} is not an integer from 0 to 2**63 - 1.")
        for factor, values in self.labels.items():
            if not factor.isidentifier():
                raise InvalidPlan(f"plan: label {factor!r} is not a plain name (letters, digits and _).")
            if len(values) != len(self.prompts):
                raise InvalidPlan(f"plan: label {factor!r} has {len(values)} values for {len(self.prompts)} prompts.")
        for name in ("steps", "batch_size", "max_samples_per_shard"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidPlan(f"plan: {name} must be an integer of at least 1, got {value!r}.")
        if not 0.0 <= self.guidance < float("inf"):
            raise InvalidPlan(f"plan: guidance must be a finite number of at least 0, got {self.guidance!r}.")
        if self.dtype not in DTYPES:
            raise InvalidPlan(f"plan: dtype {self.dtype!r}; expected one of {', '.join(DTYPES)}.")
        if not self.branches or set(self.branches) - set(BRANCHES) or len(set(self.branches)) != len(self.branches):
            raise InvalidPlan(f"plan: branches {self.branches!r}; expected one or both of {', '.join(BRANCHES)}.")

    @classmethod
    def for_pipeline(
        cls,
        pipe: Pipeline,
        sites: str | Site | Iterable[str | Site],
        prompts: Sequence[str],
        *,
        seeds: Sequence[int] | None = None,
        first_seed: int = 0,
        labels: Mapping[str, Sequence[str]] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        branches: Sequence[str] | None = None,
        **options: Any,
    ) -> CapturePlan:
        """A plan with names completed and the model's own defaults filled in.

        Args:
            pipe: the pipeline that will be run.
            sites: site names as people type them (see ``resolve_sites``).
            prompts: one for each sample.
            seeds: one for each prompt; ``first_seed``, ``first_seed + 1``, ... if None.
            first_seed: see ``seeds``.
            labels: for each factor, one value a prompt.
            steps, guidance: the model's defaults if None.
            branches: both, or only ``cond`` where the guidance scale is at most 1, if None.
            **options: ``dtype``, ``batch_size``, ``compression``, ``images``, ``max_samples_per_shard``.
        """
        if isinstance(prompts, str):
            raise InvalidPlan(f"plan: prompts must be a list of strings, got the string {prompts!r}.")
        default = generation_defaults(pipe)
        scale = default.guidance if guidance is None else float(guidance)
        if branches is None:
            branches = BRANCHES if scale > 1.0 else ("cond",)
        return cls(
            model=model_name(pipe),
            sites=tuple(str(site) for site in resolve_sites(pipe, sites)),
            prompts=tuple(prompts),
            seeds=tuple(range(first_seed, first_seed + len(prompts)) if seeds is None else seeds),
            labels={name: tuple(values) for name, values in (labels or {}).items()},
            steps=default.steps if steps is None else steps,
            guidance=scale,
            branches=tuple(branches),
            **options,
        )

    def batches(self, samples: range) -> list[range]:
        """The calls of the pipeline that make up a shard; batches never cross a shard's border."""
        return [
            range(start, min(start + self.batch_size, samples.stop))
            for start in range(samples.start, samples.stop, self.batch_size)
        ]

    def record(self) -> dict[str, Any]:
        """The plan as the store keeps it: JSON values, the sample table replaced by its hash."""
        plan = asdict(self)
        samples = {name: plan.pop(name) for name in ("prompts", "seeds", "labels")}
        plan = json.loads(json.dumps(plan))
        return plan | {
            "n_samples": len(self.prompts),
            "samples_hash": _hash(samples),
            "plan_hash": self.content_hash(),
        }

    def content_hash(self) -> str:
        """SHA-256 over all fields, hexadecimal."""
        return _hash(asdict(self))

    def to_json(self) -> str:
        """JSON with all fields."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> CapturePlan:
        """Inverse of ``to_json``.

        Raises:
            InvalidPlan: not the JSON of a plan.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise InvalidPlan(f"plan: this is not JSON: {error}.") from error
        names = {f.name for f in fields(cls)}
        if not isinstance(data, dict) or set(data) != names:
            found = sorted(map(str, data)) if isinstance(data, dict) else type(data).__name__
            raise InvalidPlan(f"plan: found the fields {found}, expected {sorted(names)}.")
        return cls(**data)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
