"""`verify` finds every kind of damage and names the shard; repair is: discard, collect again. `gc` takes leftovers."""

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from store_support import BITS, JOINED, complete_store, create, resume, shard_arrays, small_spec, tree_hashes

from activations_store import ActivationStore, errors, gc
from activations_store.storage import fileio, jsonio

SPEC = small_spec(JOINED, BITS, n_samples=11)
FOLDER = f"arrays/{JOINED.dir_name}"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return complete_store(tmp_path_factory.mktemp("sound") / "s", SPEC).path


@pytest.fixture
def path(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "s"))


def found(path: Path) -> list[str]:
    """What is wrong with a store: the refusal to open it, or what verify says."""
    try:
        return [f"{p.kind} {p.path} {p.shard}" for p in ActivationStore.open(path).verify() if p.is_damage]
    except errors.StoreError as error:
        return [f"refused: {error}"]


def test_every_flipped_bit_is_found(path: Path) -> None:
    """Random bits of every file that has content, the sample table and all metadata included."""
    rng = random.Random(11)
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.stat().st_size)
    assert len(files) == 3 * 3 + 3 + 2
    for file in files:
        data = file.read_bytes()
        spots = {0, len(data) - 1} | {rng.randrange(len(data)) for _ in range(3)}
        for spot in spots:
            bad = bytearray(data)
            bad[spot] ^= 1 << rng.randrange(8)
            file.write_bytes(bad)
            assert found(path), f"{file} byte {spot}"
        file.write_bytes(data)
    assert found(path) == []


def test_every_truncation_is_found(path: Path) -> None:
    rng = random.Random(12)
    for file in sorted(p for p in path.rglob("*") if p.is_file() and p.stat().st_size):
        data = file.read_bytes()
        for size in (0, len(data) - 1, rng.randrange(len(data))):
            file.write_bytes(data[:size])
            assert found(path), f"{file} cut to {size}"
        file.write_bytes(data + b"\x00")
        assert found(path), f"{file} longer"
        file.write_bytes(data)
    assert found(path) == []


def _zero_page(path: Path) -> None:
    file = path / FOLDER / "c.1.0.0.0.0"
    data = bytearray(file.read_bytes())
    data[512:1024] = bytes(512)
    file.write_bytes(data)


def _swap_shards(path: Path) -> None:
    a, b = path / FOLDER / "c.0.0.0.0.0", path / FOLDER / "c.1.0.0.0.0"
    a.rename(path / "x")
    b.rename(a)
    (path / "x").rename(b)


def _swap_records(path: Path) -> None:
    a, b = path / "commits/000000.json", path / "commits/000001.json"
    a.rename(path / "x")
    b.rename(a)
    (path / "x").rename(b)


def _stale(path: Path) -> None:
    """A shard and its record from a run of another plan."""
    record = path / "commits/000001.json"
    record.write_bytes(record.read_bytes().replace(b'"plan":"', b'"plan":"0'))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda p: (p / FOLDER / "c.1.0.0.0.0").unlink(), [f"shard {FOLDER}/c.1.0.0.0.0 1"]),
        (
            lambda p: shutil.copy(p / FOLDER / "c.0.0.0.0.0", p / FOLDER / "c.1.0.0.0.0"),
            [f"shard {FOLDER}/c.1.0.0.0.0 1"],
        ),
        (_zero_page, [f"shard {FOLDER}/c.1.0.0.0.0 1"]),
        (_swap_shards, [f"shard {FOLDER}/c.0.0.0.0.0 0", f"shard {FOLDER}/c.1.0.0.0.0 1"]),
        (_swap_records, ["record commits/000000.json 0", "record commits/000001.json 1"]),
        (lambda p: shutil.copy(p / "commits/000000.json", p / "commits/000001.json"), ["record commits/000001.json 1"]),
        (_stale, ["record commits/000001.json 1"]),
        (lambda p: (p / "samples.parquet").unlink(), ["samples samples.parquet None"]),
    ],
)  # fmt: skip
def test_damage_is_named_and_repaired(path: Path, sound: Path, damage: Callable, expected: list[str]) -> None:
    damage(path)
    assert found(path) == expected
    shards = {p.shard for p in ActivationStore.open(path).verify() if p.shard is not None}
    if shards:
        with resume(path, SPEC) as writer:
            writer.discard(shards)
            assert writer.pending() == sorted(shards)
            for shard in writer.pending():
                writer.write_shard(shard, shard_arrays(SPEC, shard))
        assert found(path) == []
        assert tree_hashes(path) == tree_hashes(sound)


def test_damage_that_sizes_show_is_found_without_hashing(path: Path) -> None:
    (path / FOLDER / "c.1.0.0.0.0").write_bytes(b"short")
    problems = ActivationStore.open(path).verify(full=False)
    assert [(p.kind, p.shard, p.site) for p in problems] == [("shard", 1, JOINED.name)]
    assert "5 bytes where its commit record says" in problems[0].message


def test_writing_again_mends_a_damaged_file_without_discard(path: Path) -> None:
    _zero_page(path)
    with resume(path, SPEC) as writer:
        writer.write_shard(1, shard_arrays(SPEC, 1))
    assert found(path) == []


