"""What is written is what is read: by this package, by zarr, in every dtype, with and without compression."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
import zarr.codecs
from hypothesis import given, settings
from hypothesis import strategies as st
from store_support import (
    BITS,
    FINGERPRINT,
    JOINED,
    PLAN,
    SPLIT,
    complete_store,
    create,
    sample_table,
    shard_arrays,
    site_values,
    small_spec,
    tree_hashes,
)

from activations_store import ActivationStore, SiteSpec, errors
from activations_store.format.dtypes import DTYPES


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return complete_store(tmp_path_factory.mktemp("roundtrip") / "s", small_spec(n_samples=11))


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_zarr_reads_the_same_values(tmp_path: Path, compression: str | None) -> None:
    spec = small_spec(JOINED, SPLIT, BITS, n_samples=3, samples_per_shard=2, n_steps=2, compression=compression)
    store = complete_store(tmp_path / "s", spec)
    group = zarr.open_group(store.path / "arrays", mode="r")
    assert set(group.array_keys()) == {s.dir_name for s in spec.sites}
    for site in spec.sites:
        array = group[site.dir_name]
        assert isinstance(array, zarr.Array)
        expected = site_values(spec, site.name)
        raw = np.asarray(array[:])
        plain = (raw.astype(np.uint32) << 16).view(np.float32) if site.dtype == "bfloat16" else raw
        np.testing.assert_array_equal(plain, expected)
        np.testing.assert_array_equal(store.site(site.name).read(), expected)
        np.testing.assert_array_equal(store.site(site.name).zarr()[:], raw)
        assert array.metadata.dimension_names == ("sample", "step", "branch", "token", "channel")  # type: ignore[union-attr]
        assert array.attrs["site"] == site.name
        assert array.attrs["dtype"] == site.dtype


def test_shards_that_zarr_writes_are_read(tmp_path: Path) -> None:
    """zarr orders chunks in a shard in its own way; the index says where they are."""
    spec = small_spec(JOINED, n_samples=8, samples_per_shard=4)
    store = complete_store(tmp_path / "s", spec)
    for file in (store.path / "arrays" / JOINED.dir_name).glob("c.*"):
        file.unlink()
    array = zarr.open_array(store.path / "arrays" / JOINED.dir_name, mode="r+")
    array[:] = site_values(spec, JOINED.name).astype(np.float16)
    np.testing.assert_array_equal(store.site(JOINED.name).read(), site_values(spec, JOINED.name))


def test_our_metadata_is_what_zarr_would_write(tmp_path: Path) -> None:
    spec = small_spec(JOINED, compression="zstd")
    store = complete_store(tmp_path / "s", spec)
    ours = zarr.open_array(store.path / "arrays" / JOINED.dir_name, mode="r")
    grid = spec.grid(JOINED.name)
    theirs = zarr.create_array(
        tmp_path / "z",
        shape=grid.array_shape,
        shards=grid.shard_shape,
        chunks=grid.chunk_shape,
        dtype="float16",
        fill_value=float("nan"),
        compressors=[zarr.codecs.ZstdCodec(level=1), zarr.codecs.Crc32cCodec()],
        dimension_names=["sample", "step", "branch", "token", "channel"],
        chunk_key_encoding={"name": "default", "separator": "."},
        attributes=dict(ours.attrs),
    )
    assert str(ours.metadata.to_dict()) == str(theirs.metadata.to_dict())


def test_uncommitted_samples_are_nan_to_zarr_and_an_error_here(tmp_path: Path) -> None:
    spec = small_spec()
    with create(tmp_path / "s", spec) as writer:
        writer.write_shard(1, shard_arrays(spec, 1))
    store = ActivationStore.open(tmp_path / "s")
    view = store.site(JOINED.name)
    assert np.isnan(np.asarray(view.zarr()[:4])).all()
    with pytest.raises(errors.MissingSamples, match="Samples 0 to 3"):
        view.read(sample=[5, 0])
    np.testing.assert_array_equal(view.read(sample=slice(4, 8)), site_values(spec, JOINED.name)[4:8])
    assert (store.committed, store.complete, store.n_committed_samples) == ([1], False, 4)
    np.testing.assert_array_equal(store.committed_samples(), [4, 5, 6, 7])


def test_zeros_are_written(tmp_path: Path) -> None:
    spec = small_spec(JOINED, n_samples=4)
    with create(tmp_path / "s", spec) as writer:
        writer.write_shard(0, {JOINED.name: np.zeros(spec.shard_shape(JOINED.name, 0), np.float16)})
    array = ActivationStore.open(tmp_path / "s").site(JOINED.name)
    assert not array.read().any()
    assert not np.asarray(array.zarr()[:]).any()


def test_same_input_same_bytes(tmp_path: Path) -> None:
    spec = small_spec(JOINED, BITS, compression="zstd")
    complete_store(tmp_path / "a", spec)
    with create(tmp_path / "b", spec, fsync=True) as writer:
        for shard in reversed(writer.pending()):  # another order, synced, other dtypes of the same values
            arrays = shard_arrays(spec, shard)
            arrays[JOINED.name] = np.asfortranarray(arrays[JOINED.name].astype(np.float16))
            writer.write_shard(shard, arrays)
    assert tree_hashes(tmp_path / "a") == tree_hashes(tmp_path / "b")


def test_opened_store_says_what_it_was_made_with(store: ActivationStore) -> None:
    assert store.spec == small_spec(n_samples=11)
    assert (store.fingerprint, store.plan) == (FINGERPRINT, PLAN)
    assert store.samples.equals(sample_table(store.spec))
    assert store.factors == ("object", "style")
    assert list(store.labels("object")[:4]) == ["cup", "star", "moon", "cup"]
    with pytest.raises(KeyError, match=r"No labels of factor 'colour'.*object, style"):
        store.labels("colour")
    assert store.complete
    assert store.verify() == []
    assert store.verify(full=False) == []
    record = store.record(2)
    assert record.samples == range(8, 11)
    assert record.hashes == store.hashes
    assert not any(any(site.nan) or any(site.inf) for site in record.sites.values())


_index = st.one_of(
    st.none(),
    st.integers(-2, 2),
    st.lists(st.integers(-3, 2), min_size=1, max_size=4),
    st.sampled_from([slice(None), slice(1, None), slice(None, None, -1), slice(0, 3, 2)]),
)


@settings(max_examples=60, deadline=None)
@given(sample=_index, step=_index, token=_index, branch=st.sampled_from([None, "cond", 0, ["cond", "uncond"], -1]))
def test_read_is_numpy_indexing_without_dropping(store: ActivationStore, sample, step, token, branch) -> None:
    def axis(selection: Any, n: int) -> np.ndarray:
        return np.arange(n) if selection is None else np.atleast_1d(np.arange(n)[selection])

    names = {"uncond": 0, "cond": 1}
    numbers = [names[b] for b in branch] if isinstance(branch, list) else names.get(branch, branch)
    for site in store.sites:
        full = site_values(store.spec, site)
        n, steps, branches, tokens, _ = full.shape
        expected = full[np.ix_(axis(sample, n), axis(step, steps), axis(numbers, branches), axis(token, tokens))]
        np.testing.assert_array_equal(store.site(site).read(sample, step, branch, token), expected)


def test_split_maps_are_read_in_any_order(tmp_path: Path) -> None:
    spec = small_spec(SPLIT, n_samples=2, samples_per_shard=2, n_steps=1)
    assert spec.grid(SPLIT.name).chunk_shape[3] < SPLIT.tokens
    view = complete_store(tmp_path / "s", spec).site(SPLIT.name)
    full = site_values(spec, SPLIT.name)
    tokens = np.random.default_rng(0).permutation(1000)[:300]
    np.testing.assert_array_equal(view.read(token=tokens), full[:, :, :, tokens])
    np.testing.assert_array_equal(view.read(token=full[0, 0, 0, :, 0] > 0), full[:, :, :, full[0, 0, 0, :, 0] > 0])
    np.testing.assert_array_equal(view.read(sample=1, branch="cond"), full[1:, :, 1:])


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"sample": 11}, "No sample 11.*0 to 10"),
        ({"step": -4}, "No step -4"),
        ({"token": []}, "empty"),
        ({"sample": slice(5, 5)}, "empty"),
        ({"sample": [0.5]}, "Cannot choose a sample"),
        ({"token": [True, False]}, "Cannot choose a token"),
        ({"branch": "both"}, "No branch 'both'.*uncond, cond"),
        ({"branch": 2}, "No branch 2"),
    ],
)
def test_selections_that_are_refused(store: ActivationStore, selection: dict, message: str) -> None:
    with pytest.raises(IndexError, match=message):
        store.site(JOINED.name).read(**selection)


@settings(max_examples=200, deadline=None)
@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_bfloat16_rounds_to_nearest_even_and_is_exact_back(bits: list[int]) -> None:
    x = np.array(bits, np.uint32).view(np.float32)
    dtype = DTYPES["bfloat16"]
    stored = dtype.encode(x)
    back = dtype.decode(stored)
    np.testing.assert_array_equal(np.isnan(back), np.isnan(x))
    np.testing.assert_array_equal(dtype.encode(back)[~np.isnan(x)], stored[~np.isnan(x)])
    fine = np.isfinite(x) & (np.abs(x) < 3e38) & (np.abs(x) > 1e-30)
    np.testing.assert_allclose(back[fine], x[fine], rtol=2.0**-8)
    assert dtype.count_nonfinite(x, stored) == (int(np.isnan(x).sum()), int(np.isinf(back).sum()))


def test_bfloat16_ties_go_to_even() -> None:
    x = np.array([0x3F808000, 0x3F818000, 0x3F808001], np.uint32).view(np.float32)
    assert DTYPES["bfloat16"].encode(x).tolist() == [0x3F80, 0x3F82, 0x3F81]


def test_bfloat16_bits_are_taken_as_they_are(tmp_path: Path) -> None:
    site = SiteSpec("s", 2, 2, dtype="bfloat16")
    spec = small_spec(site, n_samples=1, samples_per_shard=1, n_steps=1, branches=("cond",))
    bits = np.array([0x3F80, 0xC000, 0x0001, 0x7F7F], np.uint16).reshape(1, 1, 1, 2, 2)
    with create(tmp_path / "s", spec) as writer:
        writer.write_shard(0, {"s": bits})
    read = ActivationStore.open(tmp_path / "s").site("s").read()
    assert read.dtype == np.float32
    assert (read.view(np.uint32) >> 16).ravel().tolist() == bits.ravel().tolist()
