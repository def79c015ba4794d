"""Commit records: the only evidence that a shard exists.

A record says, for each site, the shard file's size and SHA-256, the SHA-256 of the values, the crc32c of
every chunk, and how many values were NaN or infinite at each step; and which spec, plan, model and sample
table the shard belongs to. There is no time or host in it: the same run writes the same record.

The chunk checksums let a reader notice a shard that was replaced by another valid shard, which the checksums
inside the file cannot show.
"""

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from activations_store.errors import InvalidRecord, StoreError, explain
from activations_store.format.layout import FORMAT_VERSION, Layout, StoreInfo
from activations_store.format.spec import StoreSpec
from activations_store.storage import jsonio
from activations_store.storage.reading import names_in, read_small

RECORD_FORMAT = "denoscope-commit"
_HEX64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class SiteRecord:
    """One site's part of a shard.

    Attributes:
        n_bytes: size of the shard file.
        sha256: of the shard file.
        array_sha256: of the stored values as little-endian bytes in C order (sample, step, branch, token,
            channel), so it does not depend on zstd's version. None where the record has none: without compression
            the file is a function of the values.
        chunk_crc32c: (n_chunks,) uint32, crc32c of each chunk's stored bytes in file order.
        nan, inf, overflow: counts by step. `overflow` counts finite inputs that the stored dtype turned into
            infinity (they are in `inf` too).
        present: (samples, steps, branches) bool, which maps were recorded; None when all were. Only a ragged
            store has records with missing maps. Those hold the fill value and are not counted above.
    """

    n_bytes: int
    sha256: str
    array_sha256: str | None
    chunk_crc32c: np.ndarray
    nan: tuple[int, ...]
    inf: tuple[int, ...]
    overflow: tuple[int, ...]
    present: np.ndarray | None = None

    @property
    def values_sha256(self) -> str:
        """A hash that tells this shard's values from others of the same store."""
        return self.array_sha256 or self.sha256

    def to_dict(self) -> dict[str, Any]:
        """JSON values.

        Counts are lists by step, checksums base64 of little-endian uint32, `present` (when there is one) base64
        of its bits in C order, first in the highest bit, the last byte filled up with zeros.
        """
        values = {
            "n_bytes": self.n_bytes,
            "sha256": self.sha256,
            "chunk_crc32c": base64.b64encode(self.chunk_crc32c.astype("<u4").tobytes()).decode(),
            "nan": self.nan,
            "inf": self.inf,
            "overflow": self.overflow,
        }
        if self.array_sha256 is not None:
            values["array_sha256"] = self.array_sha256
        if self.present is not None:
            values["present"] = base64.b64encode(np.packbits(self.present).tobytes()).decode()
        return values


@dataclass(frozen=True)
class CommitRecord:
    """The record of one shard.

    Attributes:
        shard: its number.
        samples: the sample numbers in it.
        sites: `SiteRecord` by site name.
        hashes: content hashes of spec, plan, fingerprint and sample table.
    """

    shard: int
    samples: range
    sites: dict[str, SiteRecord]
    hashes: dict[str, str]

    def to_bytes(self) -> bytes:
        """The bytes of the record's file: canonical JSON that contains its own hash."""
        body = {
            "format": RECORD_FORMAT,
            "version": FORMAT_VERSION,
            "shard": self.shard,
            "samples": [self.samples.start, self.samples.stop],
            "sites": {name: site.to_dict() for name, site in self.sites.items()},
            "hashes": self.hashes,
        }
        return jsonio.canonical({**body, "record_sha256": jsonio.content_hash(body)})

    def different_sites(self, other: "CommitRecord") -> list[str]:
        """Sites at which the two records speak of other numbers or other missing maps."""
        return [name for name, site in self.sites.items() if not _same_values(site, other.sites.get(name))]


def _same_values(ours: SiteRecord, theirs: SiteRecord | None) -> bool:
    if theirs is None or ours.to_dict().get("present") != theirs.to_dict().get("present"):
        return False
    if ours.array_sha256 and theirs.array_sha256:
        return ours.array_sha256 == theirs.array_sha256
    return ours.sha256 == theirs.sha256


