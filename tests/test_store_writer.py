"""Writing: what is refused and how it is said, resuming, conflicts, background writing, full disks, failing calls."""

import errno
import os
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from store_support import (
    BITS,
    FINGERPRINT,
    JOINED,
    PLAN,
    PYTHON,
    FailAt,
    child_environment,
    complete_store,
    create,
    resume,
    sample_table,
    shard_arrays,
    small_spec,
    tree_hashes,
)

from activations_store import ActivationStore, AsyncShardWriter, SiteSpec, StoreWriter, errors, gc
from activations_store.storage import fileio


def test_create_refuses_an_existing_store(tmp_path: Path) -> None:
    spec = small_spec()
    create(tmp_path / "s", spec).close()
    with pytest.raises(FileExistsError, match="StoreWriter.resume"):
        create(tmp_path / "s", spec)


def test_create_takes_a_folder_with_other_things_in_it(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    create(tmp_path, small_spec()).close()
    assert ActivationStore.open(tmp_path).committed == []


def test_create_refuses_records_without_store_json(tmp_path: Path) -> None:
    store = complete_store(tmp_path / "s", small_spec())
    (store.path / "store.json").unlink()
    with pytest.raises(errors.StoreExists, match="commit records but no store.json"):
        create(tmp_path / "s", small_spec())


def _table(**changes: object) -> pa.Table:
    spec = small_spec()
    columns = {name: sample_table(spec).column(name) for name in sample_table(spec).column_names}
    columns.update(changes)  # type: ignore[arg-type]
    return pa.table({name: column for name, column in columns.items() if column is not None})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (_table(prompt=None), "'prompt'.*no such column.*string"),
        (_table(seed=["x"] * 11), "'seed'.*string.*int64"),
        (_table(prompt=["p"] * 10 + [None]), "'prompt'.*empty"),
        (_table(sample=np.arange(11)[::-1].copy()), "does not number the rows"),
        (_table(label_object=np.arange(11)), "label_object.*int64"),
        (_table(**{"label_<b>": ["x"] * 11}), "label column"),
        (_table().slice(0, 10), "10.*11"),
        ({"sample": [0]}, "dict"),
    ],
)
def test_sample_tables_that_are_refused(tmp_path: Path, table: object, message: str) -> None:
    with pytest.raises(errors.InvalidSamples, match=message):
        StoreWriter.create(tmp_path / "s", small_spec(), table, fingerprint={}, plan={})  # type: ignore[arg-type]
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"x", object()])
def test_metadata_that_json_cannot_carry(tmp_path: Path, value: object) -> None:
    with pytest.raises(errors.InvalidMetadata, match="cannot be written as JSON"):
        StoreWriter.create(tmp_path / "s", small_spec(), _table(), fingerprint={"a": value}, plan={})
    assert not (tmp_path / "s").exists()


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    spec = small_spec(SiteSpec("huge", 2**20, 2**16), n_samples=11, samples_per_shard=1)
    with pytest.raises(errors.DiskFull, match=r"GB free.*huge.*fewer sites") as info:
        create(tmp_path / "s", spec)
    assert info.value.errno == errno.ENOSPC
    assert list((tmp_path / "s").iterdir()) == []


def test_resume_names_both_sides(tmp_path: Path) -> None:
    spec = small_spec()
    create(tmp_path / "s", spec).close()
    with pytest.raises(errors.PlanMismatch, match=r"guidance: stored 2.0, given 7.5"):
        StoreWriter.resume(tmp_path / "s", spec=spec, fingerprint=FINGERPRINT, plan={**PLAN, "guidance": 7.5})
    with pytest.raises(errors.PlanMismatch, match=r"prompts\[1\]: stored 'a star', given 'x'"):
        StoreWriter.resume(tmp_path / "s", spec=spec, fingerprint=FINGERPRINT, plan={**PLAN, "prompts": ["a cup", "x"]})
    with pytest.raises(errors.FingerprintMismatch, match=r"weights_hash: stored 'abc', given 'zzz'"):
        StoreWriter.resume(tmp_path / "s", spec=spec, fingerprint={**FINGERPRINT, "weights_hash": "zzz"}, plan=PLAN)
    with pytest.raises(errors.FingerprintMismatch, match="revision is only in the given one"):
        StoreWriter.resume(tmp_path / "s", spec=spec, fingerprint={**FINGERPRINT, "revision": 1}, plan=PLAN)
    with pytest.raises(errors.SpecMismatch, match=r"samples_per_shard: stored 4, given 5"):
        resume(tmp_path / "s", small_spec(samples_per_shard=5))
    with pytest.raises(errors.NotAStore, match="not an activation store"):
        resume(tmp_path / "nothing", spec)


def test_pending_and_resume(tmp_path: Path) -> None:
    spec = small_spec()
    with create(tmp_path / "s", spec) as writer:
        assert writer.pending() == [0, 1, 2]
        writer.write_shard(1, shard_arrays(spec, 1))
    with resume(tmp_path / "s", spec) as writer:
        assert writer.pending() == [0, 2]
        for shard in writer.pending():
            writer.write_shard(shard, shard_arrays(spec, shard))
        assert writer.pending() == []
    complete_store(tmp_path / "t", spec)
    assert tree_hashes(tmp_path / "s") == tree_hashes(tmp_path / "t")
    with pytest.raises(errors.WriterClosed):
        writer.write_shard(0, shard_arrays(spec, 0))


