"""Where things are in a store, and the metadata that is written once.

    <store>/store.json                    what the store is; written last at creation, never changed
    <store>/samples.parquet               the sample table
    <store>/arrays/zarr.json              a plain zarr v3 group, openable by any zarr reader
    <store>/arrays/<site>/zarr.json       one array a site
    <store>/arrays/<site>/c.<i>.0.0.0.0   shard i
    <store>/commits/<i>.json              commit record of shard i: the shard exists when this file does
    <store>/groups/<name>/                sites added later: a store of its own (groups.py)
    <store>/statistics/<site>.safetensors what statistics.py found, with the shards that it covers
    <store>/writers.lock, commit.lock     advisory locks; empty files

Every `zarr.json` is a function of the spec. A store whose `zarr.json` differs by a byte from what its spec
says is refused, so nothing hostile in one ever reaches zarr.
"""

import os
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from activations_store.errors import InvalidMetadata, InvalidSpec, NewerFormat, NotAStore, explain
from activations_store.format.spec import SiteSpec, StoreSpec
from activations_store.storage import jsonio
from activations_store.storage.objects import ObjectPath, Place
from activations_store.storage.reading import check_folder, read_small

FORMAT = "denoscope-store"
FORMAT_VERSION = 1
MAX_STORE_JSON = 16 * 1024 * 1024
DIMENSIONS = ("sample", "step", "branch", "token", "channel")
ZSTD_LEVEL = 1

_RECORD_NAME = re.compile(r"(\d{6,8})\.json")
_SHARD_NAME = re.compile(r"c\.(\d{1,8})\.0\.0\.0\.0")


@dataclass(frozen=True)
class Layout:
    """Paths of one store. Every path is built from the root, a checked site name and an int."""

    root: Place

    @property
    def store_json(self) -> Place:
        return self.root / "store.json"

    @property
    def samples(self) -> Place:
        return self.root / "samples.parquet"

    @property
    def arrays(self) -> Place:
        return self.root / "arrays"

    @property
    def commits(self) -> Place:
        return self.root / "commits"

    @property
    def groups(self) -> Place:
        return self.root / "groups"

    def group(self, name: str) -> Place:
        """Folder of a site group."""
        return self.groups / name

    @property
    def statistics(self) -> Place:
        return self.root / "statistics"

    @property
    def writers_lock(self) -> Place:
        return self.root / "writers.lock"

    @property
    def commit_lock(self) -> Place:
        return self.root / "commit.lock"

    def array(self, site: SiteSpec) -> Place:
        """Folder of a site's array."""
        return self.arrays / site.dir_name

    def shard(self, site: SiteSpec, shard: int) -> Place:
        """File of one shard of a site."""
        return self.array(site) / f"c.{shard:d}.0.0.0.0"

    def record(self, shard: int) -> Place:
        """Commit record of a shard."""
        return self.commits / f"{shard:06d}.json"

    def record_number(self, name: str) -> int | None:
        """Shard of a record's file name; None for any other file."""
        match = _RECORD_NAME.fullmatch(name)
        shard = int(match[1]) if match else None
        return shard if shard is not None and self.record(shard).name == name else None

    def relative(self, path: Place) -> str:
        """A part of the store as it is named in messages."""
        if isinstance(path, ObjectPath):
            return str(path).removeprefix(f"{self.root}/")
        return os.path.relpath(path, str(self.root))

    @staticmethod
    def shard_number(name: str) -> int | None:
        """Shard of a shard's file name; None for any other file."""
        match = _SHARD_NAME.fullmatch(name)
        return int(match[1]) if match and str(int(match[1])) == match[1] else None


def array_metadata(spec: StoreSpec, site: SiteSpec) -> bytes:
    """The bytes of a site's `zarr.json`."""
    grid = spec.grid(site.name)
    dtype = site.stored_dtype
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    crc32c = {"name": "crc32c"}
    zstd = {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}}
    codecs = [little, zstd, crc32c] if spec.compression == "zstd" else [little, crc32c]
    return jsonio.canonical(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": grid.array_shape,
            "data_type": dtype.zarr_name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": grid.shard_shape}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": dtype.fill_json,
            "codecs": [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": grid.chunk_shape,
                        "codecs": codecs,
                        "index_codecs": [little, crc32c],
                        "index_location": "end",
                    },
                }
            ],
            "dimension_names": DIMENSIONS,
            "storage_transformers": [],
            "attributes": {
                "site": site.name,
                "dtype": site.dtype,
                "grid": site.grid,
                "branches": spec.branches,
                "timesteps": spec.timesteps,
                "log_snr": spec.log_snr,
            },
        }
    )


