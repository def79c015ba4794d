"""Specs: what is refused, sizes that are exact, JSON and hashes, chunk arithmetic."""

import math
import re
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_support import BITS, JOINED, PYTHON, SPLIT, child_environment, complete_store, small_spec

from activations_store import SiteSpec, StoreSpec, errors
from activations_store.format.chunking import MAX_CHUNK_BYTES, MIN_CHUNK_BYTES, ChunkGrid, choose_chunk


def test_import_is_light() -> None:
    code = (
        "import sys, activations_store; heavy = {'torch', 'zarr', 'pyarrow', 'numcodecs'} & set(sys.modules); "
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    subprocess.run([PYTHON, "-c", code], env=child_environment(), check=True, timeout=120)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a..b", "../x", "a/b", "a\\b", "/etc", "-x", ".hidden", "a b", "a\n", "\x00", "ü", "a" * 201],
)
def test_site_names_that_are_no_names(name: str) -> None:
    with pytest.raises(errors.InvalidSpec, match="name cannot be used"):
        SiteSpec(name, 4, 4)


def test_directory_names_are_readable_safe_and_distinct() -> None:
    assert re.fullmatch(r"unet\.mid_block-out-[0-9a-f]{8}", JOINED.dir_name)
    names = ["a:out", "a-out", "A:out", "a.out", "x" * 199 + "a", "x" * 199 + "b"]
    folders = {SiteSpec(n, 1, 1).dir_name.casefold() for n in names}
    assert len(folders) == len(names)
    assert all(re.fullmatch(r"[a-z0-9_][a-z0-9_.-]{1,99}", f) for f in folders)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_samples": 0}, "n_samples"),
        ({"n_samples": True}, "n_samples"),
        ({"n_samples": 2**31}, "n_samples"),
        ({"samples_per_shard": 0}, "samples_per_shard"),
        ({"branches": ()}, "branches"),
        ({"branches": "cond"}, "string"),
        ({"branches": ("cond", "cond")}, "used twice"),
        ({"branches": ("../x",)}, "branch's name"),
        ({"timesteps": (1,), "log_snr": (1.0, 2.0)}, "different lengths"),
        ({"log_snr": (0.0, 1.0, math.nan)}, "log_snr holds a bad value"),
        ({"timesteps": (3, 2, math.inf)}, "timesteps holds a bad value"),
        ({"compression": "gzip"}, "compression"),
        ({"sites": ()}, "sites"),
        ({"sites": (JOINED, JOINED)}, "used twice"),
    ],
)
def test_specs_that_are_refused(change: dict, message: str) -> None:
    good = {"sites": (JOINED,), "n_samples": 5, "timesteps": (3, 2, 1), "log_snr": (0.0, 1.0, 2.0)}
    with pytest.raises(errors.InvalidSpec, match=message):
        StoreSpec(**{**good, **change})


@pytest.mark.parametrize(
    "site", [(4, 0), (0, 4), (2**25, 4), (4, 4, (2, 3)), (4, 4, (4,)), (4, 4, 4), (4, 4, None, "int3"), (4.0, 4)]
)
def test_sites_that_are_refused(site: tuple) -> None:
    with pytest.raises(errors.InvalidSpec):
        SiteSpec("s", *site)


def test_infinite_log_snr_is_clipped_and_numpy_numbers_are_plain() -> None:
    spec = StoreSpec((JOINED,), 2, (np.int64(999), 0.5), (-math.inf, np.float32(2)), samples_per_shard=1)  # type: ignore[arg-type]
    assert spec.log_snr == (-30.0, 2.0)
    assert [type(t) for t in spec.timesteps] == [int, float]


def test_json_round_trip_and_hash() -> None:
    spec = small_spec(JOINED, SPLIT, BITS, compression="zstd")
    assert StoreSpec.from_json(spec.to_json()) == spec
    assert StoreSpec.from_dict(spec.to_dict()) == spec
    assert spec.content_hash() == StoreSpec.from_json(spec.to_json()).content_hash()
    assert spec.content_hash() != small_spec(JOINED, SPLIT, BITS).content_hash()


@pytest.mark.parametrize("change", [{"extra": 1}, {"sites": 3}, {"sites": [{"name": "x"}]}, {"timesteps": None}])
def test_json_with_other_fields_is_refused(change: dict) -> None:
    with pytest.raises(errors.InvalidSpec):
        StoreSpec.from_dict({**small_spec().to_dict(), **change})