def _bad(site: str, array: object) -> dict:
    return {**shard_arrays(small_spec(), 0), site: array}


_GOOD = shard_arrays(small_spec(), 0)[JOINED.name]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "every site once"),
        (_bad("other", _GOOD), "every site once"),
        (_bad(JOINED.name, _GOOD[:3]), r"does not fit.*\(3, 3, 2, 16, 8\).*\(4, 3, 2, 16, 8\)"),
        (_bad(JOINED.name, _GOOD[:1]), "does not fit"),  # would broadcast
        (_bad(JOINED.name, _GOOD.astype(np.float64)), "float64"),
        (_bad(JOINED.name, _GOOD.astype(np.int8)), "int8"),
        (_bad(JOINED.name, _GOOD.astype(">f4")), "does not fit"),
        (_bad(JOINED.name, _GOOD.tolist()), "list"),
        (_bad(BITS.name, np.zeros((4, 3, 2, 7, 5), np.float16)), "float16"),
    ],
)
def test_arrays_that_are_refused(tmp_path: Path, arrays: dict, message: str) -> None:
    with create(tmp_path / "s", small_spec()) as writer:
        with pytest.raises(errors.ShardMismatch, match=message):
            writer.write_shard(0, arrays)
        assert writer.pending() == [0, 1, 2]
    assert gc(tmp_path / "s") == []  # nothing was left behind


@pytest.mark.parametrize("shard", [-1, 3])
def test_shards_that_do_not_exist(tmp_path: Path, shard: int) -> None:
    with create(tmp_path / "s", small_spec()) as writer, pytest.raises(errors.InvalidSpec, match="0 to 2"):
        writer.write_shard(shard, shard_arrays(small_spec(), 0))


def test_nonfinite_values_are_refused_by_site_and_step_or_counted(tmp_path: Path) -> None:
    spec = small_spec()
    arrays = shard_arrays(spec, 0)
    arrays[JOINED.name][1, 2, 0, 3, 4] = np.nan
    arrays[JOINED.name][0, 1, 1, :2, 0] = -np.inf
    arrays[JOINED.name][0, 1, 0, 0, 0] = 1e5  # fits float32, not float16
    arrays[BITS.name][2, 0, 0, 0, 0] = 3.4e38  # fits float32, rounds to infinity in bfloat16
    with create(tmp_path / "s", spec) as writer:
        with pytest.raises(
            errors.NonFiniteActivations, match=r"mid_block:out step 1: 0 NaN, 3 infinite \(1 by overflow\)"
        ):
            writer.write_shard(0, arrays)
        assert writer.pending() == [0, 1, 2]
    with create(tmp_path / "t", spec, allow_nonfinite=True) as writer:
        record = writer.write_shard(0, arrays)
    site = record.sites[JOINED.name]
    assert (site.nan, site.inf, site.overflow) == ((0, 0, 1), (0, 3, 0), (0, 1, 0))
    assert record.sites[BITS.name].overflow == (1, 0, 0)
    assert record.sites[BITS.name].inf == (1, 0, 0)
    store = ActivationStore.open(tmp_path / "t")
    assert store.record(0).sites[JOINED.name].nan == (0, 0, 1)
    assert store.verify() == []


def test_writing_a_shard_twice(tmp_path: Path) -> None:
    spec = small_spec()
    with create(tmp_path / "s", spec) as writer:
        first = writer.write_shard(0, shard_arrays(spec, 0))
        before = tree_hashes(tmp_path / "s")
        again = writer.write_shard(0, shard_arrays(spec, 0))
        assert again.to_bytes() == first.to_bytes()
        other = shard_arrays(spec, 0)
        other[BITS.name][0, 0, 0, 0, 0] += 1
        with pytest.raises(errors.ShardConflict, match=r"text_encoder\.layers\.3:out.*device, versions"):
            writer.write_shard(0, other)
    assert tree_hashes(tmp_path / "s") == before


def test_many_writers_on_the_same_shards(tmp_path: Path) -> None:
    """Four writers, every shard written by all of them at once: nothing lost, nothing mixed."""
    spec = small_spec(n_samples=24)
    create(tmp_path / "s", spec).close()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with resume(tmp_path / "s", spec) as writer:
                for shard in range(spec.n_shards):
                    writer.write_shard(shard, shard_arrays(spec, shard))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == [] and not any(thread.is_alive() for thread in threads)
    complete_store(tmp_path / "t", spec)
    assert tree_hashes(tmp_path / "s") == tree_hashes(tmp_path / "t")


def test_background_writer(tmp_path: Path) -> None:
    spec = small_spec(n_samples=24)
    with create(tmp_path / "s", spec) as writer, AsyncShardWriter(writer, max_pending=1) as background:
        for shard in writer.pending():
            background.submit(shard, shard_arrays(spec, shard))
        background.flush()
        assert [r.shard for r in background.records] == list(range(6))
    complete_store(tmp_path / "t", spec)
    assert tree_hashes(tmp_path / "s") == tree_hashes(tmp_path / "t")