def test_a_damaged_record_is_pending_and_never_read(path: Path) -> None:
    record = path / "commits/000001.json"
    record.write_bytes(record.read_bytes()[:-10])
    store = ActivationStore.open(path)
    with pytest.raises(errors.InvalidRecord, match=r"000001\.json.*collect shard 1 again"):
        store.site(JOINED.name).read(sample=4)
    np.testing.assert_array_equal(store.site(JOINED.name).read(sample=0).shape[0], 1)
    with resume(path, SPEC) as writer:
        assert writer.pending() == [1]


def test_strangers_and_leftovers_are_reported_but_are_no_damage(path: Path) -> None:
    (path / FOLDER / "c.7.0.0.0.0").write_bytes(b"x")
    (path / FOLDER / "notes.txt").write_bytes(b"x")
    (path / "commits/hello.json").write_bytes(b"x")
    (path / FOLDER / f".c.1.0.0.0.0.{fileio.HOST_TAG}-1-0.tmp").write_bytes(b"x")
    (path / "commits/000002.json").unlink()
    problems = ActivationStore.open(path).verify()
    assert not any(p.is_damage for p in problems)
    kinds = sorted((p.kind, p.path.rsplit("/", 1)[-1]) for p in problems)
    assert kinds == [
        ("leftover", f".c.1.0.0.0.0.{fileio.HOST_TAG}-1-0.tmp"),
        ("uncommitted", "c.2.0.0.0.0"),
        ("uncommitted", "c.2.0.0.0.0"),
        ("unexpected", "c.7.0.0.0.0"),
        ("unexpected", "hello.json"),
        ("unexpected", "notes.txt"),
    ]


def test_gc_removes_leftovers_and_nothing_committed(path: Path, sound: Path) -> None:
    ours = path / FOLDER / f".c.1.0.0.0.0.{fileio.HOST_TAG}-1-0.tmp"
    theirs = path / "commits" / ".000001.json.00000000-1-0.tmp"
    old = path / ".store.json.00000000-1-1.tmp"
    for file in (ours, theirs):
        file.write_bytes(b"x")
    uncommitted = path / FOLDER / "c.2.0.0.0.0"
    (path / "commits/000002.json").unlink()
    with resume(path, SPEC) as writer:  # a live writer: our machine's temporary files could be its own
        assert not ours.exists()  # but it removed those of dead ones when it began
        ours.write_bytes(b"x")
        old.write_bytes(b"x")
        long_ago = time.time() - 100 * 3600
        os.utime(old, (long_ago, long_ago))
        assert gc(path) == [old]
        assert uncommitted.exists()
    assert {p.name for p in gc(path)} == {"c.2.0.0.0.0", ours.name}
    assert theirs.exists()
    assert gc(path, older_than_hours=-1) == [theirs]
    assert gc(path) == []
    assert ActivationStore.open(path).committed == [0, 1]
    assert found(path) == []
    with resume(path, SPEC) as writer:
        writer.write_shard(2, shard_arrays(SPEC, 2))
    assert tree_hashes(path) == tree_hashes(sound)


def test_records_that_are_not_even_a_table(path: Path) -> None:
    store = ActivationStore.open(path)
    record = path / "commits/000001.json"
    value = json.loads(record.read_bytes())
    for sites in (list(value["sites"]), None, "sites", 3):
        record.write_bytes(jsonio.canonical({**value, "sites": sites}))
        store.close()
        with pytest.raises(errors.InvalidRecord):
            store.record(1)
    with resume(path, SPEC) as writer:
        assert writer.pending() == [1]
    shutil.rmtree(path / "commits")
    assert "commits" in {p.path for p in store.verify(full=False) if p.is_damage}


def test_two_stores_do_not_take_each_others_shards(path: Path, tmp_path: Path) -> None:
    """A whole shard with its record, moved from a store with another plan."""
    spec = SPEC
    from store_support import FINGERPRINT, sample_table

    from activations_store import StoreWriter

    other = tmp_path / "other"
    with StoreWriter.create(other, spec, sample_table(spec), fingerprint=FINGERPRINT, plan={"other": 1}) as writer:
        writer.write_shard(1, shard_arrays(spec, 1))
    shutil.copy(other / "commits/000001.json", path / "commits/000001.json")
    assert found(path) == ["record commits/000001.json 1"]
    assert "another plan" in ActivationStore.open(path).verify()[0].message


def test_compressed_stores_are_verified_too(tmp_path: Path) -> None:
    spec = small_spec(JOINED, n_samples=4, compression="zstd")
    path = complete_store(tmp_path / "s", spec).path
    file = path / FOLDER / "c.0.0.0.0.0"
    data = file.read_bytes()
    for spot in range(5, len(data), len(data) // 25):
        bad = bytearray(data)
        bad[spot] ^= 0x10
        file.write_bytes(bad)
        assert found(path) == [f"shard {FOLDER}/c.0.0.0.0.0 0"]


def test_create_writes_nothing_that_verify_does_not_know(tmp_path: Path) -> None:
    create(tmp_path / "s", SPEC).close()
    assert ActivationStore.open(tmp_path / "s").verify() == []
