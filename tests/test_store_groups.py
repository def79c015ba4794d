"""Site groups: sites added later, whole or not at all, part of the store for every reader and check."""

import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from store_support import (
    BITS,
    FINGERPRINT,
    JOINED,
    LATE,
    PYTHON,
    FailAt,
    child_environment,
    complete_store,
    extend,
    shard_arrays,
    site_values,
    small_spec,
    tree_hashes,
    write_pending,
)

from activations_store import ActivationStore, RowLoader, errors, gc
from activations_store.storage import fileio

SPEC = small_spec(JOINED)


def test_sites_of_a_group_are_sites_of_the_store(tmp_path: Path) -> None:
    path = complete_store(tmp_path / "s", SPEC).path
    before = tree_hashes(path)
    write_pending(extend(path))
    after = tree_hashes(path)
    assert {name: after[name] for name in before} == before  # nothing of the store was touched
    store = ActivationStore.open(path)
    assert store.sites == (JOINED.name, BITS.name, "late")
    assert list(store.groups) == ["more"]
    assert store.holding("late").path == path / "groups/more"
    for name in store.sites:
        spec = SPEC if name == JOINED.name else LATE
        np.testing.assert_array_equal(store.site(name).read(), site_values(spec, name))
    with RowLoader(store, "late", 10, labels={"object": "cup"}) as loader:
        batch = next(loader)
    np.testing.assert_array_equal(
        batch.x, site_values(LATE, "late")[batch.sample, batch.step, batch.branch, batch.token]
    )
    assert store.verify() == []
    assert gc(path) == []
    with pytest.raises(errors.UnknownSite, match="mid_block.*late"):
        store.site("nope")
    # The group is a store that stands alone.
    assert ActivationStore.open(path / "groups/more").complete


def test_a_store_that_is_open_sees_a_new_group(tmp_path: Path) -> None:
    store = complete_store(tmp_path / "s", SPEC)
    write_pending(extend(store.path))
    assert store.site("late").read(sample=0).shape == (1, 3, 2, 3, 4)


def test_a_group_is_resumed_and_may_be_incomplete(tmp_path: Path) -> None:
    path = complete_store(tmp_path / "s", SPEC).path
    with extend(path) as writer:
        writer.write_shard(0, shard_arrays(LATE, 0))
    store = ActivationStore.open(path)
    store.site("late").read(sample=1)
    with pytest.raises(errors.MissingSamples):
        store.site("late").read(sample=2)
    store.site(JOINED.name).read()
    with extend(path) as writer:
        assert 0 not in writer.pending()
    write_pending(extend(path))
    assert store.groups["more"].complete


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"name": "More"}, errors.InvalidSpec, "'More'.*a-z"),
        ({"name": "../x"}, errors.InvalidSpec, "group's name"),
        ({"spec": replace(LATE, n_samples=10)}, errors.SpecMismatch, "n_samples: stored 11, given 10"),
        ({"spec": replace(LATE, branches=("cond",))}, errors.SpecMismatch, "branches"),
        ({"spec": replace(LATE, sites=(JOINED,))}, errors.SpecMismatch, "has the site already"),
        ({"fingerprint": {**FINGERPRINT, "dtype": "x"}}, errors.FingerprintMismatch, "dtype: stored 'float32'"),
    ],
)
def test_groups_that_do_not_fit(tmp_path: Path, change: dict, error: type, message: str) -> None:
    path = complete_store(tmp_path / "s", SPEC).path
    with pytest.raises(error, match=message):
        extend(path, **change)
    assert not (path / "groups").exists()


def test_a_group_cannot_take_another_groups_sites_or_plan(tmp_path: Path) -> None:
    path = complete_store(tmp_path / "s", SPEC).path
    extend(path).close()
    with pytest.raises(errors.SpecMismatch, match="site already"):
        extend(path, "other")
    with pytest.raises(errors.PlanMismatch):
        extend(path, plan={"other": 1})
    with pytest.raises(errors.NotAStore):
        extend(tmp_path / "nothing")