def test_background_writer_makes_a_fast_producer_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = small_spec(n_samples=24)
    gate = threading.Event()
    with create(tmp_path / "s", spec) as writer:
        real = writer.write_shard

        def slow(shard: int, arrays: dict, present: None = None) -> object:
            gate.wait(10)
            return real(shard, arrays)

        monkeypatch.setattr(writer, "write_shard", slow)
        submitted: list[int] = []
        with AsyncShardWriter(writer, max_pending=2) as background:

            def produce() -> None:
                for shard in range(6):
                    background.submit(shard, shard_arrays(spec, shard))
                    submitted.append(shard)

            producer = threading.Thread(target=produce)
            producer.start()
            time.sleep(0.3)
            assert len(submitted) == 3  # one being written, two waiting
            gate.set()
            producer.join(60)
            assert not producer.is_alive()
        assert writer.pending() == []


def test_background_writer_raises_the_error_of_its_thread(tmp_path: Path) -> None:
    spec = small_spec(n_samples=24)
    with create(tmp_path / "s", spec) as writer:
        with pytest.raises(errors.ShardMismatch), AsyncShardWriter(writer) as background:
            background.submit(0, shard_arrays(spec, 0))
            background.submit(1, {})
            for shard in range(2, 6):
                background.submit(shard, shard_arrays(spec, shard))
        assert 0 not in writer.pending()
        assert {1, 5} <= set(writer.pending())
        with pytest.raises(ZeroDivisionError) as info, AsyncShardWriter(writer) as background:
            background.submit(1, shard_arrays(spec, 1))
            background.submit(2, {})
            raise ZeroDivisionError
        assert "background writer had failed too" in info.value.__notes__[0]
        assert 1 not in writer.pending()
    with pytest.raises(errors.WriterClosed):
        background.submit(0, {})


def test_full_disk_leaves_a_readable_store_that_resumes(tmp_path: Path) -> None:
    """A file-size limit stands for the full disk: the kernel refuses the write in the same way."""
    code = (
        "import resource, sys; from store_support import *; from pathlib import Path\n"
        "spec = small_spec(n_samples=11); path = Path(sys.argv[1])\n"
        "with create(path, spec) as w:\n"
        "    w.write_shard(0, shard_arrays(spec, 0))\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "    w.write_shard(1, shard_arrays(spec, 1))\n"
    )
    path = tmp_path / "s"
    command = [PYTHON, "-c", code, str(path)]
    child = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=120)
    assert child.returncode == 1
    last = child.stderr.strip().splitlines()[-1]
    assert "DiskFull" in last
    assert "No room to write" in last
    assert "c.1.0.0.0.0" in last
    spec = small_spec(n_samples=11)
    store = ActivationStore.open(path)
    assert store.committed == [0]
    assert store.verify() == []  # no temporary file was left
    with resume(path, spec) as writer:
        for shard in writer.pending():
            writer.write_shard(shard, shard_arrays(spec, shard))
    complete_store(tmp_path / "t", spec)
    assert tree_hashes(path) == tree_hashes(tmp_path / "t")


def test_every_call_that_can_fail_fails_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The k-th open, write, rename or sync fails, for every k; the store stays readable and resumes bit-equal."""
    spec = small_spec(JOINED, n_samples=6)
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # real ones would take most of the test's time
    complete_store(tmp_path / "whole", spec)
    whole = tree_hashes(tmp_path / "whole")
    k = 0
    while True:
        k += 1
        path = tmp_path / f"s{k}"
        fail = FailAt(k, OSError(errno.EIO, "injected"))
        with monkeypatch.context() as patch:
            patch.setattr(fileio, "open_for_writing", fail.wrap(fileio.open_for_writing))
            patch.setattr(fileio, "rename", fail.wrap(fileio.rename))
            patch.setattr(fileio, "sync_folder", fail.wrap(fileio.sync_folder))
            patch.setattr(fileio.TempFile, "write", fail.wrap(fileio.TempFile.write))
            patch.setattr(fileio.TempFile, "finish", fail.wrap(fileio.TempFile.finish))
            try:
                with create(path, spec, fsync=True) as writer:
                    for shard in writer.pending():
                        writer.write_shard(shard, shard_arrays(spec, shard))
            except OSError as error:
                assert error.errno == errno.EIO
            else:
                assert fail.calls < k
                break
        assert fail.calls == k  # the fault did happen
        if (path / "store.json").exists():
            store = ActivationStore.open(path)
            assert [p for p in store.verify() if p.is_damage] == []
            for shard in store.committed:
                store.site(JOINED.name).read(sample=list(spec.shard_samples(shard)))
            writer = resume(path, spec)
        else:
            writer = create(path, spec)
        with writer:
            for shard in writer.pending():
                writer.write_shard(shard, shard_arrays(spec, shard))
        assert tree_hashes(path) == whole
    assert k > 50
