"""Stores that mean harm: refused with a typed error, soon, in little memory, before zarr opens anything."""

import json
import os
import resource
import subprocess
import time
from pathlib import Path

import numcodecs.zstd as zstd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_support import JOINED, PYTHON, child_environment, complete_store, small_spec

from activations_store import ActivationStore, RowLoader, errors
from activations_store.format import shard_index
from activations_store.format.layout import (
    FORMAT,
    MAX_STORE_JSON,
    Layout,
    StoreInfo,
    array_metadata,
    group_metadata,
)
from activations_store.storage import jsonio

SPEC = small_spec(JOINED, n_samples=8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return complete_store(tmp_path / "s", SPEC).path


def reseal(path: Path, change: dict) -> None:
    """Write a store.json whose own hashes agree with a changed spec: what a forger who knows the format would do."""
    value = json.loads((path / "store.json").read_bytes())
    value["spec"].update(change)
    value["hashes"]["spec"] = jsonio.content_hash(value["spec"])
    value["store_sha256"] = jsonio.content_hash({k: v for k, v in value.items() if k != "store_sha256"})
    (path / "store.json").write_bytes(jsonio.canonical(value))


@pytest.mark.parametrize(
    "change",
    [
        {"n_samples": 2**70},
        {"n_samples": -1},
        {"n_samples": 1.5},
        {"n_samples": 2**30, "samples_per_shard": 1},
        {"samples_per_shard": 2**40},
        {"timesteps": list(range(20_000)), "log_snr": [0.0] * 20_000},
        {"timesteps": [900, 10**400, 700]},
        {"log_snr": [0.0, 10**400, 1.0]},
        {"sites": []},
        {"sites": [{"name": "../../etc/x", "tokens": 1, "channels": 1, "grid": None, "dtype": "float16"}]},
        {"sites": [{"name": "a", "tokens": 2**40, "channels": 1, "grid": None, "dtype": "float16"}]},
        {"sites": [{"name": "a", "tokens": 1, "channels": 2**40, "grid": None, "dtype": "float16"}]},
        {"sites": [{"name": "a", "tokens": 2**24, "channels": 2**20, "grid": None, "dtype": "float32"}]},
        {"sites": [{"name": "a", "tokens": 1, "channels": 1, "grid": [1], "dtype": "float16"}]},
        {"sites": [{"name": "a", "tokens": 1, "channels": 1, "grid": None, "dtype": "object"}]},
        {"sites": [{"name": "a", "tokens": 1, "channels": 1, "grid": None, "dtype": ["float16"]}]},
        {"sites": [{"name": ["a"], "tokens": 1, "channels": 1, "grid": None, "dtype": "float16"}]},
        {"sites": ["a"]},
        {"sites": {"a": 1}},
        {"branches": [["cond"]]},
        {"branches": None},
        {"compression": "blosc"},
        {"compression": {}},
        {"extra": 1},
    ],
)
def test_impossible_specs(path: Path, change: dict) -> None:
    reseal(path, change)
    with pytest.raises((errors.InvalidMetadata, errors.UnsafePath)) as info:
        ActivationStore.open(path)
    assert "store.json" in str(info.value)


def test_a_larger_but_possible_spec_is_refused_by_the_arrays(path: Path) -> None:
    """Sealed anew and within all limits: then zarr.json no longer agrees."""
    reseal(path, {"n_samples": 2**30, "samples_per_shard": 1024})
    with pytest.raises(errors.InvalidMetadata, match=r"zarr\.json does not say what store\.json says"):
        ActivationStore.open(path)


_DEEP = b"[" * 100_000 + b"]" * 100_000
_PREFIX = f'{{"format":"{FORMAT}","version":'.encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"format": 1}',
        _DEEP,
        b'{"format":"denoscope-store","plan":' + _DEEP + b"}",
        _PREFIX + b'0,"spec":{}}',
        _PREFIX + b"true}",
        _PREFIX + b'"1"}',
        _PREFIX + b"1}",
        _PREFIX + b'1,"spec":NaN}',
        _PREFIX + b'1,"version":1}',
        _PREFIX + b"9" * 10_000 + b"}",
    ],
)
def test_files_that_are_no_store_json(path: Path, data: bytes) -> None:
    (path / "store.json").write_bytes(data)
    with pytest.raises((errors.InvalidMetadata, errors.NewerFormat)):
        ActivationStore.open(path)