def test_sizes_are_exact(tmp_path) -> None:
    spec = small_spec(JOINED, SPLIT, BITS, n_samples=5, samples_per_shard=2)
    store = complete_store(tmp_path / "s", spec)
    for site in spec.sites:
        files = (store.path / "arrays" / site.dir_name).glob("c.*")
        assert sum(f.stat().st_size for f in files) == spec.bytes_by_site()[site.name]
    files = [p for p in store.path.rglob("*") if p.is_file()]
    assert len(files) == spec.n_files
    on_disk = sum(p.stat().st_size for p in files)
    assert spec.n_bytes == pytest.approx(on_disk, rel=0.02)


def test_plan_keeps_shards_within_the_bound() -> None:
    site = SiteSpec("unet.mid_block:out", 64, 1280)
    times = tuple(range(50))
    spec = StoreSpec.plan((site,), 100_000, times, tuple(map(float, times)))
    assert spec.samples_per_shard == 16
    assert spec.shard_bytes() <= 256 * 2**20 * 1.001
    one = StoreSpec.plan((site,), 100_000, times, tuple(map(float, times)), max_shard_bytes=1)
    assert one.samples_per_shard == 1
    few = StoreSpec.plan((JOINED,), 3, (1,), (0.0,))
    assert few.samples_per_shard == 4


def test_plan_of_many_samples_counts_shards_not_samples() -> None:
    spec = StoreSpec.plan((SiteSpec("a", 1, 4),), 20_000_000, (1,), (0.0,))
    assert spec.samples_per_shard == 64
    with pytest.raises(errors.InvalidSpec, match="n_samples is out of range"):
        StoreSpec.plan((SiteSpec("a", 1, 4),), 0, (1,), (0.0,))


def test_unknown_site_lists_the_sites() -> None:
    with pytest.raises(KeyError, match=r"No site 'nope'.*unet\.mid_block:out"):
        small_spec().site("nope")


@settings(max_examples=200, deadline=None)
@given(shard=st.integers(1, 256), tokens=st.integers(1, 5000), row_bytes=st.integers(2, 20_000))
def test_chunk_size_rule(shard: int, tokens: int, row_bytes: int) -> None:
    g, k = choose_chunk(shard, tokens, row_bytes)
    assert shard % g == 0
    assert g == 1 or k == tokens
    assert g * k * row_bytes <= MAX_CHUNK_BYTES
    if g == 1 and k < tokens:
        assert tokens * row_bytes > MAX_CHUNK_BYTES
        assert 2 * k * row_bytes >= MIN_CHUNK_BYTES
    if k == tokens and tokens * row_bytes >= MIN_CHUNK_BYTES:
        assert g == 1


@settings(max_examples=100, deadline=None)
@given(
    n_samples=st.integers(1, 40),
    steps=st.integers(1, 3),
    branches=st.integers(1, 2),
    tokens=st.integers(1, 3000),
    channels=st.integers(1, 800),
    per_shard=st.integers(1, 16),
)
def test_chunk_arithmetic(
    n_samples: int, steps: int, branches: int, tokens: int, channels: int, per_shard: int
) -> None:
    grid = ChunkGrid(n_samples, steps, branches, tokens, channels, per_shard, 4)
    assert all(s % c == 0 for s, c in zip(grid.shard_shape, grid.chunk_shape, strict=True))
    assert grid.shard_shape[0] == per_shard
    assert sum(grid.samples_in(i) for i in range(grid.n_shards)) == n_samples
    assert grid.total_bytes == sum(grid.file_bytes(i) for i in range(grid.n_shards))
    for shard in {0, grid.n_shards - 1}:
        chunks = list(grid.iter_chunks(shard))
        # Present chunks are the first ones of the index, in order: the reader relies on it.
        assert [grid.linear(*c) for c in chunks] == list(range(grid.chunks_in(shard)))
        g, _, _, k, _ = grid.chunk_shape
        covered = sum(min(g, grid.samples_in(shard) - s * g) * min(k, tokens - t * k) for s, _, _, t in chunks)
        assert covered == grid.samples_in(shard) * steps * branches * tokens