def record_limit(spec: StoreSpec) -> int:
    """Bytes that no honest record of this spec passes."""
    n_chunks = sum(spec.grid(site.name).chunks_in(0) for site in spec.sites)
    n_maps = spec.samples_per_shard * spec.n_steps * len(spec.branches) if spec.ragged else 0
    return 4096 + 8 * n_chunks + len(spec.sites) * (1024 + 3 * 24 * spec.n_steps + n_maps // 4)


def committed_shards(layout: Layout, spec: StoreSpec) -> list[int]:
    """Shards that have a commit record, ascending; whether the records are sound is not looked at."""
    numbers = (layout.record_number(name) for name in names_in(layout.commits))
    return sorted(n for n in numbers if n is not None and n < spec.n_shards)


def read_record(layout: Layout, info: StoreInfo, shard: int) -> CommitRecord:
    """Read and check the record of a shard.

    Raises:
        FileNotFoundError: the shard is not committed.
        InvalidRecord: the record is damaged, or of another shard, plan, model or store.
    """
    path = layout.record(shard)
    try:
        data = read_small(path, record_limit(info.spec))
        record = _from_value(jsonio.parse(data, str(path)), info.spec, shard)
    except FileNotFoundError:
        raise
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        reason = str(error) if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"
        raise _invalid(path, shard, reason[:300]) from error
    for what, expected in info.hashes.items():
        if record.hashes.get(what) != expected:
            raise _invalid(path, shard, f"it belongs to another {what}")
    if record.to_bytes() != data:
        raise _invalid(path, shard, "its bytes differ from its own hash")
    return record


def _from_value(value: Any, spec: StoreSpec, shard: int) -> CommitRecord:
    """Types, ranges and lengths of a parsed record; ValueError with the reason."""
    samples = spec.shard_samples(shard)
    if value["format"] != RECORD_FORMAT or value["version"] != FORMAT_VERSION:
        raise ValueError(f"not a record of version {FORMAT_VERSION}")
    if value["shard"] != shard or value["samples"] != [samples.start, samples.stop]:
        raise ValueError("it is the record of another shard")
    if not isinstance(value["sites"], dict) or set(value["sites"]) != {site.name for site in spec.sites}:
        raise ValueError("its sites are not the store's sites")
    sites = {}
    for name, entry in value["sites"].items():
        grid = spec.grid(name)
        crcs = np.frombuffer(base64.b64decode(entry["chunk_crc32c"], validate=True), "<u4")
        if len(crcs) != grid.chunks_in(shard):
            raise ValueError(f"{len(crcs)} chunk checksums for {grid.chunks_in(shard)} chunks of site {name}")
        # Without compression the hash of the values says nothing that the file's does not: it may be there.
        hashes = ("sha256", "array_sha256") if spec.compression or "array_sha256" in entry else ("sha256",)
        for key in hashes:
            if not isinstance(entry[key], str) or not _HEX64.fullmatch(entry[key]):
                raise ValueError(f"{key} of site {name} is no SHA-256")
        counts = [entry["n_bytes"], *entry["nan"], *entry["inf"], *entry["overflow"]]
        if len(counts) != 1 + 3 * spec.n_steps or any(type(n) is not int or n < 0 for n in counts):
            raise ValueError(f"the counts of site {name} are not numbers, one a step")
        if spec.compression is None and entry["n_bytes"] != grid.file_bytes(shard):
            raise ValueError(f"site {name} is given {entry['n_bytes']} bytes, the spec makes {grid.file_bytes(shard)}")
        sites[name] = SiteRecord(
            entry["n_bytes"],
            entry["sha256"],
            entry.get("array_sha256"),
            crcs,
            tuple(entry["nan"]),
            tuple(entry["inf"]),
            tuple(entry["overflow"]),
            _present(entry["present"], spec, shard, name) if "present" in entry else None,
        )
    return CommitRecord(shard, samples, sites, dict(value["hashes"]))


def _present(text: str, spec: StoreSpec, shard: int, name: str) -> np.ndarray:
    if not spec.ragged:
        raise ValueError(f"maps of site {name} are missing, in a store that is not ragged")
    shape = spec.shard_shape(name, shard)[:3]
    n = int(np.prod(shape))
    packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    if len(packed) != -(-n // 8):
        raise ValueError(f"the missing maps of site {name} are {len(packed)} bytes for {n} maps")
    return np.unpackbits(packed, count=n).astype(bool).reshape(shape)


def _invalid(path: object, shard: int, reason: str) -> InvalidRecord:
    return InvalidRecord(
        explain(
            f"The commit record {path} cannot be used",
            found=reason,
            next_step=f"collect shard {shard} again (StoreWriter.resume counts it as pending)",
        )
    )