def test_newer_format_is_refused_by_name(path: Path) -> None:
    value = json.loads((path / "store.json").read_bytes())
    (path / "store.json").write_bytes(jsonio.canonical({**value, "version": 2}))
    with pytest.raises(errors.NewerFormat, match=r"version 2.*at most 1.*upgrade denoscope"):
        ActivationStore.open(path)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_mutated_store_json_raises_only_store_errors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    original = StoreInfo(SPEC, {"a": 1}, {"b": [1, 2]}, "0" * 64).to_bytes()
    bad = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        spot = data.draw(st.integers(0, len(bad) - 1))
        piece = data.draw(
            st.sampled_from([b"", b"9", b"-", b"[", b"{", b'"', b",", b"null", b"1e999", b"\xc3", b"\x00"])
        )
        bad[spot : spot + data.draw(st.integers(0, 3))] = piece
    folder = tmp_path_factory.getbasetemp()
    (folder / "store.json").write_bytes(bad)
    with pytest.raises(errors.StoreError):
        ActivationStore.open(folder)


def test_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such folder.*denoscope collect"):
        ActivationStore.open(tmp_path / "nothing")
    with pytest.raises(errors.NotAStore, match=r"no store\.json"):
        ActivationStore.open(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(errors.NotAStore):
        ActivationStore.open(tmp_path / "file")


def test_too_large_metadata_is_not_read(path: Path) -> None:
    with (path / "store.json").open("r+b") as file:
        file.truncate(50 * 2**30)  # sparse
    began = time.monotonic()
    with pytest.raises(errors.InvalidMetadata, match=f"too large.*{MAX_STORE_JSON}"):
        ActivationStore.open(path)
    assert time.monotonic() - began < 2


def test_too_large_record_is_not_read(path: Path) -> None:
    with (path / "commits/000000.json").open("r+b") as file:
        file.truncate(50 * 2**30)
    store = ActivationStore.open(path)
    with pytest.raises(errors.InvalidRecord, match="too large"):
        store.site(JOINED.name).read(sample=0)


PIECES = [
    "store.json", "samples.parquet", "commits/000000.json", "arrays/zarr.json", f"arrays/{JOINED.dir_name}/zarr.json",
    f"arrays/{JOINED.dir_name}/c.0.0.0.0.0", f"arrays/{JOINED.dir_name}", "arrays", "commits",
]  # fmt: skip


@pytest.mark.parametrize("piece", PIECES)
def test_symbolic_links_are_refused(path: Path, tmp_path: Path, piece: str) -> None:
    (path / piece).rename(tmp_path / "elsewhere")
    (path / piece).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(errors.UnsafePath, match="symbolic link|not a plain"):
        _touch_everything(path)


@pytest.mark.parametrize(
    "piece", [p for p in PIECES if "." in p.rsplit("/", 1)[-1] and "-" not in p.rsplit("/", 1)[-1]]
)
def test_fifos_do_not_hang(path: Path, piece: str) -> None:
    (path / piece).unlink()
    os.mkfifo(path / piece)
    with pytest.raises(errors.StoreError, match="not a plain file"):
        _touch_everything(path)


def _touch_everything(path: Path) -> None:
    store = ActivationStore.open(path)
    assert store.samples.num_rows == 8
    store.site(JOINED.name).read()


def test_a_store_may_be_reached_through_a_link(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(path)
    _touch_everything(tmp_path / "link")


@pytest.mark.parametrize(
    "entry",
    [(0, 2**63), (2**63, 10), (2**64 - 2, 2**64 - 2), (10**9, 1000), (0, 4), (0, 0), (2**64 - 1, 2**64 - 1), (0, 999)],
)
def test_index_entries_outside_the_file(path: Path, entry: tuple[int, int]) -> None:
    """A forged index with a good checksum; the record's hash would find it, but nothing may go wrong before."""
    file = path / "arrays" / JOINED.dir_name / "c.0.0.0.0.0"
    data = bytearray(file.read_bytes())
    size = SPEC.grid(JOINED.name).index_bytes
    index = np.frombuffer(bytes(data[-size:-4]), "<u8").reshape(-1, 2).copy()
    index[1] = entry
    data[-size:-4] = index.tobytes()
    data[-4:] = np.array([shard_index.crc32c(index.tobytes())], "<u4").tobytes()
    file.write_bytes(data)
    with pytest.raises(errors.CorruptShard):
        ActivationStore.open(path).site(JOINED.name).read()


@settings(max_examples=100, deadline=None)
@given(data=st.binary(min_size=4 + 16 * 3, max_size=4 + 16 * 3), size=st.integers(0, 1000))
def test_random_index_bytes(data: bytes, size: int) -> None:
    sealed = data[:-4] + np.array([shard_index.crc32c(data[:-4])], "<u4").tobytes()
    for candidate in (data, sealed):
        try:
            entries = shard_index.parse_index(np.frombuffer(candidate, np.uint8), 3, size + len(data), Path("x"))
        except errors.CorruptShard:
            continue
        present = entries[(entries != 2**64 - 1).any(axis=1)]
        assert all(int(o) + int(n) <= size for o, n in present)


def test_decompression_bomb_is_refused_before_it_inflates(tmp_path: Path) -> None:
    code = """
import sys, numpy as np
from pathlib import Path
from activations_store import errors
from activations_store.format.shard_index import _zstd_into
packed = np.frombuffer(Path(sys.argv[1]).read_bytes(), np.uint8)
out = np.empty(32768, np.uint8)
try:
    _zstd_into(packed, out, Path("chunk"), 0)
except errors.CorruptShard as error:
    assert "declares another size" in str(error)
    # VmHWM is of this program; ru_maxrss would still show the peak of the process that started it.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 200_000, peak
    sys.exit(7)
"""
    bomb = tmp_path / "bomb"
    bomb.write_bytes(zstd.compress(np.zeros(200 * 2**20, np.uint8), 1))
    assert bomb.stat().st_size < 100_000
    child = subprocess.run([PYTHON, "-c", code, str(bomb)], env=child_environment(), timeout=60)
    assert child.returncode == 7


def test_zstd_frames_with_other_sizes() -> None:
    for n in (0, 1, 255, 256, 300, 65_535, 65_536, 65_791, 65_792, 100_000):
        packed = np.frombuffer(bytes(zstd.compress(np.ones(n, np.uint8), 1)), np.uint8)
        if n:
            out = np.empty(n, np.uint8)
            shard_index._zstd_into(packed, out, Path("x"), 0)
            assert (out == 1).all()
        with pytest.raises(errors.CorruptShard):
            shard_index._zstd_into(packed, np.empty(n + 1, np.uint8), Path("x"), 0)
    for junk in (b"", b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd" + bytes(20), b"junkjunkjunk"):
        with pytest.raises(errors.CorruptShard):
            shard_index._zstd_into(np.frombuffer(junk, np.uint8), np.empty(9, np.uint8), Path("x"), 0)


def test_a_store_of_a_million_samples_opens_at_once(tmp_path: Path) -> None:
    spec = small_spec(JOINED, n_samples=1_000_000, samples_per_shard=256)
    layout = Layout(tmp_path / "s")
    array, commits = Path(str(layout.array(JOINED))), Path(str(layout.commits))
    for folder in (array, commits):
        folder.mkdir(parents=True)
    # Only what opening reads: a table of a million rows would take most of the test's time.
    (tmp_path / "s" / "store.json").write_bytes(StoreInfo(spec, {}, {}, "0" * 64).to_bytes())
    (array.parent / "zarr.json").write_bytes(group_metadata())
    (array / "zarr.json").write_bytes(array_metadata(spec, JOINED))
    for shard in range(spec.n_shards):
        (commits / layout.record(shard).name).touch()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    store = ActivationStore.open(tmp_path / "s")
    assert store.complete
    assert time.process_time() - began < 1.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    with RowLoader(store, JOINED.name, 8, samples=range(64)) as loader, pytest.raises(errors.InvalidRecord):
        next(loader)