def group_metadata() -> bytes:
    """The bytes of `arrays/zarr.json`."""
    return jsonio.canonical(
        {"zarr_format": 3, "node_type": "group", "attributes": {"format": FORMAT, "version": FORMAT_VERSION}}
    )


@dataclass(frozen=True)
class StoreInfo:
    """What `store.json` says.

    Attributes:
        spec: sites, shapes, shards.
        fingerprint: the model the activations came from; JSON values.
        plan: what was to be collected; JSON values.
        samples_sha256: SHA-256 of `samples.parquet`.
    """

    spec: StoreSpec
    fingerprint: dict[str, Any]
    plan: dict[str, Any]
    samples_sha256: str

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Content hashes that every commit record repeats."""
        return {
            "spec": self.spec.content_hash(),
            "plan": jsonio.content_hash(self.plan),
            "fingerprint": jsonio.content_hash(self.fingerprint),
            "samples": self.samples_sha256,
        }

    def to_bytes(self) -> bytes:
        """The bytes of `store.json`."""
        body = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "spec": self.spec.to_dict(),
            "fingerprint": self.fingerprint,
            "plan": self.plan,
            "hashes": self.hashes,
        }
        data = jsonio.canonical(body | {"store_sha256": jsonio.content_hash(body)})
        if len(data) > MAX_STORE_JSON:
            raise InvalidMetadata(
                explain(
                    "store.json would be too large",
                    found=f"{len(data)} bytes",
                    expected=f"at most {MAX_STORE_JSON}",
                    next_step="keep lists over samples out of the plan and in the sample table",
                )
            )
        return data


def read_store_info(root: Place) -> StoreInfo:
    """Read and check `store.json`; nothing else of the store is touched.

    Raises:
        NotAStore: there is none.
        NewerFormat: its version is newer than this code's.
        InvalidMetadata: it is damaged, too large, or no store of this kind.
        UnsafePath: it is not a plain file.
    """
    path = Layout(root).store_json
    try:
        data = read_small(path, MAX_STORE_JSON)
    except (FileNotFoundError, NotADirectoryError):
        raise NotAStore(
            explain(
                f"{root} is not an activation store",
                found="no store.json" if root.is_dir() else "no such folder",
                next_step="give the folder that StoreWriter.create or `denoscope collect` made",
            )
        ) from None
    value = jsonio.parse(data, str(path))
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise InvalidMetadata(explain(f"{path} does not describe an activation store", expected=f"format {FORMAT!r}"))
    version = value.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InvalidMetadata(explain(f"{path} has no usable format version", found=repr(version)[:60]))
    if version > FORMAT_VERSION:
        raise NewerFormat(
            explain(
                f"{path} was written by a newer version of the format",
                found=f"version {version}",
                expected=f"at most {FORMAT_VERSION}",
                next_step="upgrade denoscope",
            )
        )
    try:
        spec = StoreSpec.from_dict(value.get("spec"))
    except InvalidSpec as error:
        raise InvalidMetadata(f"{path} holds a spec that cannot be: {error}") from error
    fingerprint, plan, hashes = value.get("fingerprint"), value.get("plan"), value.get("hashes")
    samples_sha256 = hashes.get("samples") if isinstance(hashes, dict) else None
    if not isinstance(fingerprint, dict) or not isinstance(plan, dict) or not isinstance(samples_sha256, str):
        raise InvalidMetadata(explain(f"{path} lacks fingerprint, plan or hashes"))
    info = StoreInfo(spec, fingerprint, plan, samples_sha256)
    if info.to_bytes() != data:
        # The file holds its own hash and has one spelling, so any changed byte ends here.
        raise InvalidMetadata(
            explain(
                f"{path} was changed after the store was created",
                found="bytes that differ from its own hash",
                next_step="restore the file from a copy",
            )
        )
    return info


def check_arrays(layout: Layout, spec: StoreSpec) -> None:
    """Check folders and every `zarr.json` against the spec, byte for byte."""
    try:
        for folder in (layout.root, layout.arrays, layout.commits):
            # The root may be reached through a link, the user named it; nothing inside may.
            check_folder(folder.resolve() if folder == layout.root else folder)
        expected = {layout.arrays: group_metadata()}
        expected |= {layout.array(site): array_metadata(spec, site) for site in spec.sites}
        for folder, data in expected.items():
            check_folder(folder)
            path = folder / "zarr.json"
            if read_small(path, len(data) + 1) != data:
                raise InvalidMetadata(
                    explain(f"{path} does not say what store.json says", next_step="restore the file from a copy")
                )
    except FileNotFoundError as error:
        raise InvalidMetadata(explain(f"The store {layout.root} is damaged", found=f"no {error.filename}")) from error
