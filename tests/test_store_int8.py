"""int8 with a scale a row: the error bound, what cannot be stored, fills that read as NaN, exact copies."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from store_support import create, shard_arrays, small_spec

from activations_store import ActivationStore, RowLoader, SiteSpec, errors
from activations_store.format.dtypes import DTYPES

INT8 = DTYPES["int8"]
SITE = SiteSpec("q", 6, 5, (2, 3), dtype="int8")


@settings(max_examples=200, deadline=None)
@given(arrays(np.float32, (3, 4), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_error_is_at_most_half_a_scale(rows: np.ndarray) -> None:
    stored = INT8.encode(rows)
    assert stored.dtype == np.int8
    assert stored.shape == (3, 8)
    back = INT8.decode(stored)
    largest = np.abs(rows).max(axis=1, keepdims=True).astype(np.float64)
    # 2^-119 is what is too small for a normal float32 scale and reads as zero.
    bound = np.maximum(largest / 127 / 2 * (1 + 1e-4), np.where(largest < 2.0**-118, largest, 0))
    assert (np.abs(back.astype(np.float64) - rows) <= bound).all()
    assert (np.sign(back) * np.sign(rows) >= 0).all()


def test_known_rows() -> None:
    rows = np.array([[127, -127, 1, 0], [0, 0, 0, 0], [254, 2, -4, 1]], np.float32)
    back = INT8.decode(INT8.encode(rows))
    np.testing.assert_array_equal(back, [[127, -127, 1, 0], [0, 0, 0, 0], [254, 2, -4, 0]])  # 0.5 rounds to even
    np.testing.assert_array_equal(INT8.encode(rows)[0, -4:].view("<f4"), [1.0])


def test_non_finite_rows_are_refused_or_read_as_nan(tmp_path: Path) -> None:
    spec = small_spec(SITE)
    given = shard_arrays(spec, 0)
    given["q"][1, 2, 0, 3, 4] = np.nan
    given["q"][0, 1, 1, 2, 0] = np.inf
    with create(tmp_path / "s", spec) as writer, pytest.raises(errors.NonFiniteActivations, match="q step 1: 0 NaN, 1"):
        writer.write_shard(0, given)
    with create(tmp_path / "t", spec, allow_nonfinite=True) as writer:
        record = writer.write_shard(0, given).sites["q"]
    assert (record.nan, record.inf, record.overflow) == ((0, 0, 1), (0, 1, 0), (0, 0, 0))
    back = ActivationStore.open(tmp_path / "t").site("q").read(sample=slice(0, 4))
    bad = ~np.isfinite(given["q"]).all(axis=-1)
    assert np.isnan(back[bad]).all()
    assert np.isfinite(back[~bad]).all()


def test_unwritten_places_decode_to_nan(tmp_path: Path) -> None:
    spec = small_spec(SITE)
    with create(tmp_path / "s", spec) as writer:
        writer.write_shard(1, shard_arrays(spec, 1))
    raw = np.asarray(zarr.open_group(tmp_path / "s/arrays", mode="r")[SITE.dir_name][0])  # type: ignore[index]
    assert (raw == -1).all()
    assert np.isnan(INT8.decode(raw)).all()


def test_rows_and_maps_agree_and_stored_rows_are_copied_exactly(tmp_path: Path) -> None:
    spec = small_spec(SITE)
    with create(tmp_path / "s", spec) as writer:
        for shard in writer.pending():
            writer.write_shard(shard, shard_arrays(spec, shard))
    view = (store := ActivationStore.open(tmp_path / "s")).site("q")
    whole = view.read()
    assert view.shape == whole.shape == (11, 3, 2, 6, 5)
    with RowLoader(store, "q", 36) as loader:
        batch = next(loader)
        assert loader.d == 5
    np.testing.assert_array_equal(batch.x, whole[batch.sample, batch.step, batch.branch, batch.token])
    with create(tmp_path / "copy", spec) as writer:
        for shard in writer.pending():
            writer.write_shard(shard, {"q": view.read_stored(sample=list(spec.shard_samples(shard)))})
    copied = ActivationStore.open(tmp_path / "copy")
    assert [copied.record(i).to_bytes() for i in range(3)] == [store.record(i).to_bytes() for i in range(3)]
    assert store.verify() == []
