"""Statistics: equal to numpy over the whole array, kept, void when shards are added, damage found."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_support import (
    BITS,
    JOINED,
    complete_store,
    create,
    ragged_masks,
    ragged_spec,
    resume,
    shard_arrays,
    site_values,
    small_spec,
    write_ragged,
)

from activations_store import ActivationStore, SiteSpec, errors, gc
from activations_store.views import statistics
from activations_store.views.statistics_file import LEVELS, read_statistics

SINGLE = SiteSpec("single", 9, 6, dtype="float32")


def by_step(values: np.ndarray) -> np.ndarray:
    """(steps, rows, channels) float64."""
    return np.moveaxis(values, 1, 0).reshape(values.shape[1], -1, values.shape[-1]).astype(np.float64)


@pytest.mark.parametrize("site", [JOINED, BITS, SINGLE], ids=lambda s: s.dtype)
def test_statistics_are_those_of_numpy(tmp_path: Path, site: SiteSpec) -> None:
    spec = small_spec(site)
    store = complete_store(tmp_path / "s", spec)
    found = store.statistics(site.name)
    assert found.covariance is not None
    for step, rows in enumerate(by_step(site_values(spec, site.name))):
        assert (found.n_rows[step], found.n_skipped[step]) == (len(rows), 0)
        np.testing.assert_allclose(found.mean[step], rows.mean(0), rtol=1e-12, atol=1e-9)
        np.testing.assert_allclose(found.variance[step], rows.var(0), rtol=1e-6)
        np.testing.assert_allclose(found.covariance[step], np.cov(rows.T, bias=True), rtol=1e-5, atol=0.05)
        quantiles = np.quantile(rows, LEVELS, method="inverted_cdf")
        np.testing.assert_allclose(found.values[step], quantiles, rtol=2**-8 if site is SINGLE else 0)
        norms = np.linalg.norm(rows, axis=1)
        assert found.norm_mean[step] == pytest.approx(norms.mean())
        np.testing.assert_allclose(found.norms[step], np.quantile(norms, LEVELS, method="inverted_cdf"), rtol=2**-9)


def test_a_large_mean_does_not_swallow_a_small_variance(tmp_path: Path) -> None:
    spec = small_spec(SINGLE)
    rng = np.random.default_rng(0)
    with create(tmp_path / "s", spec) as writer:
        parts = {}
        for shard in writer.pending():
            parts[shard] = (1e4 + rng.normal(size=spec.shard_shape("single", shard))).astype(np.float32)
            writer.write_shard(shard, {"single": parts[shard]})
    found = ActivationStore.open(tmp_path / "s").statistics("single", covariance=False)
    assert found.covariance is None
    rows = by_step(np.concatenate([parts[i] for i in sorted(parts)]))
    np.testing.assert_allclose(found.variance, rows.var(1), rtol=1e-5)
    np.testing.assert_allclose(found.mean, rows.mean(1), rtol=1e-12)


def test_missing_maps_and_nan_are_left_out(tmp_path: Path) -> None:
    spec = ragged_spec(JOINED, BITS)
    store = write_ragged(tmp_path / "r", spec)
    found, mask, full = store.statistics(JOINED.name), ragged_masks(spec)[JOINED.name], site_values(spec, JOINED.name)
    for step in range(3):
        rows = full[:, step][mask[:, step]].reshape(-1, 8)
        assert found.n_rows[step] == len(rows)
        np.testing.assert_allclose(found.mean[step], rows.mean(0), rtol=1e-6, atol=1e-6)
    arrays = shard_arrays(small_spec(JOINED, n_samples=2), 0)
    arrays[JOINED.name][0, 1, 0, 3, 2] = np.nan
    arrays[JOINED.name][:, 2] = np.inf
    with create(tmp_path / "n", small_spec(JOINED, n_samples=2), allow_nonfinite=True) as writer:
        writer.write_shard(0, arrays)
    found = ActivationStore.open(tmp_path / "n").statistics(JOINED.name)
    assert found.n_skipped.tolist() == [0, 1, 64]
    assert np.isnan(found.mean[2]).all()
    assert np.isnan(found.values[2]).all()
    assert np.isfinite(found.mean[:2]).all()


def test_kept_until_a_shard_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = small_spec(JOINED)
    with create(tmp_path / "s", spec) as writer:
        writer.write_shard(0, shard_arrays(spec, 0))
    store = ActivationStore.open(tmp_path / "s")
    first = store.statistics(JOINED.name)
    with monkeypatch.context() as patch:
        patch.setattr(
            "activations_store.views.statistics.compute_statistics", lambda *a, **k: pytest.fail("computed again")
        )
        again = ActivationStore.open(tmp_path / "s").statistics(JOINED.name)
    np.testing.assert_array_equal(again.mean, first.mean)
    np.testing.assert_array_equal(again.covariance, first.covariance)
    assert store.verify() == []
    with resume(tmp_path / "s", spec) as writer:
        writer.write_shard(1, shard_arrays(spec, 1))
    with pytest.raises(errors.InvalidStatistics, match="not about what is committed now"):
        read_statistics(store, JOINED.name)
    assert [(p.kind, p.is_damage) for p in store.verify()] == [("stale", False)]
    assert store.statistics(JOINED.name).n_rows[0] == 2 * first.n_rows[0]
    assert store.verify() == []


def test_a_store_that_cannot_be_written_to_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = small_spec(JOINED)
    with create(tmp_path / "s", spec) as writer:
        writer.write_shard(0, shard_arrays(spec, 0))
    store, failure = ActivationStore.open(tmp_path / "s"), OSError(errno.EROFS, "Read-only file system")

    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr("activations_store.views.statistics_file.write_atomic", fail)
    found = store.statistics(JOINED.name)
    assert found.n_rows[0] > 0 and "cannot be written to" in caplog.text
    assert not list((tmp_path / "s" / "statistics").iterdir())
    failure = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space"):
        store.statistics(JOINED.name)


def test_a_shard_committed_meanwhile_is_not_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection goes on while statistics are computed: what is kept covers the shards that were counted."""
    spec = small_spec(JOINED)
    with create(tmp_path / "s", spec) as writer:
        writer.write_shard(0, shard_arrays(spec, 0))
        store = ActivationStore.open(tmp_path / "s")
        with monkeypatch.context() as patch:
            stack = statistics._stacked

            def stack_late(*args: Any) -> Any:
                writer.write_shard(1, shard_arrays(spec, 1))
                return stack(*args)

            patch.setattr(statistics, "_stacked", stack_late)
            first = store.statistics(JOINED.name)
    assert store.committed == [0, 1]
    assert store.statistics(JOINED.name).n_rows[0] == 2 * first.n_rows[0]


