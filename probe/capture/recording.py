"""What every collection has in common, fixed before it runs: the samples, the sites, and how they are kept.

A plan says which samples go through the model in which batches, so that any rerun on the same kind of CPU, also after
a kill, writes the same bytes. Its content hash names the collection. ``CapturePlan`` generates its samples,
``ImagePlan`` takes real images.

What is kept of a site's map is all its tokens, or the same few at every step and sample (``tokens``), or one row
that pools them (``pool``); see ``tokens.py`` for what that does to maps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Self

from probe.capture.tokens import POOLS
from probe.errors import EmptyPrompts, InvalidPlan
from probe.model.branches import BRANCHES

DTYPES = ("float16", "float32", "bfloat16", "int8")
ON_NONFINITE = ("refuse", "flag")
_MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Fields of every plan.

    Attributes:
        model: the model's short name (``probe.model.model_name``).
        sites: full site names, such as ``unet.mid_block:out``.
        prompts: one for each sample.
        seeds: seed of each sample's noise.
        labels: for each labelled factor, one value a sample.
        dtype: stored type, ``float16``, ``float32``, ``bfloat16``, or ``int8`` with a scale a row.
        batch_size: samples in one call of the pipeline.
        branches: guidance branches to keep, of ``uncond`` and ``cond``.
        compression: None, or ``zstd``.
        images: whether the images are saved beside the activations.
        max_samples_per_shard: bound on a shard, which is what a killed run loses at most; shards of large maps are
            smaller, so that memory stays bounded.
        tokens: tokens to keep of each site, the same at every sample, step and branch; None keeps all.
        token_seed: decides which tokens ``tokens`` keeps; sites with equally many tokens keep the same ones.
        pool: ``mean`` or ``max`` keeps one row a map, pooled over all tokens; None keeps rows.
        on_nonfinite: what NaN, infinity, or a value too large for ``dtype`` does: ``refuse`` stops the run and names
            site and step; ``flag`` stores it and counts it by site and step in the commit records.
    """

    model: str
    sites: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dtype: str = "float16"
    batch_size: int = 16
    branches: tuple[str, ...] = BRANCHES
    compression: str | None = None
    images: bool = True
    max_samples_per_shard: int = 64
    tokens: int | None = None
    token_seed: int = 0
    pool: str | None = None
    on_nonfinite: str = "refuse"

    SAMPLE_FIELDS: ClassVar[tuple[str, ...]] = ("prompts", "seeds", "labels")
    """Fields with one value a sample: the store keeps them in its sample table, and their hash in its plan."""
    PLACE_FIELDS: ClassVar[tuple[str, ...]] = ()
    """Fields that say where something lies on this machine, which is no part of what is collected."""

    def __post_init__(self) -> None:
        for name in ("sites", "prompts", "seeds", "branches"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "labels", {str(k): tuple(map(str, v)) for k, v in self.labels.items()})
        self._check_samples()
        self._check_kept()

    def _check_samples(self) -> None:
        if not self.prompts:
            raise EmptyPrompts("plan: there are no prompts; give at least one.")
        if len(self.seeds) != len(self.prompts):
            raise InvalidPlan(f"plan: {len(self.prompts)} prompts but {len(self.seeds)} seeds; give one seed a prompt.")
        for seed in self.seeds:
            if not is_count(seed, least=0) or seed > _MAX_SEED:
                raise InvalidPlan(f"plan: seed {seed!r} is not an integer from 0 to 2**63 - 1.")
        for factor, values in self.labels.items():
            if not (factor.isidentifier() and factor.isascii() and len(factor) <= 64):
                raise InvalidPlan(f"plan: label {factor!r} is not a plain name (a to z, digits and _, at most 64).")
            if len(values) != len(self.prompts):
                raise InvalidPlan(f"plan: label {factor!r} has {len(values)} values for {len(self.prompts)} prompts.")

    def _check_kept(self) -> None:
        if not self.sites:
            raise InvalidPlan("plan: there are no sites; name at least one, such as 'mid_block'.")
        self._check_counts("batch_size", "max_samples_per_shard")
        if self.dtype not in DTYPES:
            raise InvalidPlan(f"plan: dtype {self.dtype!r}; expected one of {', '.join(DTYPES)}.")
        if not self.branches or set(self.branches) - set(BRANCHES) or len(set(self.branches)) != len(self.branches):
            raise InvalidPlan(f"plan: branches {self.branches!r}; expected one or both of {', '.join(BRANCHES)}.")
        if self.tokens is not None:
            self._check_counts("tokens")
        if not is_count(self.token_seed, least=0):
            raise InvalidPlan(f"plan: token_seed must be an integer of at least 0, got {self.token_seed!r}.")
        if self.pool is not None and self.pool not in POOLS:
            raise InvalidPlan(f"plan: pool {self.pool!r}; expected None or one of {', '.join(POOLS)}.")
        if self.pool is not None and self.tokens is not None:
            raise InvalidPlan(
                f"plan: tokens={self.tokens} and pool={self.pool!r} exclude each other; give one of them."
            )
        if self.on_nonfinite not in ON_NONFINITE:
            raise InvalidPlan(f"plan: on_nonfinite {self.on_nonfinite!r}; expected {' or '.join(ON_NONFINITE)}.")

    def _check_counts(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not is_count(value, least=1):
                raise InvalidPlan(f"plan: {name} must be an integer of at least 1, got {value!r}.")

    @property
    def n_samples(self) -> int:
        """Samples of the collection."""
        return len(self.prompts)

    @property
    def buffer_dtype(self) -> str:
        """Type in which a shard waits in memory to be written.

        float16 where it is the stored type and anything that overflows is refused at once. To count overflow the
        writer has to see the values before they are rounded, bfloat16 has no numpy type, and int8 takes its scale
        from the whole row: these wait as float32.
        """
        return "float16" if self.dtype == "float16" and self.on_nonfinite == "refuse" else "float32"

    def batches(self, samples: range) -> list[range]:
        """The calls of the pipeline that make up a shard; batches never cross a shard's border."""
        return [
            range(start, min(start + self.batch_size, samples.stop))
            for start in range(samples.start, samples.stop, self.batch_size)
        ]

    def columns(self) -> dict[str, tuple[str, ...]]:
        """Text columns of the sample table beyond prompt, seed and labels."""
        return {}

    def record(self) -> dict[str, Any]:
        """The plan as the store keeps it: JSON values, the sample table replaced by its hash."""
        plan = self._content()
        samples = {name: plan.pop(name) for name in self.SAMPLE_FIELDS}
        plan = json.loads(json.dumps(plan))
        return plan | {
            "n_samples": self.n_samples,
            "samples_hash": _hash(samples),
            "plan_hash": self.content_hash(),
        }

    def content_hash(self) -> str:
        """SHA-256 over all fields but those that name a place on this machine, hexadecimal."""
        return _hash(self._content())

    def to_json(self) -> str:
        """JSON with all fields."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Inverse of ``to_json``.

        Raises:
            InvalidPlan: not the JSON of a plan of this kind.
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

    def _content(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name not in self.PLACE_FIELDS}


def is_count(value: Any, *, least: int) -> bool:
    """Whether a value is an integer (True is not) of at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
