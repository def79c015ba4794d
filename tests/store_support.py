"""Small stores for the tests of `activations_store`: one definition, so that every test knows every value."""

import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import activations_store
from activations_store import ActivationStore, AsyncShardWriter, SiteSpec, StoreSpec, StoreWriter

FINGERPRINT = {"model_class": "Toy", "weights_hash": "abc", "dtype": "float32"}
PLAN = {"prompts": ["a cup", "a star"], "steps": 3, "guidance": 2.0}
REPO = Path(activations_store.__file__).resolve().parent.parent

JOINED = SiteSpec("unet.mid_block:out", 16, 8, (4, 4))
SPLIT = SiteSpec("unet.up_blocks.1:delta", 1000, 300, dtype="float32")
BITS = SiteSpec("text_encoder.layers.3:out", 7, 5, dtype="bfloat16")
QUANTISED = SiteSpec("q", 6, 5, dtype="int8")


def small_spec(
    *sites: SiteSpec,
    n_samples: int = 11,
    samples_per_shard: int = 4,
    compression: str | None = None,
    n_steps: int = 3,
    branches: tuple[str, ...] = ("uncond", "cond"),
) -> StoreSpec:
    """A spec with a last shard that is not full."""
    return StoreSpec(
        sites or (JOINED, BITS),
        n_samples=n_samples,
        timesteps=tuple(range(900, 900 - 100 * n_steps, -100)),
        log_snr=tuple(float(i) for i in range(n_steps)),
        branches=branches,
        samples_per_shard=samples_per_shard,
        compression=compression,
    )


LATE = replace(small_spec(JOINED), sites=(BITS, SiteSpec("late", 3, 4)), samples_per_shard=2)
"""A group that is added to such a store."""


def sample_table(spec: StoreSpec) -> pa.Table:
    """Prompts, seeds and two label columns."""
    numbers = np.arange(spec.n_samples)
    return pa.table(
        {
            "sample": numbers,
            "prompt": [f"a photo of number {i}" for i in numbers],
            "seed": numbers + 100,
            "label_object": [("cup", "star", "moon")[i % 3] for i in numbers],
            "label_style": [("flat", "neon")[i % 2] for i in numbers],
        }
    )


def site_values(spec: StoreSpec, site: str) -> np.ndarray:
    """All values of a site, float32, exact in its dtype: (n_samples, steps, branches, tokens, channels)."""
    s = spec.site(site)
    shape = (spec.n_samples, spec.n_steps, len(spec.branches), s.tokens, s.channels)
    rng = np.random.default_rng(len(site))
    return rng.integers(-128, 128, shape).astype(np.float32)


def shard_arrays(spec: StoreSpec, shard: int) -> dict[str, np.ndarray]:
    """What `write_shard` takes for a shard."""
    r = spec.shard_samples(shard)
    return {s.name: site_values(spec, s.name)[r.start : r.stop] for s in spec.sites}


def create(path: Path, spec: StoreSpec, **options: object) -> StoreWriter:
    """`StoreWriter.create` with the test's table, fingerprint and plan."""
    return StoreWriter.create(path, spec, sample_table(spec), fingerprint=FINGERPRINT, plan=PLAN, **options)  # type: ignore[arg-type]


def resume(path: Path, spec: StoreSpec) -> StoreWriter:
    """`StoreWriter.resume` with the same."""
    return StoreWriter.resume(path, spec=spec, fingerprint=FINGERPRINT, plan=PLAN)


def complete_store(path: Path, spec: StoreSpec) -> ActivationStore:
    """A store with every shard written."""
    with create(path, spec) as writer:
        for shard in writer.pending():
            writer.write_shard(shard, shard_arrays(spec, shard))
    return ActivationStore.open(path)


def extend(path: Path, name: str = "more", spec: StoreSpec = LATE, **changes: object) -> StoreWriter:
    """`StoreWriter.extend` with the test's fingerprint and plan."""
    return StoreWriter.extend(path, name, spec, **{"fingerprint": FINGERPRINT, "plan": PLAN, **changes})  # type: ignore[arg-type]


def write_pending(writer: StoreWriter) -> None:
    """Write what is left, and close."""
    with writer:
        for shard in writer.pending():
            writer.write_shard(shard, shard_arrays(writer.spec, shard))


def ragged_spec(*sites: SiteSpec) -> StoreSpec:
    """A spec in which maps may be missing, by default of three sites of different dtypes."""
    base = small_spec(*(sites or (JOINED, BITS, QUANTISED)))
    return replace(base, ragged=True)


def ragged_masks(spec: StoreSpec) -> dict[str, np.ndarray]:
    """Samples that stop early, by site; the second site is complete."""
    rng = np.random.default_rng(3)
    ends = rng.integers(0, spec.n_steps + 1, (spec.n_samples, len(spec.branches)))
    early = np.arange(spec.n_steps)[None, :, None] < ends[:, None, :]
    out = {site.name: np.roll(early, i, axis=0) for i, site in enumerate(spec.sites)}
    out[spec.sites[1 % len(spec.sites)].name][:] = True
    return out


def write_ragged(path: Path, spec: StoreSpec) -> ActivationStore:
    """A store of such a spec, without the maps that `ragged_masks` leaves out."""
    given = ragged_masks(spec)
    with create(path, spec) as writer, AsyncShardWriter(writer) as background:
        for shard in writer.pending():
            r = spec.shard_samples(shard)
            arrays = shard_arrays(spec, shard)
            for name, mask in given.items():
                arrays[name][~mask[r.start : r.stop]] = np.nan  # what lies there is ignored, NaN too
            background.submit(shard, arrays, {name: mask[r.start : r.stop] for name, mask in given.items()})
    return ActivationStore.open(path)


def tree_hashes(path: Path) -> dict[str, str]:
    """SHA-256 of every file under a folder, by relative path."""
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def child_environment() -> dict[str, str]:
    """Environment of a test's subprocess: this repository and the tests importable, one thread."""
    paths = [str(REPO), str(REPO / "tests")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


class FailAt:
    """Makes the k-th call of the wrapped functions raise; counts calls."""

    def __init__(self, k: int, error: BaseException) -> None:
        self.k, self.calls, self.error = k, 0, error

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def inner(*args: object, **kwargs: object) -> object:
            self.calls += 1
            if self.calls == self.k:
                raise self.error
            return function(*args, **kwargs)

        return inner


PYTHON = sys.executable