def test_branches_are_kept_apart(tmp_path: Path) -> None:
    spec = small_spec(JOINED)
    store = complete_store(tmp_path / "s", spec)
    cond = store.statistics(JOINED.name, branches="cond", covariance=False)
    assert cond.branches == ("cond",)
    np.testing.assert_allclose(cond.mean, by_step(site_values(spec, JOINED.name)[:, :, 1:]).mean(1), atol=1e-9)
    assert store.statistics(JOINED.name).branches == ("uncond", "cond")
    assert store.statistics(JOINED.name, branches=["cond"]).covariance is not None  # computed again, with it
    assert len(list((store.path / "statistics").iterdir())) == 2
    assert store.verify() == []
    with pytest.raises(errors.MissingSamples), create(tmp_path / "t", spec):
        ActivationStore.open(tmp_path / "t").statistics(JOINED.name)


def test_every_flipped_byte_of_the_file_is_found(tmp_path: Path) -> None:
    store = complete_store(tmp_path / "s", small_spec(SiteSpec("a", 2, 2), n_samples=4))
    before = store.statistics("a")
    (file,) = (store.path / "statistics").iterdir()
    data = file.read_bytes()
    rng = np.random.default_rng(0)
    for spot in {0, 7, 8, len(data) - 1, *rng.integers(0, len(data), 60).tolist()}:
        bad = bytearray(data)
        bad[spot] ^= 1 << int(rng.integers(8))
        file.write_bytes(bad)
        with pytest.raises(errors.InvalidStatistics):
            read_statistics(store, "a")
        assert [p.kind for p in store.verify(full=False) if p.is_damage] == ["statistics"]
    for size in (0, 5, 100, len(data) - 1):
        file.write_bytes(data[:size])
        with pytest.raises(errors.InvalidStatistics):
            read_statistics(store, "a")
    np.testing.assert_array_equal(store.statistics("a").mean, before.mean)  # computed again
    assert file.read_bytes() == data


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs")
def test_hostile_places(tmp_path: Path) -> None:
    store = complete_store(tmp_path / "s", small_spec(SiteSpec("a", 2, 2), n_samples=4))
    store.statistics("a")
    (file,) = (store.path / "statistics").iterdir()
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(errors.UnsafePath):
        store.statistics("a")
    file.unlink()
    with file.open("wb") as huge:
        huge.truncate(50 * 2**30)  # sparse
    with pytest.raises(errors.InvalidStatistics, match="too large"):
        read_statistics(store, "a")
    assert [p.kind for p in store.verify()] == ["statistics"]
    file.unlink()
    (store.path / "statistics/.a.safetensors.0badc0de-1-1.tmp").write_bytes(b"x")
    assert len(gc(store.path, older_than_hours=-1)) == 1
