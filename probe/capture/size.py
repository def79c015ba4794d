"""What a collection takes on disk, known before it runs, and what would take less.

Counted are the lengths of all files of the store: shard files (exact without compression, an upper bound with it),
commit records, metadata, sample table, and the images and masks beside them. File systems round every file up to
whole blocks, which ``check_fits`` allows for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from activations_store import StoreSpec
from activations_store.storage.objects import ObjectPath, Place
from probe.capture.memory import available_memory
from probe.capture.recording import Recording
from probe.capture.source import Source, spec_of, store_record
from probe.errors import NotEnoughMemory, NotEnoughSpace

BLOCK_BYTES = 4096
SHARDS_HELD = 4
"""Shards in memory at most: one is filled, two wait, one is written."""
_FINGERPRINT_BYTES = 800
_ARRAY_METADATA_BYTES = 800


class Cheaper(NamedTuple):
    """A setting that takes less disk.

    Attributes:
        setting: what to change: a field of the plan and its value, such as ``pool='mean'``, or fewer steps.
        total_bytes: of the whole store with this change alone.
    """

    setting: str
    total_bytes: int


@dataclass(frozen=True)
class DiskUse:
    """Bytes of all files of a complete store.

    Attributes:
        by_site: shard files of each site.
        records: commit records.
        metadata: store.json and the arrays' descriptions.
        samples: the sample table.
        images: images and masks; None if they have not been measured.
        n_files: number of files.
    """

    by_site: Mapping[str, int]
    records: int
    metadata: int
    samples: int
    images: int | None
    n_files: int

    @property
    def total(self) -> int:
        """Sum of all that is known."""
        return sum(self.by_site.values()) + self.records + self.metadata + self.samples + (self.images or 0)


def disk_use(source: Source, *, image_bytes: float | None = None, n_image_files: int = 0) -> DiskUse:
    """Size of a source's store.

    Args:
        source: what is collected.
        image_bytes: images and masks of one sample, on average; None if unknown.
        n_image_files: files of images and masks.
    """
    spec = spec_of(source)
    by_site = spec.bytes_by_site()
    record = json.dumps(store_record(source), separators=(",", ":"))
    metadata = len(spec.to_json()) + len(record) + _FINGERPRINT_BYTES + _ARRAY_METADATA_BYTES * len(spec.sites)
    sink = pa.BufferOutputStream()
    pq.write_table(sample_table(source.plan), sink, compression="zstd")
    images = None if image_bytes is None else round(image_bytes * spec.n_samples)
    records = spec.n_bytes - sum(by_site.values())
    return DiskUse(by_site, records, metadata, sink.tell(), images, spec.n_files + n_image_files)


def sample_table(plan: Recording) -> pa.Table:
    """The plan's samples as the store keeps them: sample, prompt, seed, ``label_<factor>`` and other columns."""
    columns: dict[str, pa.Array] = {
        "sample": pa.array(range(plan.n_samples), pa.int64()),
        "prompt": pa.array(plan.prompts, pa.string()),
        "seed": pa.array(plan.seeds, pa.int64()),
    }
    columns |= {f"label_{factor}": pa.array(values, pa.string()) for factor, values in plan.labels.items()}
    columns |= {name: pa.array(values, pa.string()) for name, values in plan.columns().items()}
    return pa.table(columns)


