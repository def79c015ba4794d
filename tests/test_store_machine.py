"""A store under arbitrary histories equals a dictionary: writes, failures, kills, damage, repair, gc, groups, readers.

Hypothesis makes up histories; the store is compared with the model, a set of committed shards for
the store and one for its group. What is committed is readable and right; what is not raises; nothing else is seen.
"""

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from store_faults import inputs
from store_support import BITS, FINGERPRINT, JOINED, PLAN, FailAt, create, resume, site_values, small_spec

from activations_store import ActivationStore, AsyncShardWriter, RowLoader, SiteSpec, StoreWriter, errors, gc
from activations_store.storage import fileio

SPEC = replace(small_spec(SiteSpec("q", 5, 6), JOINED, n_samples=9, samples_per_shard=2, n_steps=2), ragged=True)
GROUP = replace(small_spec(BITS, n_samples=9, samples_per_shard=4, n_steps=2), compression="zstd")
SHARD = st.integers(0, SPEC.n_shards - 1)
given, values = cache(inputs), cache(site_values)
ERRORS = (OSError(errno.EIO, "injected"), OSError(errno.ENOSPC, "injected"), KeyboardInterrupt())


class StoreMachine(RuleBasedStateMachine):
    """The histories."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "s"
        self.committed: set[int] = set()
        self.group: set[int] | None = None
        self.reader: ActivationStore | None = None
        create(self.path, SPEC).close()

    def teardown(self) -> None:
        self.read_everything()
        shutil.rmtree(self.folder)

    @rule(shard=SHARD)
    def write(self, shard: int) -> None:
        with resume(self.path, SPEC) as writer:
            writer.write_shard(shard, *given(SPEC, shard))
        self.committed.add(shard)

    @rule(n=st.integers(1, 3))
    def write_in_the_background(self, n: int) -> None:
        with resume(self.path, SPEC) as writer, AsyncShardWriter(writer) as background:
            assert set(writer.pending()) == set(range(SPEC.n_shards)) - self.committed
            for shard in writer.pending()[:n]:
                background.submit(shard, *given(SPEC, shard))
                self.committed.add(shard)

    @rule(shard=SHARD, k=st.integers(1, 30), error=st.sampled_from(ERRORS), killed=st.booleans())
    def fail_while_writing(self, shard: int, k: int, error: BaseException, killed: bool) -> None:
        """The k-th open, write or rename fails, or the process dies there, which cleans up nothing."""
        fail = FailAt(k, error)
        try:
            with failing(fail, killed=killed), resume(self.path, SPEC) as writer:
                writer.write_shard(shard, *given(SPEC, shard))
        except (OSError, KeyboardInterrupt):
            assert fail.calls >= k  # the fault did happen
            # The rename of the record is the commit: a fault after it changes nothing.
            if (self.path / f"commits/{shard:06d}.json").exists():
                self.committed.add(shard)
        else:
            self.committed.add(shard)

    @precondition(lambda self: self.committed)
    @rule(data=st.data())
    def other_values_are_refused(self, data: st.DataObject) -> None:
        shard = data.draw(st.sampled_from(sorted(self.committed)))
        arrays, present = given(SPEC, shard)
        with resume(self.path, SPEC) as writer:
            try:
                writer.write_shard(shard, {name: x + 1 for name, x in arrays.items()}, present)
            except errors.ShardConflict:
                return
        raise AssertionError("other values were taken")

    @precondition(lambda self: self.committed)
    @rule(data=st.data())
    def damage_and_repair(self, data: st.DataObject) -> None:
        shard = data.draw(st.sampled_from(sorted(self.committed)))
        site = data.draw(st.sampled_from(SPEC.sites))
        file = self.path / "arrays" / site.dir_name / f"c.{shard}.0.0.0.0"
        bad = bytearray(file.read_bytes())
        bad[data.draw(st.integers(0, len(bad) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        file.write_bytes(bad)
        problems = [p for p in ActivationStore.open(self.path).verify() if p.is_damage]
        assert [(p.shard, p.site) for p in problems] == [(shard, site.name)]
        with resume(self.path, SPEC) as writer:
            writer.discard([shard])
            assert shard in writer.pending()
            writer.write_shard(shard, *given(SPEC, shard))
        if self.reader is not None:
            self.reader.close()  # a reader that has the damaged file open goes on refusing it until then

    @rule(shard=st.none() | st.integers(0, GROUP.n_shards - 1))
    def extend(self, shard: int | None) -> None:
        with StoreWriter.extend(self.path, "more", GROUP, fingerprint=FINGERPRINT, plan=PLAN) as writer:
            self.group = self.group or set()
            if shard is not None:
                writer.write_shard(shard, *given(GROUP, shard))
                self.group.add(shard)

    @precondition(lambda self: self.group is None)
    @rule(k=st.integers(1, 15), killed=st.booleans())
    def fail_while_extending(self, k: int, killed: bool) -> None:
        fail = FailAt(k, OSError(errno.EIO, "injected"))
        try:
            with failing(fail, killed=killed):
                StoreWriter.extend(self.path, "more", GROUP, fingerprint=FINGERPRINT, plan=PLAN).close()
        except OSError:
            assert fail.calls >= k
        if (self.path / "groups/more").exists():
            self.group = set()

    @rule(old=st.booleans())
    def collect_garbage(self, old: bool) -> None:
        gc(self.path, older_than_hours=-1 if old else 24)
        problems = ActivationStore.open(self.path).verify(full=False)
        assert not [p for p in problems if p.kind in ("uncommitted", "leftover")]

    @precondition(lambda self: self.committed)
    @rule()
    def statistics(self) -> None:
        store = ActivationStore.open(self.path)
        found = store.statistics(JOINED.name, covariance=False)
        rows = values(SPEC, JOINED.name)[sorted(store.committed_samples())]
        np.testing.assert_allclose(found.mean, rows.mean((0, 2, 3)), rtol=1e-6, atol=1e-5)

    @precondition(lambda self: self.committed)
    @rule(position=st.integers(0, 5), seed=st.integers(0, 3))
    def train(self, position: int, seed: int) -> None:
        store = ActivationStore.open(self.path)
        chosen = store.committed_samples()
        with RowLoader(store, JOINED.name, 7, samples=chosen, seed=seed, position=position, pool_rows=50) as loader:
            batch = next(loader)
        expected = values(SPEC, JOINED.name)
        np.testing.assert_array_equal(batch.x, expected[batch.sample, batch.step, batch.branch, batch.token])

    @rule()
    def keep_a_reader_open(self) -> None:
        self.reader = ActivationStore.open(self.path)

    @invariant()
    def committed_is_the_model(self) -> None:
        store = ActivationStore.open(self.path)
        assert set(store.committed) == self.committed
        assert (set(store.groups) == {"more"}) == (self.group is not None)

    @rule()
    def read_everything(self) -> None:
        for store in (ActivationStore.open(self.path), self.reader):
            if store is not None:
                self.compare(store)

    def compare(self, store: ActivationStore) -> None:
        """All that is committed is right, nothing else is seen, nothing is damaged."""
        assert set(store.committed) == self.committed
        view, gaps = store.site(JOINED.name), store.site("q")
        for shard in range(SPEC.n_shards):
            samples = list(SPEC.shard_samples(shard))
            if shard in self.committed:
                np.testing.assert_array_equal(view.read(sample=samples), values(SPEC, JOINED.name)[samples])
                np.testing.assert_array_equal(gaps.present(sample=samples), given(SPEC, shard)[1]["q"])
            else:
                with pytest.raises(errors.MissingSamples):
                    view.read(sample=samples)
        for shard in self.group or ():
            assert set(store.groups["more"].committed) == self.group
            samples = list(GROUP.shard_samples(shard))
            np.testing.assert_array_equal(store.site(BITS.name).read(sample=samples), values(GROUP, BITS.name)[samples])
        assert not [p for p in store.verify() if p.is_damage]


@contextmanager
def failing(fail: FailAt, *, killed: bool) -> Iterator[None]:
    """Every open, write and rename of the package counts, and one fails."""
    with (
        patch.object(fileio, "open_for_writing", fail.wrap(fileio.open_for_writing)),
        patch.object(fileio, "rename", fail.wrap(fileio.rename)),
        patch.object(fileio.TempFile, "write", fail.wrap(fileio.TempFile.write)),
    ):
        if not killed:
            yield
            return
        with patch.object(fileio.TempFile, "__exit__", _leave), patch.object(fileio.TempFolder, "__exit__", _nothing):
            yield


def _leave(self: fileio.TempFile, *_: object) -> None:
    self._file.close()


def _nothing(*_: object) -> None:
    pass


TestStoreMachine = pytest.mark.slow(StoreMachine.TestCase)
TestStoreMachine.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