def test_a_folder_that_is_no_group_of_this_store_is_refused(tmp_path: Path) -> None:
    path = complete_store(tmp_path / "s", SPEC).path
    other = complete_store(tmp_path / "t", replace(LATE, n_samples=5)).path
    (path / "groups").mkdir()
    shutil.copytree(other, path / "groups/strange")
    store = ActivationStore.open(path)
    store.site(JOINED.name).read(sample=0)
    with pytest.raises(errors.InvalidMetadata, match="no group of the store.*n_samples"):
        _ = store.sites
    problems = store.verify()
    assert [(p.kind, p.group) for p in problems] == [("metadata", "strange")]
    (path / "groups/link").symlink_to(path / "groups/strange")
    with pytest.raises(errors.UnsafePath):
        _ = store.groups


def test_damage_in_a_group_is_named(tmp_path: Path) -> None:
    path = complete_store(tmp_path / "s", SPEC).path
    write_pending(extend(path))
    file = next((path / "groups/more/arrays").glob("late*/c.1.*"))
    data = bytearray(file.read_bytes())
    data[3] ^= 1
    file.write_bytes(data)
    (problem,) = ActivationStore.open(path).verify()
    assert (problem.kind, problem.group, problem.shard, problem.site) == ("shard", "more", 1, "late")
    assert problem.path == str(file.relative_to(path))


class _Kill(BaseException):
    pass


def test_a_creation_that_fails_anywhere_leaves_the_store_and_no_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The k-th write, rename or open fails, for every k; each time the group can simply be asked for again."""
    whole = complete_store(tmp_path / "whole", SPEC).path
    before = tree_hashes(whole)
    k = 0
    while True:
        k += 1
        path, fail = Path(shutil.copytree(whole, tmp_path / f"s{k}")), FailAt(k, _Kill())
        with monkeypatch.context() as patch:
            patch.setattr(fileio, "open_for_writing", fail.wrap(fileio.open_for_writing))
            patch.setattr(fileio, "rename", fail.wrap(fileio.rename))
            patch.setattr(fileio.TempFile, "write", fail.wrap(fileio.TempFile.write))
            patch.setattr(fileio.shutil, "rmtree", lambda *a, **k: None)  # a kill removes nothing
            try:
                extend(path).close()
            except _Kill:
                assert fail.calls == k  # the fault did happen
            else:
                break
        store = ActivationStore.open(path)
        assert store.sites == (JOINED.name,)
        assert {p.kind for p in store.verify()} == {"leftover"}
        assert {n: h for n, h in tree_hashes(path).items() if n in before} == before
        assert gc(path, older_than_hours=-1)
        assert list((path / "groups").iterdir()) == []
        write_pending(extend(path))
        assert ActivationStore.open(path).verify() == []
    assert k > 10


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_in_a_group_loses_nothing(tmp_path: Path) -> None:
    path = complete_store(tmp_path / "s", SPEC).path
    code = (
        "import os, signal, sys; from pathlib import Path; from store_support import *\n"
        "from activations_store.storage import fileio\n"
        "with extend(Path(sys.argv[1])) as w:\n"
        "    w.write_shard(0, shard_arrays(LATE, 0))\n"
        "    real = fileio.rename\n"
        "    fileio.rename = lambda a, b: os.kill(os.getpid(), signal.SIGKILL) if b.suffix == '.json' else real(a, b)\n"
        "    w.write_shard(1, shard_arrays(LATE, 1))\n"
    )
    child = subprocess.run([PYTHON, "-c", code, str(path)], env=child_environment(), timeout=120)
    assert child.returncode == -signal.SIGKILL
    store = ActivationStore.open(path)
    assert store.groups["more"].committed == [0]
    assert not any(p.is_damage for p in store.verify())
    write_pending(extend(path))
    assert ActivationStore.open(path).verify() == []
    np.testing.assert_array_equal(ActivationStore.open(path).site("late").read(), site_values(LATE, "late"))
