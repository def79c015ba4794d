"""Lazy views, xarray, labels, torch rows, the measured quality of the shuffle."""

import gc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from store_support import (
    BITS,
    JOINED,
    complete_store,
    create,
    ragged_masks,
    ragged_spec,
    shard_arrays,
    site_values,
    small_spec,
    write_ragged,
)

from activations_store import ActivationStore, RowLoader, SiteSpec, effective_batch_size, errors, shuffle_quality
from activations_store.loading.torch_rows import TensorRows

xarray = pytest.importorskip("xarray")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return complete_store(tmp_path_factory.mktemp("reading") / "s", small_spec(JOINED, BITS))


def test_sel_is_lazy_and_composes(store: ActivationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    full = site_values(store.spec, JOINED.name)
    with monkeypatch.context() as patch:
        patch.setattr(ActivationStore, "open_shard", lambda *_: pytest.fail("something was read"))
        view = store.site(JOINED.name).sel(sample=slice(2, 9), step=[2, 0], branch="cond")
        view = view.sel(sample=[-1, 0], token=slice(4, None, 4))
        assert view.shape == (2, 2, 1, 3, 8)
        assert view.samples.tolist() == [8, 2]
        assert view.steps.tolist() == [2, 0]
        assert view.branches == ("cond",)
        assert view.tokens.tolist() == [4, 8, 12]
        with pytest.raises(errors.InvalidSelection, match="No branch 'uncond'.*cond"):
            view.sel(branch="uncond")
        with pytest.raises(errors.InvalidSelection, match="No sample 2"):
            view.sel(sample=2)
    expected = full[[8, 2]][:, [2, 0]][:, :, 1:][:, :, :, 4::4]
    np.testing.assert_array_equal(view.read(), expected)
    np.testing.assert_array_equal(np.asarray(view), expected)
    assert np.asarray(view, dtype=np.float64).dtype == np.float64
    np.testing.assert_array_equal(view.sel(step=1).read(token=0), expected[:, 1:, :, :1])


def test_where_chooses_by_label(store: ActivationStore) -> None:
    assert store.where(object="cup", style="flat").tolist() == [0, 6]
    assert store.where(object=["cup", "moon"]).tolist() == [0, 2, 3, 5, 6, 8, 9]
    with pytest.raises(errors.UnknownLabel, match="'colour'.*object, style"):
        store.where(colour="red")
    with pytest.raises(errors.InvalidSelection, match="'dog'.*cup, moon, star"):
        store.where(object=["cup", "dog"])
    with RowLoader(store, JOINED.name, 16, labels={"object": "cup"}, samples=range(7)) as loader:
        batches = list(islice(loader, loader.rows_per_epoch // 16))
    assert set(np.concatenate([b.sample for b in batches]).tolist()) == {0, 3, 6}
    with pytest.raises(errors.InvalidSelection, match="No chosen sample has the labels"):
        RowLoader(store, JOINED.name, 4, labels={"object": "cup"}, samples=[1, 2])


def test_xarray_has_the_values_and_the_coordinates(store: ActivationStore) -> None:
    full = site_values(store.spec, JOINED.name)
    array = store.site(JOINED.name).to_xarray()
    assert array.dims == ("sample", "step", "branch", "token", "channel")
    assert array.dtype == np.float16
    assert array.t.values.tolist() == [900, 800, 700]
    assert array.log_snr.values.tolist() == [0.0, 1.0, 2.0]
    assert array.prompt.values[4] == "a photo of number 4"
    assert array.label_object.values.tolist()[:3] == ["cup", "star", "moon"]
    assert array.y.values[5], array.x.values[5] == (1, 1)
    np.testing.assert_array_equal(array.values, full)
    np.testing.assert_array_equal(array.sel(step=2, branch="cond", sample=[7, 3]).values, full[[7, 3], 2, 1])
    np.testing.assert_array_equal(array[::-2, :, 0, 3:5, [1, 0]].values, full[::-2, :, 0, 3:5][..., [1, 0]])
    np.testing.assert_array_equal(array.where(array.label_object == "cup", drop=True).values, full[::3])
    assert array[:0].values.shape == (0, 3, 2, 16, 8)
    np.testing.assert_allclose(array.mean(("sample", "token")).values, full.mean((0, 3)), atol=0.1)
    part = store.site(JOINED.name).sel(sample=[4, 2], step=1).to_xarray()
    np.testing.assert_array_equal(part.sel(sample=2).values, full[2, [1]])


def test_xarray_of_a_whole_store_reads_nothing_until_asked(
    store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ActivationStore, "open_shard", lambda *_: pytest.fail("something was read"))
        dataset = store.to_xarray()
        chosen = dataset[BITS.name].sel(step=1)
    assert dataset[JOINED.name].dims == ("sample", "step", "branch", "token_16", "channel_8")
    np.testing.assert_array_equal(chosen.values, site_values(store.spec, BITS.name)[:, 1])


def test_xarray_of_sites_of_one_shape(tmp_path: Path) -> None:
    spec = small_spec(JOINED, SiteSpec("other", 16, 8))
    dataset = complete_store(tmp_path / "s", spec).to_xarray()
    assert dataset["other"].dims == ("sample", "step", "branch", "token", "channel")
    np.testing.assert_array_equal(dataset["other"].values, site_values(spec, "other"))


def test_what_is_not_there_in_xarray(tmp_path: Path) -> None:
    spec = ragged_spec(JOINED, BITS)
    ragged = write_ragged(tmp_path / "r", spec)
    values = ragged.to_xarray()[JOINED.name].values
    np.testing.assert_array_equal(np.isnan(values).all((-1, -2)), ~ragged_masks(spec)[JOINED.name])
    with create(tmp_path / "s", small_spec(JOINED)) as writer:
        writer.write_shard(0, shard_arrays(small_spec(JOINED), 0))
    array = ActivationStore.open(tmp_path / "s").site(JOINED.name).to_xarray()
    assert array[:4].values.shape[0] == 4
    with pytest.raises(errors.MissingSamples):
        _ = array[3:5].values


def test_torch_rows_are_the_rows(store: ActivationStore) -> None:
    with RowLoader(store, JOINED.name, 40, seed=3) as loader:
        expected = list(islice(loader, 30))
    with RowLoader(store, JOINED.name, 40, seed=3, position=2).tensors() as rows:
        assert isinstance(rows, TensorRows)
        for batch, want in zip(rows, expected[2:], strict=False):
            assert batch.x.dtype == torch.float32
            assert batch.x.is_pinned() == torch.cuda.is_available()
            for a, b in zip(batch, want, strict=True):
                np.testing.assert_array_equal(a.numpy(), b)
        assert rows.loader.position == 31
    with pytest.raises(ValueError, match="closed"):
        next(rows)


def test_coordinates_are_known_without_reading(store: ActivationStore) -> None:
    for rank, world, pool_rows in ((0, 1, 65536), (1, 3, 65536), (0, 1, 50)):
        with RowLoader(store, JOINED.name, 30, seed=4, rank=rank, world=world, pool_rows=pool_rows) as loader:
            for position, batch in enumerate(islice(loader, 45)):  # more than an epoch
                np.testing.assert_array_equal(loader.coordinates(position), np.stack(batch[1:]))


def test_effective_batch_size_of_known_batches() -> None:
    assert effective_batch_size(np.arange(64), 0.3) == 64  # all rows of different images
    assert effective_batch_size(np.zeros(64, int), 1.0) == 1  # copies of one row
    assert effective_batch_size(np.repeat(np.arange(4), 16), 0.5) == pytest.approx(64 / (1 + 15 * 0.5))
    with pytest.raises(errors.InvalidSelection):
        effective_batch_size(np.arange(4), 1.5)
    with pytest.raises(errors.InvalidSelection):
        effective_batch_size(np.empty(0, int))


def test_effective_batch_size_is_the_variance_of_the_mean() -> None:
    """Rows x = sqrt(rho) image + sqrt(1 - rho) noise: the batch mean has variance 1 / B_eff."""
    rng, rho = np.random.default_rng(0), 0.3
    images = rng.integers(0, 12, 60)
    means = np.sqrt(rho) * rng.normal(size=(20000, 12))[:, images].mean(1)
    means += np.sqrt(1 - rho) * rng.normal(size=(20000, 60)).mean(1)
    assert 1 / means.var() == pytest.approx(effective_batch_size(images, rho), rel=0.05)


def test_shuffle_quality_against_a_full_permutation(tmp_path: Path) -> None:
    spec = small_spec(SiteSpec("a", 64, 8), n_samples=64, samples_per_shard=16, n_steps=4)
    store = complete_store(tmp_path / "s", spec)
    with RowLoader(store, "a", 256, pool_rows=10**6) as loader:
        whole = shuffle_quality(loader, batches=64)
        assert loader.position == 0
    assert whole.ratio == pytest.approx(1, abs=0.03)  # one window over everything is a full permutation
    assert whole.images == pytest.approx(64 * (1 - (1 - 1 / 64) ** 256), rel=0.03)
    with RowLoader(store, "a", 256, pool_rows=1024) as loader:
        narrow = shuffle_quality(loader)
        with pytest.raises(errors.InvalidSelection, match="batches is too small"):
            shuffle_quality(loader, batches=0)
    assert narrow.ratio < 0.6  # the chunks of this tiny store hold 16 images, so a small pool sees few
    with RowLoader(store, "a", 256, pool_rows=256, rank=1, world=2) as loader:
        assert 1 <= shuffle_quality(loader, rho=1.0).effective <= 256


def test_a_store_that_is_dropped_closes_its_files(tmp_path: Path) -> None:
    path = complete_store(tmp_path / "s", small_spec(JOINED, n_samples=2)).path
    gc.collect()
    gc.disable()  # a store in a cycle would keep its shards open until the collector comes
    try:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(3):
            ActivationStore.open(path).site(JOINED.name).read()
        assert len(list(Path("/proc/self/fd").iterdir())) == before
    finally:
        gc.enable()
