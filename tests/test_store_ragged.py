"""Missing maps: said by the records, never read as numbers, no part of the shuffled stream."""

from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_support import (
    BITS,
    JOINED,
    create,
    ragged_masks,
    ragged_spec,
    shard_arrays,
    site_values,
    small_spec,
    tree_hashes,
    write_ragged,
)

from activations_store import RowLoader, errors
from activations_store.format.chunking import ChunkGrid
from activations_store.loading.shuffle import RowOrder


def test_missing_maps_raise_or_read_as_nan(tmp_path: Path) -> None:
    spec = ragged_spec()
    store = write_ragged(tmp_path / "s", spec)
    assert store.verify() == []
    for site in spec.sites:
        view, mask, full = store.site(site.name), ragged_masks(spec)[site.name], site_values(spec, site.name)
        np.testing.assert_array_equal(view.present(), mask)
        read = view.read(missing="nan")
        assert np.isnan(read[~mask]).all()
        np.testing.assert_allclose(read[mask], full[mask], rtol=0, atol=0.51 if site.dtype == "int8" else 0)
        sample, step, branch = np.argwhere(mask)[-1]
        view.read(sample=sample, step=step, branch=int(branch))
        if not mask.all():
            sample, step, branch = np.argwhere(~mask)[0]
            message = rf"not recorded at site {site.name}.*sample {sample}, step {step}, branch .*missing='nan'"
            with pytest.raises(errors.MissingEntries, match=message) as info:
                view.read(sample=sample, step=step)
            assert isinstance(info.value, LookupError)
            with pytest.raises(errors.MissingEntries):
                np.asarray(view)
    assert not any(any(site.nan) for site in store.record(0).sites.values())


def test_the_same_store_twice_and_the_record_says_what_is_missing(tmp_path: Path) -> None:
    spec = ragged_spec()
    store = write_ragged(tmp_path / "a", spec)
    write_ragged(tmp_path / "b", spec)
    assert tree_hashes(tmp_path / "a") == tree_hashes(tmp_path / "b")
    with pytest.raises(errors.ShardConflict, match=JOINED.name), create(tmp_path / "c", spec) as writer:
        arrays = shard_arrays(spec, 0)
        writer.write_shard(0, arrays, {JOINED.name: np.zeros((4, 3, 2), bool)})
        writer.write_shard(0, arrays)
    record = store.record(0).sites
    assert record[BITS.name].present is None
    np.testing.assert_array_equal(record[JOINED.name].present, ragged_masks(spec)[JOINED.name][:4])


def test_masks_that_are_refused(tmp_path: Path) -> None:
    spec, plain = ragged_spec(), small_spec()
    some = np.ones((4, 3, 2), bool)
    some[0, 0, 0] = False
    with create(tmp_path / "s", plain) as writer:
        with pytest.raises(errors.ShardMismatch, match="not ragged.*ragged=True"):
            writer.write_shard(0, shard_arrays(plain, 0), {JOINED.name: some})
        writer.write_shard(0, shard_arrays(plain, 0), {JOINED.name: np.ones((4, 3, 2), bool)})
    with create(tmp_path / "r", spec) as writer:
        for mask in (some[:3], some.astype(int), some.tolist()):
            with pytest.raises(errors.ShardMismatch, match=r"bool \(4, 3, 2\)"):
                writer.write_shard(0, shard_arrays(spec, 0), {JOINED.name: mask})  # type: ignore[dict-item]
        with pytest.raises(errors.UnknownSite):
            writer.write_shard(0, shard_arrays(spec, 0), {"nope": some})


def test_a_record_with_missing_maps_in_a_store_that_is_not_ragged_is_refused(tmp_path: Path) -> None:
    from activations_store.format.layout import Layout, StoreInfo, read_store_info
    from activations_store.format.records import CommitRecord, SiteRecord, read_record

    spec = small_spec()
    with create(tmp_path / "s", spec) as writer:
        record = writer.write_shard(0, shard_arrays(spec, 0))
    info: StoreInfo = read_store_info(tmp_path / "s")
    site = record.sites[JOINED.name]
    forged = SiteRecord(**{**vars(site), "present": np.zeros((4, 3, 2), bool)})
    path = Path(str(Layout(tmp_path / "s").record(0)))
    path.write_bytes(CommitRecord(0, record.samples, {**record.sites, JOINED.name: forged}, record.hashes).to_bytes())
    with pytest.raises(errors.InvalidRecord, match="not ragged"):
        read_record(Layout(tmp_path / "s"), info, 0)


@pytest.mark.parametrize("world", [1, 3])
def test_every_recorded_row_once_an_epoch(tmp_path: Path, world: int) -> None:
    spec = ragged_spec()
    store = write_ragged(tmp_path / "s", spec)
    for site in spec.sites:
        mask, whole = ragged_masks(spec)[site.name], store.site(site.name).read(missing="nan")
        expected = {(*map(int, at), token) for at in np.argwhere(mask) for token in range(site.tokens)}
        seen: list[tuple[int, ...]] = []
        for rank in range(world):
            with RowLoader(store, site.name, 1, pool_rows=50, seed=1, rank=rank, world=world) as loader:
                assert loader.rows_per_epoch == len(expected)
                for batch in islice(loader, loader.rank_rows_per_epoch):
                    at = tuple(int(a[0]) for a in batch[1:])
                    np.testing.assert_array_equal(batch.x[0], whole[at])
                    seen.append(at)
        assert len(seen) == len(expected)
        assert set(seen) == expected


def test_a_selection_without_any_map(tmp_path: Path) -> None:
    spec = ragged_spec()
    store = write_ragged(tmp_path / "s", spec)
    sample, step, branch = np.argwhere(~ragged_masks(spec)[JOINED.name])[0]
    with pytest.raises(errors.InvalidSelection, match="1 ranks, 0 rows"):
        RowLoader(store, JOINED.name, 4, samples=int(sample), steps=int(step), branches=int(branch))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_order_covers_what_is_present_exactly(data: st.DataObject) -> None:
    draw = data.draw
    grid = ChunkGrid(draw(st.integers(1, 20)), 2, 2, draw(st.integers(1, 9)), draw(st.integers(1, 9000)), 4, 4)
    samples = np.arange(grid.n_samples)
    bits = draw(st.lists(st.booleans(), min_size=4 * grid.n_samples, max_size=4 * grid.n_samples))
    present = np.array(bits).reshape(grid.n_samples, 2, 2)
    order = RowOrder(grid, samples, np.arange(2), np.arange(2), np.arange(grid.tokens), 1, present)
    n = order.n_rows
    assert n == present.sum() * grid.tokens
    cuts = sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=4))})
    seen = [np.empty((4, 0), int)]
    for lo, hi in pairwise(cuts):
        segments = order.segments(0, lo, hi)
        assert segments.count.sum() == hi - lo
        seen.append(order.coordinates(segments))
    rows = np.concatenate(seen, axis=1)
    assert present[rows[0], rows[1], rows[2]].all()
    assert len({tuple(row) for row in rows.T}) == n
