"""RowLoader: every row once an epoch, a pure function of (seed, position), ranks without overlap, damage refused."""

from contextlib import suppress
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_support import BITS, JOINED, SPLIT, complete_store, create, shard_arrays, site_values, small_spec

from activations_store import ActivationStore, RowBatch, RowLoader, errors
from activations_store.format.chunking import ChunkGrid
from activations_store.loading.shuffle import RowOrder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return complete_store(tmp_path_factory.mktemp("loader") / "s", small_spec(JOINED, BITS, n_samples=11))


@pytest.fixture(scope="module")
def split_store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    spec = small_spec(SPLIT, n_samples=3, samples_per_shard=2, n_steps=1, compression="zstd")
    return complete_store(tmp_path_factory.mktemp("split") / "s", spec)


def ids(store: ActivationStore, site: str, batches: list[RowBatch]) -> np.ndarray:
    """Row numbers in the site's array, in the order delivered."""
    n, steps, branches, tokens, _ = store.site(site).shape
    where = [np.concatenate([getattr(b, f) for b in batches]) for f in ("sample", "step", "branch", "token")]
    return np.ravel_multi_index(tuple(where), (n, steps, branches, tokens))


def check_values(store: ActivationStore, site: str, batches: list[RowBatch]) -> None:
    full = site_values(store.spec, site)
    for batch in batches:
        assert batch.x.dtype == np.float32
        np.testing.assert_array_equal(batch.x, full[batch.sample, batch.step, batch.branch, batch.token])


