"""What a store holds, fixed before the first byte is written: sites, samples, steps, branches, shards.

A `StoreSpec` knows the size on disk of everything in advance, goes to JSON and back, and its content hash
names it. It never changes after creation: another shape is another store.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

import numpy as np

from activations_store.errors import InvalidSpec, UnknownSite, explain
from activations_store.format.chunking import ChunkGrid
from activations_store.format.site_spec import SiteSpec, check_count
from activations_store.storage import jsonio

MAX_SHARD_BYTES = 256 * 1024 * 1024
"""Default bound on one shard of all sites together: what a writer holds in memory for one pending shard."""

LOG_SNR_LIMIT = 30.0
"""log_snr is stored inside [-30, 30].

Schedules that reach pure noise have -inf, which JSON and plots cannot carry.
"""

# Limits that a store.json must respect before anything is allocated or opened for it.
MAX_SITES = 1024
MAX_SAMPLES = 2**31 - 1
MAX_STEPS = 10_000
MAX_BRANCHES = 16
MAX_SAMPLES_PER_SHARD = 2**20
MAX_CHUNKS_PER_SHARD = 2**22
MAX_SHARDS = 10**7

COMPRESSIONS = (None, "zstd")

_BRANCH_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True)
class StoreSpec:
    """The whole store.

    Attributes:
        sites: the recorded tensors, in order; names are unique.
        n_samples: generations; one row each in the sample table.
        timesteps: the scheduler's timestep t at each step, in sampling order (step 0 = most noise).
        log_snr: log(abar / (1 - abar)) at each step, clipped to [-30, 30].
        branches: halves of classifier-free guidance that are recorded.
        samples_per_shard: samples in one shard; `StoreSpec.plan` chooses it by size.
        compression: None, or "zstd" (saves about a tenth on activations, costs 2 to 4x in speed).
        ragged: whether maps may be missing: trajectories that ended early, modules that were skipped, samples
            with fewer steps. Their commit records then say which maps are there.
    """

    sites: tuple[SiteSpec, ...]
    n_samples: int
    timesteps: tuple[int | float, ...]
    log_snr: tuple[float, ...]
    branches: tuple[str, ...] = ("uncond", "cond")
    samples_per_shard: int = 64
    compression: str | None = None
    ragged: bool = False

    def __post_init__(self) -> None:
        for name in ("sites", "timesteps", "log_snr", "branches"):
            if isinstance(getattr(self, name), str):  # tuple("cond") would be four branches
                raise InvalidSpec(explain(f"{name} is a string", expected="a tuple"))
        object.__setattr__(self, "sites", tuple(self.sites))
        object.__setattr__(self, "branches", tuple(self.branches))
        if not all(isinstance(site, SiteSpec) for site in self.sites):
            raise InvalidSpec(explain("sites holds something that is not a SiteSpec", expected="SiteSpec objects"))
        object.__setattr__(self, "timesteps", tuple(_number(t, "timesteps") for t in self.timesteps))
        clipped = (_number(s, "log_snr", infinite=True) for s in self.log_snr)
        object.__setattr__(self, "log_snr", tuple(max(-LOG_SNR_LIMIT, min(LOG_SNR_LIMIT, float(s))) for s in clipped))
        check_count("n_samples", self.n_samples, MAX_SAMPLES)
        check_count("samples_per_shard", self.samples_per_shard, MAX_SAMPLES_PER_SHARD)
        check_count("the number of sites", len(self.sites), MAX_SITES)
        check_count("the number of steps (timesteps)", len(self.timesteps), MAX_STEPS)
        check_count("the number of branches", len(self.branches), MAX_BRANCHES)
        check_count("n_samples / samples_per_shard", self.n_shards, MAX_SHARDS)
        if len(self.log_snr) != len(self.timesteps):
            raise InvalidSpec(
                explain(
                    "log_snr and timesteps have different lengths",
                    found=f"{len(self.log_snr)} and {len(self.timesteps)}",
                    expected="one value each a step",
                )
            )
        for before, after in pairwise(sorted(self._folded_names())):
            if before == after:
                raise InvalidSpec(explain("A name is used twice", found=repr(after), expected="unique names"))
        for branch in self.branches:
            if not isinstance(branch, str) or not _BRANCH_NAME.fullmatch(branch):
                raise InvalidSpec(
                    explain(
                        "A branch's name cannot be used",
                        found=repr(branch)[:60],
                        expected="e.g. 'cond', 'uncond'",
                    )
                )
        if self.compression not in COMPRESSIONS:
            raise InvalidSpec(
                explain("Unknown compression", found=repr(self.compression)[:60], expected="None or 'zstd'")
            )
        if not isinstance(self.ragged, bool):
            raise InvalidSpec(explain("ragged is no truth value", found=repr(self.ragged)[:60], expected="True, False"))
        for site in self.sites:
            n_chunks = math.prod(self.grid(site.name).chunks_per_shard)
            if n_chunks > MAX_CHUNKS_PER_SHARD:
                raise InvalidSpec(
                    explain(
                        f"A shard of site {site.name} would have too many chunks",
                        found=n_chunks,
                        expected=f"at most {MAX_CHUNKS_PER_SHARD}",
                        next_step="lower samples_per_shard",
                    )
                )

    def _folded_names(self) -> list[str]:
        return [f"site {s.dir_name.casefold()}" for s in self.sites] + [f"branch {b}" for b in self.branches]

    @classmethod
    def plan(
        cls,
        sites: tuple[SiteSpec, ...],
        n_samples: int,
        timesteps: tuple[int | float, ...],
        log_snr: tuple[float, ...],
        branches: tuple[str, ...] = ("uncond", "cond"),
        compression: str | None = None,
        *,
        max_shard_bytes: int = MAX_SHARD_BYTES,
        max_samples_per_shard: int = 64,
        ragged: bool = False,
    ) -> Self:
        """A spec whose shards (all sites together) stay within `max_shard_bytes`: the largest power of two that fits.

        One sample is the least, also when it alone is larger. A shard is also what a killed run loses at
        most, hence the bound on samples.
        """
        check_count("n_samples", n_samples, MAX_SAMPLES)
        one = cls(sites, 1, timesteps, log_snr, branches, 1, compression)
        # Counted without padding and index: those are below a thousandth, and depend on the choice being made.
        sample_bytes = sum(s.map_bytes for s in one.sites) * len(one.timesteps) * len(one.branches)
        size = 1
        while size * 2 <= max_samples_per_shard and size * 2 * sample_bytes <= max_shard_bytes and size < n_samples:
            size *= 2
        return cls(sites, n_samples, timesteps, log_snr, branches, size, compression, ragged)

    @property
    def n_steps(self) -> int:
        """Denoising steps."""
        return len(self.timesteps)

    @property
    def n_shards(self) -> int:
        """Shards; every site has one file in each."""
        return -(-self.n_samples // self.samples_per_shard)

    @property
    def n_files(self) -> int:
        """Files of the complete store (shards, records, metadata, sample table, locks)."""
        return self.n_shards * (len(self.sites) + 1) + len(self.sites) + 5

    @cached_property
    def _by_name(self) -> dict[str, SiteSpec]:
        return {site.name: site for site in self.sites}

    def site(self, name: str) -> SiteSpec:
        """The site of that name; raises `UnknownSite` with the names there are."""
        try:
            return self._by_name[name]
        except KeyError:
            raise UnknownSite(
                explain(f"No site {name!r} in the store", expected="one of " + ", ".join(self._by_name))
            ) from None

    def grid(self, site: str) -> ChunkGrid:
        """Chunk and shard arithmetic of one site's array."""
        s = self.site(site)
        return ChunkGrid(
            self.n_samples,
            self.n_steps,
            len(self.branches),
            s.tokens,
            s.stored_channels,
            self.samples_per_shard,
            s.stored_dtype.itemsize,
        )

    def shard_samples(self, shard: int) -> range:
        """Sample numbers of a shard."""
        if not 0 <= shard < self.n_shards:
            raise InvalidSpec(explain(f"No shard {shard}", expected=f"0 to {self.n_shards - 1}"))
        start = shard * self.samples_per_shard
        return range(start, min(start + self.samples_per_shard, self.n_samples))

    def shard_shape(self, site: str, shard: int) -> tuple[int, int, int, int, int]:
        """Shape of the array that `StoreWriter.write_shard` takes for a site and shard."""
        s = self.site(site)
        return (len(self.shard_samples(shard)), self.n_steps, len(self.branches), s.tokens, s.channels)

    def bytes_by_site(self) -> dict[str, int]:
        """Bytes of shard files a site: exact without compression, an upper bound in practice with it."""
        return {site.name: self.grid(site.name).total_bytes for site in self.sites}

    @property
    def n_bytes(self) -> int:
        """Bytes of all shard files and, estimated, of the commit records (which list a checksum a chunk)."""
        n_chunks = sum(math.prod(self.grid(s.name).chunks_per_shard) for s in self.sites) * self.n_shards
        per_site = 400 + 8 * self.n_steps
        if self.ragged:
            per_site += self.samples_per_shard * self.n_steps * len(self.branches) // 6
        return sum(self.bytes_by_site().values()) + 6 * n_chunks + self.n_shards * (700 + per_site * len(self.sites))

    def shard_bytes(self, shard: int = 0) -> int:
        """Bytes of one shard of all sites, uncompressed: what one pending shard costs in memory, nearly."""
        return sum(self.grid(site.name).file_bytes(shard) for site in self.sites)

    def to_dict(self) -> dict[str, Any]:
        """A dict of JSON values; `ragged` is there only when it is true."""
        values = asdict(self)
        if not self.ragged:
            del values["ragged"]
        return jsonio.normalise(values)

    def to_json(self) -> str:
        """Canonical JSON text."""
        return jsonio.canonical(self.to_dict()).decode()

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """The spec of a dict made by `to_dict`; unknown or missing keys raise `InvalidSpec`."""
        if isinstance(data, Mapping) and "ragged" not in data:
            data = {**data, "ragged": False}
        elif isinstance(data, Mapping) and data["ragged"] is not True:
            raise InvalidSpec(explain("ragged has one spelling", found=repr(data["ragged"])[:60], expected="true"))
        values = _exact_keys(data, cls)
        sites = values["sites"]
        for key in ("sites", "timesteps", "log_snr", "branches"):
            if not isinstance(values[key], list):
                raise InvalidSpec(explain(f"{key} is not a list", found=type(values[key]).__name__))
        if len(sites) > MAX_SITES or len(values["timesteps"]) > MAX_STEPS or len(values["log_snr"]) > MAX_STEPS:
            raise InvalidSpec(explain("The spec has too many sites or steps", expected=f"{MAX_SITES} and {MAX_STEPS}"))
        values["sites"] = tuple(
            SiteSpec(**{**site, "grid": tuple(site["grid"]) if isinstance(site["grid"], list) else site["grid"]})
            for site in (_exact_keys(s, SiteSpec) for s in sites)
        )
        return cls(**values)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The spec of a text made by `to_json`."""
        return cls.from_dict(jsonio.parse(text, "a store spec"))

    def content_hash(self) -> str:
        """SHA-256 of the canonical JSON."""
        return jsonio.content_hash(self.to_dict())


def _number(value: Any, what: str, *, infinite: bool = False) -> int | float:
    """`value` as an int (when it is one) or float; NaN is refused, infinity too unless `infinite`."""
    number = value.item() if isinstance(value, np.generic) else value
    try:
        size = float(number) if isinstance(number, int | float) and not isinstance(number, bool) else math.nan
    except OverflowError:  # an int beyond every float
        size = math.nan
    if math.isnan(size) or (math.isinf(size) and not infinite):
        raise InvalidSpec(explain(f"{what} holds a bad value", found=repr(value)[:60], expected="finite numbers"))
    return number


def _exact_keys(data: object, cls: type) -> dict[str, Any]:
    names = {f.name for f in fields(cls)}
    if not isinstance(data, Mapping) or set(data) != names:
        found = sorted(map(str, data))[:20] if isinstance(data, Mapping) else type(data).__name__
        raise InvalidSpec(explain(f"Not the fields of a {cls.__name__}", found=found, expected=sorted(names)))
    return dict(data)
