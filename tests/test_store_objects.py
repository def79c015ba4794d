"""Stores in S3-compatible storage, on a real server on this machine: read, written, copied, damaged, fought over."""

import logging
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
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
    extend,
    ragged_spec,
    sample_table,
    shard_arrays,
    small_spec,
    tree_hashes,
    write_pending,
    write_ragged,
)

from activations_store import ActivationStore, RowLoader, SiteSpec, StoreWriter, copy, errors, gc
from activations_store.storage.objects import ObjectPath, place
from sae.data import select
from sae.errors import EmptySelection

obstore = pytest.importorskip("obstore")
moto = pytest.importorskip("moto.server")
SPEC = small_spec(JOINED, SiteSpec("q", 9, 7, dtype="int8"))


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        request = urllib.request.Request(f"http://{host}:{port}/bucket", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def url(endpoint: str, request: pytest.FixtureRequest) -> str:
    """A place of its own for every test."""
    return f"s3://bucket/{abs(hash(request.node.nodeid))}/store"


def files(path: Path) -> dict[str, str]:
    """A store's files, without the locks that only a local one has."""
    return {name: digest for name, digest in tree_hashes(path).items() if not name.endswith(".lock")}


def at(url: str, part: str) -> ObjectPath:
    found = ObjectPath.parse(url)
    for name in part.split("/"):
        found = found / name
    return found


def shard_of(url: str, number: int) -> ObjectPath:
    return at(url, f"arrays/{JOINED.dir_name}/c.{number}.0.0.0.0")


def write_directly(url: str, spec=SPEC) -> None:
    given = {"fingerprint": FINGERPRINT, "plan": PLAN}
    try:
        writer = StoreWriter.create(url, spec, sample_table(spec), **given)
    except errors.StoreExists:
        writer = StoreWriter.resume(url, spec=spec, **given)
    with writer:
        for shard in writer.pending():
            writer.write_shard(shard, shard_arrays(spec, shard))


def test_copies_there_and_back_are_equal(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(ragged_spec(JOINED, BITS), compression="zstd")
    store = write_ragged(tmp_path / "a", spec)
    store.statistics(JOINED.name, covariance=False)
    group = replace(spec, sites=(SiteSpec("late", 3, 4),), ragged=False, compression=None, samples_per_shard=2)
    write_pending(extend(store.path, spec=group))
    for folder in ("images", "masks"):
        (store.path / folder).mkdir()
        (store.path / folder / "000003.png").write_bytes(folder.encode())
    seen: list[tuple[int, int]] = []
    copy(store.path, url, progress=lambda done, n: seen.append((done, n)))
    assert seen[-1] == (len(seen), len(seen)) and len(seen) == spec.n_shards + group.n_shards
    copy(url, tmp_path / "b")
    copy(tmp_path / "b", tmp_path / "c")
    assert files(tmp_path / "b") == files(tmp_path / "c") == files(store.path)
    assert ActivationStore.open(url).verify() == ActivationStore.open(tmp_path / "c").verify() == []
    with monkeypatch.context() as patch:  # all is there: statistics are written anew, nothing else
        puts: list[str] = []
        patch.setattr(ObjectPath, "put", lambda self, data, **_: puts.append(self.parent.name))
        copy(store.path, url)
    assert set(puts) == {"statistics"}


def test_reading_is_the_same(tmp_path: Path, url: str) -> None:
    here = complete_store(tmp_path / "a", SPEC)
    kept = here.statistics("q")
    copy(here.path, url)
    there = ActivationStore.open(url)
    assert there.sites == here.sites and there.complete and there.groups == {}
    for name in here.sites:
        np.testing.assert_array_equal(there.site(name).read(), here.site(name).read())
        some = here.site(name).sel(sample=here.where(object="cup"), step=-1, branch="cond")
        np.testing.assert_array_equal(there.site(name).sel(some.samples, -1, "cond").read(), some.read())
        np.testing.assert_array_equal(there.site(name).zarr()[3:6], here.site(name).zarr()[3:6])
    np.testing.assert_array_equal(there.statistics("q").mean, kept.mean)
    assert there.has_statistics("q") and there.n_bytes("q") == here.n_bytes("q")
    options = {"pool_rows": 200, "seed": 3, "labels": {"style": "neon"}}
    with (
        RowLoader(here, JOINED.name, 64, **options) as ours,
        RowLoader(there, JOINED.name, 64, threads=3, **options) as theirs,
    ):
        for a, b in islice(zip(ours, theirs, strict=True), 12):
            for one, other in zip(a, b, strict=True):
                np.testing.assert_array_equal(one, other)
    with pytest.raises(EmptySelection, match=r"s3://.* samples \[99\] are not committed"):
        select(there, "q", samples=[99])
    there.statistics(JOINED.name)  # computed there, and kept there
    assert ActivationStore.open(url).has_statistics(JOINED.name)
    assert there.verify() == []


def test_written_directly_is_what_is_written_here(tmp_path: Path, url: str) -> None:
    write_directly(url)
    copy(url, tmp_path / "b")
    assert files(tmp_path / "b") == files(complete_store(tmp_path / "a", SPEC).path)
    with pytest.raises(errors.StoreExists, match="is a store at"):
        StoreWriter.create(url, SPEC, sample_table(SPEC), fingerprint=FINGERPRINT, plan=PLAN)


@pytest.mark.parametrize("when", ["before", "after"])
def test_stopped_at_every_put(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    spec = small_spec(JOINED, n_samples=7)
    whole = files(complete_store(tmp_path / "a", spec).path)
    values = {name: ActivationStore.open(tmp_path / "a").site(name).read() for name in (JOINED.name,)}
    real, k = ObjectPath.put, 0
    while True:
        k += 1
        target = f"{url}{k}"
        fail = FailAt(k, KeyboardInterrupt())

        def put(self: ObjectPath, data: bytes, fail: FailAt = fail, **options: bool) -> None:
            if when == "after":  # it is there, and its writer never learns of it
                real(self, data, **options)
            fail.wrap(lambda: None)()
            if when == "before":
                real(self, data, **options)

        with monkeypatch.context() as patch:
            patch.setattr(ObjectPath, "put", put)
            with suppress(KeyboardInterrupt):
                write_directly(target, spec)
        if fail.calls < k:
            break
        if at(target, "store.json").exists():  # what is committed is whole
            store = ActivationStore.open(target)
            assert [p for p in store.verify() if p.is_damage] == []
            samples = store.committed_samples()
            for name, x in values.items() if len(samples) else ():
                np.testing.assert_array_equal(store.site(name).read(sample=samples), x[samples])
        write_directly(target, spec)
        copy(target, tmp_path / f"b{k}")
        assert files(tmp_path / f"b{k}") == whole
    assert k - 1 == 2 + 2 + 2 * 2  # zarr.json of group and site, table, store.json; then a file and a record a shard


def test_writers_of_one_shard_agree_or_fail(tmp_path: Path, url: str) -> None:
    create(tmp_path / "a", SPEC).close()
    copy(tmp_path / "a", url)
    given = {"spec": SPEC, "fingerprint": FINGERPRINT, "plan": PLAN}
    arrays = shard_arrays(SPEC, 0)
    other = {**arrays, "q": arrays["q"] + 1}
    with StoreWriter.resume(url, **given) as first, StoreWriter.resume(url, **given) as second:
        record = first.write_shard(0, arrays)
        assert second.write_shard(0, arrays).to_bytes() == record.to_bytes()
        with pytest.raises(errors.ShardConflict, match="committed already with other values"):
            second.write_shard(0, other)
        # An object without a record, as a writer leaves it that was killed or is about to commit.
        first.write_shard(1, shard_arrays(SPEC, 1))
        at(url, "commits/000001.json").unlink()
        with pytest.raises(errors.ShardConflict, match="nothing is overwritten"):
            second.write_shard(1, {name: x + 1 for name, x in shard_arrays(SPEC, 1).items()})
        second.write_shard(1, shard_arrays(SPEC, 1))
    assert ActivationStore.open(url).verify() == []


def test_writers_in_several_processes(tmp_path: Path, url: str) -> None:
    create(tmp_path / "a", SPEC).close()
    copy(tmp_path / "a", url)
    program = f"import test_store_objects as t; t.write_directly({url!r})"
    children = [subprocess.Popen([PYTHON, "-c", program], env=child_environment()) for _ in range(2)]
    assert [child.wait(300) for child in children] == [0, 0]
    copy(url, tmp_path / "b")
    assert files(tmp_path / "b") == files(complete_store(tmp_path / "c", SPEC).path)


def test_damage_is_found_and_not_copied(tmp_path: Path, url: str) -> None:
    copy(complete_store(tmp_path / "a", SPEC).path, url)
    victim = shard_of(url, 1)
    whole = victim.read(10**6)
    flipped = bytearray(whole)
    flipped[50] ^= 1
    for bad in (bytes(flipped), whole[:-9], shard_of(url, 0).read(10**6), None):
        victim.unlink() if bad is None else victim.put(bad, replace=True)
        store = ActivationStore.open(url)
        assert [(p.kind, p.shard, p.site) for p in store.verify()] == [("shard", 1, JOINED.name)]
        with pytest.raises(errors.CorruptShard):
            store.site(JOINED.name).read(sample=5)
        with pytest.raises((errors.CorruptShard, FileNotFoundError)):
            copy(url, tmp_path / "b")
        assert ActivationStore.open(tmp_path / "b").committed == [0]


def test_damage_is_dropped_and_filled_by_command(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    from apps.cli import main

    here = complete_store(tmp_path / "a", SPEC)
    assert main(["store", "copy", str(here.path), url]) == 0
    shard_of(url, 1).put(b"other bytes", replace=True)
    assert main(["store", "verify", url]) == 1
    assert f"denoscope store verify {url} --repair" in capsys.readouterr().out
    assert main(["store", "verify", url, "--repair"]) == 0
    assert f"denoscope store copy STORE {url}" in capsys.readouterr().out
    assert ActivationStore.open(url).committed == [0, 2]
    assert main(["store", "copy", str(here.path), url]) == 0
    assert main(["store", "info", url]) == 0
    assert "3 of 3" in capsys.readouterr().out
    assert ActivationStore.open(url).verify() == []


def test_hostile_objects(tmp_path: Path, url: str) -> None:
    copy(complete_store(tmp_path / "a", SPEC).path, url)
    at(url, "commits/000000.json").put(b"[" * 10**6, replace=True)
    store = ActivationStore.open(url)
    with pytest.raises(errors.InvalidRecord, match="too large"):
        store.site("q").read(sample=0)
    assert [p.kind for p in store.verify()] == ["record"]
    at(url, "arrays/zarr.json").put(b"{}", replace=True)
    with pytest.raises(errors.InvalidMetadata, match="does not say what store.json says"):
        ActivationStore.open(url)
    for data in (b"[" * 10**5, b"{}" + bytes(17 * 2**20)):  # the second is refused before it is fetched
        at(url, "store.json").put(data, replace=True)
        with pytest.raises(errors.InvalidMetadata):
            ActivationStore.open(url)


@pytest.mark.parametrize(
    "text",
    ["s3://", "s3://bucket", "s3://bucket/", "s3://UPPER/x", "s3://bucket/../x", "s3://bucket/a//b", "s3://b?/x"],
)
def test_places_that_cannot_be(text: str) -> None:
    with pytest.raises(errors.UnsafePath, match="s3://BUCKET/KEY"):
        ActivationStore.open(text)


def test_what_is_not_there_or_does_not_work(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.NotAStore):
        ActivationStore.open(url)
    with pytest.raises(errors.StorageUnavailable, match="check the bucket"):
        ActivationStore.open(url.replace("bucket", "other-bucket"))
    write_directly(url)
    with pytest.raises(errors.NotInObjectStore, match="denoscope store copy"):
        gc(url)
    with pytest.raises(errors.NotInObjectStore):
        _ = ActivationStore.open(url).path
    with pytest.raises(errors.NotInObjectStore):
        StoreWriter.extend(url, "more", replace(SPEC, sites=(BITS,)), fingerprint=FINGERPRINT, plan=PLAN)
    other = complete_store(tmp_path / "other", small_spec(BITS)).path
    with pytest.raises(errors.StoreExists, match="another store"):
        copy(other, url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("activations_store.storage.objects.RETRIES", {"max_retries": 0})
    with pytest.raises(errors.StorageUnavailable, match="AWS_ENDPOINT_URL"):
        ActivationStore.open(url)


def test_nothing_is_loaded_for_local_stores(tmp_path: Path) -> None:
    complete_store(tmp_path / "a", SPEC)
    program = (
        "import sys, activations_store as a; a.ActivationStore.open(sys.argv[1]).site('q').read(); "
        "assert 'obstore' not in sys.modules; sys.modules['obstore'] = sys.modules['obstore.store'] = None\n"
        "try: a.ActivationStore.open('s3://bucket/x')\n"
        "except a.errors.MissingLibrary as error: print(error)"
    )
    command = [PYTHON, "-c", program, str(tmp_path / "a")]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=True, timeout=120)
    assert "pip install 'denoscope[s3]'" in done.stdout


def test_paths_of_this_machine_stay_paths(tmp_path: Path) -> None:
    assert place(str(tmp_path)) == place(tmp_path) == tmp_path
    assert str(place("s3://bucket/a/b/")) == "s3://bucket/a/b"


def test_a_collection_goes_there(
    tiny_folder: Path,
    tmp_path: Path,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from apps.cli import main

    (tmp_path / "p.txt").write_text("a red star\na blue moon\nthe green cup")
    command = ["collect", "--model", str(tiny_folder), "--prompts", str(tmp_path / "p.txt"), "--steps", "2"]
    command += ["--sites", "mid_block", "--batch-size", "1", "--out"]
    assert main([*command, str(tmp_path / "run")]) == 0
    real = ObjectPath.put
    fail = FailAt(6, OSError("the network is gone"))  # metadata and one image are there
    with monkeypatch.context() as patch:
        patch.setattr(ObjectPath, "put", fail.wrap(real))
        assert main([*command, url]) != 0
    assert "the network is gone" in capsys.readouterr().err
    assert fail.calls >= 6
    assert ActivationStore.open(url).committed == []
    assert main([*command, url]) == 0
    copy(url, tmp_path / "b")
    found = files(tmp_path / "b")
    assert found == files(tmp_path / "run/store") and sum(name.startswith("images/") for name in found) == 3
    assert main([*command, url, "--group", "more"]) != 0
    assert "works on local stores only" in capsys.readouterr().err