@pytest.mark.parametrize(("pool_rows", "batch_size"), [(64, 3), (7, 50), (64, 50), (10**6, 50), (33, 1056)])
def test_every_row_once_an_epoch(store: ActivationStore, pool_rows: int, batch_size: int) -> None:
    n = 11 * 3 * 2 * 16
    with RowLoader(store, JOINED.name, batch_size, seed=5, pool_rows=pool_rows) as loader:
        assert loader.rows_per_epoch == loader.rank_rows_per_epoch == n
        batches = list(islice(loader, -(-2 * n // batch_size)))
        assert loader.position == len(batches)
    check_values(store, JOINED.name, batches)
    rows = ids(store, JOINED.name, batches)
    first, second = rows[:n], rows[n : 2 * n]
    assert len(np.unique(first)) == len(np.unique(second)) == n
    assert (first != second).any()


@pytest.mark.parametrize("site", [SPLIT.name])
def test_split_and_compressed_maps(split_store: ActivationStore, site: str) -> None:
    with RowLoader(split_store, site, 500, pool_rows=2000, tokens=slice(100, 900)) as loader:
        batches = list(islice(loader, loader.rows_per_epoch // 500))
    check_values(split_store, site, batches)
    rows = ids(split_store, site, batches)
    assert len(np.unique(rows)) == len(rows) == 3 * 2 * 800 // 500 * 500


def test_bfloat16_rows_are_exact(store: ActivationStore) -> None:
    with RowLoader(store, BITS.name, 77) as loader:
        check_values(store, BITS.name, list(islice(loader, 6)))


def test_position_resumes_exactly_and_threads_do_not_matter(store: ActivationStore) -> None:
    options = {"seed": 9, "pool_rows": 100}
    with RowLoader(store, JOINED.name, 30, threads=1, **options) as loader:  # type: ignore[arg-type]
        whole = list(islice(loader, 90))  # two and a half epochs
    for position in (0, 1, 3, 34, 35, 36, 70, 89):
        with RowLoader(store, JOINED.name, 30, threads=5, position=position, **options) as loader:  # type: ignore[arg-type]
            for expected in whole[position : position + 3]:
                for a, b in zip(next(loader), expected, strict=True):
                    np.testing.assert_array_equal(a, b)


def test_seed_and_order(store: ActivationStore) -> None:
    orders = []
    for seed in (0, 0, 1):
        with RowLoader(store, JOINED.name, 1056, seed=seed) as loader:
            orders.append(ids(store, JOINED.name, [next(loader)]))
    np.testing.assert_array_equal(orders[0], orders[1])
    assert (orders[0] != orders[2]).mean() > 0.9
    # Neighbours in the stream are hardly ever neighbours in the store.
    assert sum(abs(int(a) - int(b)) == 1 for a, b in pairwise(orders[0])) < 20


@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_share_an_epoch(store: ActivationStore, world: int) -> None:
    n, shares = 11 * 3 * 2 * 16, []
    for rank in range(world):
        with RowLoader(store, JOINED.name, 1, rank=rank, world=world, pool_rows=64, seed=2) as loader:
            shares.append(ids(store, JOINED.name, list(islice(loader, loader.rank_rows_per_epoch))))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    everything = np.concatenate(shares)
    assert len(everything) == len(np.unique(everything)) == n


def test_filters(store: ActivationStore) -> None:
    cups = store.labels("object") == "cup"
    with RowLoader(
        store, JOINED.name, 8, steps=[-1, 0], branches="cond", samples=cups, tokens=[3, 5, 12], pool_rows=5
    ) as loader:
        n = loader.rows_per_epoch
        assert n == 2 * 1 * 4 * 3
        batches = list(islice(loader, n // 8))
    check_values(store, JOINED.name, batches)
    rows = ids(store, JOINED.name, batches)
    assert len(np.unique(rows)) == n
    got = {f: set(np.concatenate([getattr(b, f) for b in batches]).tolist()) for f in RowBatch._fields[1:]}
    assert got == {"sample": {0, 3, 6, 9}, "step": {0, 2}, "branch": {1}, "token": {3, 5, 12}}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_order_covers_any_selection_exactly(data: st.DataObject) -> None:
    """Chunk and row arithmetic alone, on shapes that have no file."""
    draw = data.draw
    grid = ChunkGrid(
        draw(st.integers(1, 20)), 2, 2, draw(st.integers(1, 700)), draw(st.integers(1, 700)), draw(st.integers(1, 8)), 4
    )

    def subset(n: int) -> np.ndarray:
        return np.array(sorted(draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=30))))

    order = RowOrder(
        grid, subset(grid.n_samples), subset(2), subset(2), subset(grid.tokens), draw(st.integers(0, 2**40))
    )
    n = order.n_rows
    cuts = sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=4))})
    seen = []
    g, _, _, k, _ = grid.chunk_shape
    for lo, hi in pairwise(cuts):
        segments = order.segments(1, lo, hi)
        assert segments.count.sum() == hi - lo
        np.testing.assert_array_equal(segments.slot, np.cumsum(segments.count) - segments.count)
        where = order.coordinates(segments)
        seen.append(where)
        for block, first, count, slot in zip(*vars(segments).values(), strict=True):
            shard, chunk = order.chunk_of(int(block))
            sample, token = order.rows_in_chunk(int(block), int(first), int(count))
            rows = where[:, slot : slot + count]
            local = rows[0, 0] // g - shard * grid.chunks_per_shard[0]
            assert chunk == grid.linear(local, int(rows[1, 0]), int(rows[2, 0]), int(rows[3, 0]) // k)
            np.testing.assert_array_equal(rows[0] % g, sample)
            np.testing.assert_array_equal(rows[3] % k, token)
    rows = np.ravel_multi_index(tuple(np.concatenate(seen, axis=1)), grid.array_shape[:4])
    chosen = np.ix_(order.samples, order.steps, order.branches, order.tokens)
    expected = np.arange(np.prod(grid.array_shape[:4])).reshape(grid.array_shape[:4])[chosen]
    np.testing.assert_array_equal(np.sort(rows), np.sort(expected.ravel()))


def test_order_is_fixed_for_ever() -> None:
    """A changed order would silently change every resumed run: these numbers may not change."""
    grid = ChunkGrid(6, 2, 1, 2, 4, 2, 4)
    order = RowOrder(grid, np.arange(6), np.arange(2), np.arange(1), np.arange(2), seed=7)
    assert order.segments(0, 0, order.n_rows).block.tolist() == [3, 4, 0, 2, 5, 1]
    assert order.window_permutation(3, 8, 10).tolist() == [9, 4, 1, 6, 7, 0, 3, 8, 5, 2]


def test_flipped_byte_in_a_chunk_is_refused(tmp_path: Path) -> None:
    store = complete_store(tmp_path / "s", small_spec(JOINED, n_samples=4))
    path = next((store.path / "arrays" / JOINED.dir_name).glob("c.*"))
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with RowLoader(store, JOINED.name, 64) as loader, pytest.raises(errors.CorruptShard, match="chunk . fails") as info:
        for _ in range(6):
            next(loader)
    assert str(path) in str(info.value)
    assert isinstance(info.value, OSError)


def test_swapped_shard_is_refused_though_its_own_checksums_hold(tmp_path: Path) -> None:
    store = complete_store(tmp_path / "s", small_spec(JOINED, n_samples=8))
    folder = store.path / "arrays" / JOINED.dir_name
    first, second = folder / "c.0.0.0.0.0", folder / "c.1.0.0.0.0"
    swapped = first.read_bytes(), second.read_bytes()
    second.write_bytes(swapped[0])
    first.write_bytes(swapped[1])
    assert not np.isnan(np.asarray(store.site(JOINED.name).zarr()[:])).any()  # zarr notices nothing
    with RowLoader(store, JOINED.name, 64) as loader, pytest.raises(errors.CorruptShard):
        next(loader)
    with pytest.raises(errors.CorruptShard):
        store.site(JOINED.name).read(sample=0)


def test_incomplete_store_needs_samples(tmp_path: Path) -> None:
    spec = small_spec(JOINED)
    with create(tmp_path / "s", spec) as writer:
        writer.write_shard(1, shard_arrays(spec, 1))
    store = ActivationStore.open(tmp_path / "s")
    with pytest.raises(LookupError, match=r"2 shards .* not committed.*committed_samples"):
        RowLoader(store, JOINED.name, 4)
    with RowLoader(store, JOINED.name, 4, samples=store.committed_samples()) as loader:
        batches = list(islice(loader, loader.rows_per_epoch // 4))
    assert set(np.concatenate([b.sample for b in batches]).tolist()) == {4, 5, 6, 7}


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"rank": 2, "world": 2}, {"rank": -1}, {"world": 0}, {"position": -1}, {"seed": -1},
     {"pool_rows": 0}, {"threads": 0}, {"samples": []}, {"branches": "x"}, {"world": 2000, "rank": 5}],
)  # fmt: skip
def test_options_that_are_refused(store: ActivationStore, options: dict) -> None:
    with pytest.raises(errors.InvalidSelection):
        RowLoader(store, JOINED.name, **{"batch_size": 4, **options})


def test_unknown_site_and_closed_loader(store: ActivationStore) -> None:
    with pytest.raises(errors.UnknownSite):
        RowLoader(store, "nope", 4)
    loader = RowLoader(store, JOINED.name, 4, pool_rows=16)
    next(loader)
    loader.close()
    loader.close()
    with pytest.raises(ValueError, match=r"closed.*position=1"):
        next(loader)


def test_a_batch_is_never_written_to_while_anything_of_it_is_held(store: ActivationStore) -> None:
    with RowLoader(store, JOINED.name, 7, pool_rows=20) as loader:
        fresh = [next(loader).x.copy() for _ in range(9)]
    with RowLoader(store, JOINED.name, 7, pool_rows=20) as loader:
        held = [next(loader).x for _ in range(3)]
        part = next(loader).x[2:4].T[1:].reshape(-1, 1)  # a view of views of the fourth
        bare = next(loader).x.data
        for _ in range(4):
            next(loader)
    for x, expected in zip(held, fresh, strict=False):
        assert np.array_equal(x, expected)
    assert np.array_equal(part, fresh[3][2:4].T[1:].reshape(-1, 1))
    assert np.array_equal(np.asarray(bare), fresh[4])


def test_torch_keeps_the_memory_of_a_batch_and_dropping_it_gives_it_back(store: ActivationStore) -> None:
    torch = pytest.importorskip("torch")
    with RowLoader(store, JOINED.name, 7, pool_rows=20) as loader, loader.tensors() as rows:
        first = next(rows).x
        row, expected = first[3], first[3].clone()
        place = first.data_ptr()
        del first
        for _ in range(5):
            assert next(rows).x.data_ptr() != place
        assert torch.equal(row, expected)
        del row
        assert place in {next(rows).x.data_ptr() for _ in range(2)}


def test_after_any_failure_the_same_batch_comes(tmp_path: Path) -> None:
    """A batch that failed, also halfway between two windows, is delivered whole when it is asked for again."""
    path = tmp_path / "s"
    store = complete_store(path, small_spec(JOINED, n_samples=8))
    options = {"seed": 3, "pool_rows": 100}
    with RowLoader(store, JOINED.name, 90, **options) as loader:  # type: ignore[arg-type]
        whole = list(islice(loader, 20))

    def interrupted(target: np.ndarray, source: np.ndarray) -> None:
        nonlocal parts
        parts += 1
        if parts == 2:
            raise KeyboardInterrupt
        np.copyto(target, source)

    for position in range(12):
        with RowLoader(store, JOINED.name, 90, position=position, **options) as loader:  # type: ignore[arg-type]
            parts = 0
            with suppress(KeyboardInterrupt):
                loader.next_into(np.empty((90, 8), np.float32), interrupted)
            at = loader.position
            np.testing.assert_array_equal(next(loader).x, whole[at].x)

    shard = sorted((path / "arrays").glob("*/c.0*"))[0]
    sound = shard.read_bytes()
    shard.write_bytes(bytes(len(sound)))
    with RowLoader(ActivationStore.open(path), JOINED.name, 90, **options) as loader:  # type: ignore[arg-type]
        for _ in range(4):
            with pytest.raises(errors.CorruptShard):
                list(islice(loader, 20))
        shard.write_bytes(sound)
        at = loader.position
        np.testing.assert_array_equal(next(loader).x, whole[at].x)