def cheaper_settings(source: Source, rest: int = 0) -> list[Cheaper]:
    """Settings that would take less disk, each alone, cheapest last.

    Args:
        source: what is collected.
        rest: bytes that none of them changes (images).
    """
    plan, steps, shapes = source.plan, source.steps, source.observed.shapes
    changes: list[dict[str, Any]] = [{"branches": ("cond",)}] if len(plan.branches) > 1 else []
    changes += [{"dtype": dtype} for dtype in ("float16", "int8")[plan.dtype != "float32" :]]
    most = max(shape.tokens for shape in shapes.values())
    if plan.pool is None:
        changes += [{"tokens": n} for n in (256, 64, 16) if n < min(most, plan.tokens or most)]
        changes += [{"pool": "mean"}] if most > 1 else []
    tried: list[tuple[str, Recording, tuple[int, ...]]] = []
    if len(steps) > 1:
        kept = steps[:: 2 if len(steps) < 8 else 4]
        tried.append((f"{len(kept)} of the {len(steps)} steps", plan, kept))
    for change in changes:
        (name,) = change
        alone = {"tokens": None} if name == "pool" else {}
        tried.append((f"{name}={change[name]!r}", replace(plan, **alone, **change), steps))
    now = spec_of(source).n_bytes
    found = [Cheaper(name, source.observed.spec(other, kept).n_bytes + rest) for name, other, kept in tried]
    return sorted((c for c in found if c.total_bytes < now + rest), key=lambda c: -c.total_bytes)


def buffer_bytes(spec: StoreSpec, plan: Recording) -> int:
    """Bytes of memory for shards at most: four in the buffers' type, and one as it is encoded for the disk."""
    values = sum(
        site.tokens * site.channels * spec.samples_per_shard * spec.n_steps * len(spec.branches) for site in spec.sites
    )
    held = min(SHARDS_HELD, spec.n_shards) * values * (2 if plan.buffer_dtype == "float16" else 4)
    encoded = 0 if plan.buffer_dtype == plan.dtype else spec.shard_bytes()
    return held + encoded


def check_fits(source: Source, use: DiskUse, out: Place, *, share: float = 1.0) -> None:
    """Refuse a collection that does not fit the disk or the memory.

    Args:
        source: what is collected.
        use: its size.
        out: folder that will hold the store; it need not exist. An object store has room.
        share: of the store that is still to be written.

    Raises:
        NotEnoughSpace, NotEnoughMemory: with what is needed, what there is, and cheaper settings.
    """
    spec = spec_of(source)
    # What zstd saves is not known before; only what cannot fit even at half the size is refused.
    known = use.total if source.plan.compression is None else use.total // 2
    needed = round((known + use.n_files * BLOCK_BYTES // 2) * share)
    free = None if isinstance(out, ObjectPath) else free_space(out)
    if free is not None and needed > free:
        options = cheaper_settings(source, use.total - spec.n_bytes)
        fewer = int(spec.n_samples * free / needed)
        lines = [f"{c.setting} takes {human_bytes(c.total_bytes * share)}" for c in options]
        lines += [f"{fewer} samples would fit"] if fewer else []
        raise NotEnoughSpace(
            f"collect: {human_bytes(needed)} are still to be written to {str(out)!r}, but only {human_bytes(free)} are "
            f"free. Cheaper: {'; '.join(lines) or 'nothing'}. Or choose another disk."
        )
    memory = buffer_bytes(spec, source.plan) if share else 0
    available = available_memory()
    if available is not None and memory > available:
        least = buffer_bytes(replace_shard(source, 1), source.plan)
        cheaper = [c.setting for c in cheaper_settings(source)]
        raise NotEnoughMemory(
            f"collect: {human_bytes(memory)} of memory are needed for shards of {spec.samples_per_shard} samples, but "
            f"only {human_bytes(available)} are available. Cheaper: shards of one sample (max_samples_per_shard=1 of a "
            f"plan in Python) take {human_bytes(least)}; or one of {'; '.join(cheaper)}."
        )


def replace_shard(source: Source, samples: int) -> StoreSpec:
    """The source's store with other shards."""
    return source.observed.spec(replace(source.plan, max_samples_per_shard=samples), source.steps)


def free_space(out: Path) -> int:
    """Bytes free on the disk that holds ``out`` or will hold it."""
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def human_bytes(n: float) -> str:
    """Such as ``"1.25 GB"`` (decimal units)."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.4g} TB"


def human_seconds(seconds: float) -> str:
    """Such as ``"3 min"``."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
