"""merge, subset and export: every value and every gap comes along, in every dtype; a stopped copy goes on."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from store_support import (
    BITS,
    FINGERPRINT,
    JOINED,
    LATE,
    PLAN,
    QUANTISED,
    FailAt,
    complete_store,
    create,
    extend,
    ragged_masks,
    ragged_spec,
    sample_table,
    shard_arrays,
    site_values,
    small_spec,
    tree_hashes,
    write_pending,
    write_ragged,
)

from activations_store import ActivationStore, StoreSpec, StoreWriter, errors, export, gc, merge, subset
from activations_store.storage import fileio

SPEC = small_spec(JOINED, BITS, QUANTISED)


def stored(store: ActivationStore, site: str) -> np.ndarray:
    return store.site(site).read_stored(missing="nan")


def test_subset_copies_stored_words(tmp_path: Path) -> None:
    source = complete_store(tmp_path / "a", SPEC)
    made = subset(
        source, tmp_path / "b", samples=[9, 2, 5], sites=[QUANTISED.name, BITS.name], steps=[0, 2], branches="cond"
    )
    assert made.verify() == []
    assert made.sites == (QUANTISED.name, BITS.name)
    assert made.spec.timesteps == (900, 700)
    assert made.spec.branches == ("cond",)
    for site in made.sites:
        np.testing.assert_array_equal(stored(made, site), stored(source, site)[[2, 5, 9]][:, [0, 2]][:, :, 1:])
    assert made.samples.column("prompt").to_pylist() == [f"a photo of number {i}" for i in (2, 5, 9)]
    assert made.samples.column("origin_sample").to_pylist() == [2, 5, 9]
    assert made.plan["derived"] == {"operation": "subset", "sources": [source.hashes]}
    assert made.plan["guidance"] == 2.0
    assert made.fingerprint == source.fingerprint


def test_merge_joins_committed_samples_across_shards(tmp_path: Path) -> None:
    first = complete_store(tmp_path / "a", SPEC)
    with create(tmp_path / "b", SPEC) as writer:
        writer.write_shard(1, shard_arrays(SPEC, 1))
    second = ActivationStore.open(tmp_path / "b")
    made = merge([first, second], tmp_path / "c")
    assert made.complete
    assert made.verify() == []
    for site in made.sites:
        expected = np.concatenate([stored(first, site), second.site(site).read_stored(sample=slice(4, 8))])
        np.testing.assert_array_equal(stored(made, site), expected)
    assert made.samples.column("origin_store").to_pylist() == [0] * 11 + [1] * 4
    assert made.samples.column("origin_sample").to_pylist() == [*range(11), 4, 5, 6, 7]
    assert made.labels("object").tolist() == [*first.labels("object"), *first.labels("object")[4:8]]
    again = subset(made, tmp_path / "d", samples=slice(11, None))  # the numbers of its own source
    assert again.samples.column("origin_sample").to_pylist() == [11, 12, 13, 14]


def test_missing_maps_come_along(tmp_path: Path) -> None:
    spec = ragged_spec()
    ragged, plain = write_ragged(tmp_path / "r", spec), complete_store(tmp_path / "p", SPEC)
    made = merge([plain, ragged], tmp_path / "m")
    assert made.spec.ragged
    for site in made.sites:
        present = made.site(site).present()
        assert present[:11].all()
        np.testing.assert_array_equal(present[11:], ragged_masks(spec)[site])
        np.testing.assert_array_equal(stored(made, site)[11:], stored(ragged, site))
    assert made.verify() == []


def test_groups_become_plain_sites(tmp_path: Path) -> None:
    path = complete_store(tmp_path / "s", small_spec(JOINED)).path
    write_pending(extend(path))
    made = subset(ActivationStore.open(path), tmp_path / "t")
    assert made.groups == {}
    assert made.sites == (JOINED.name, BITS.name, "late")
    np.testing.assert_array_equal(made.site("late").read(), site_values(LATE, "late"))


def test_a_stopped_copy_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    source = complete_store(tmp_path / "a", SPEC)
    whole = subset(source, tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done > 4:
            raise Stop

    with pytest.raises(Stop):
        subset(source, tmp_path / "part", progress=stop)
    assert ActivationStore.open(tmp_path / "part").committed == [0, 1]
    told: list[tuple[int, int]] = []
    subset(source, tmp_path / "part", progress=lambda done, total: told.append((done, total)))
    assert told == [(11, 11)]
    assert tree_hashes(tmp_path / "part") == tree_hashes(whole.path)
    with pytest.raises(errors.SpecMismatch):
        subset(source, tmp_path / "part", samples=[1])


def test_stores_that_do_not_fit_together(tmp_path: Path) -> None:
    first = complete_store(tmp_path / "a", SPEC)
    with pytest.raises(errors.InvalidSelection, match="two or more"):
        merge([first], tmp_path / "x")
    other = complete_store(tmp_path / "b", small_spec(JOINED, BITS))
    with pytest.raises(errors.SpecMismatch, match="site q is only in one"):
        merge([first, other], tmp_path / "x")
    shorter = complete_store(tmp_path / "c", small_spec(JOINED, BITS, QUANTISED, n_steps=2))
    with pytest.raises(errors.SpecMismatch, match="timesteps differ"):
        merge([first, shorter], tmp_path / "x")
    model = {**FINGERPRINT, "weights_hash": "z"}
    StoreWriter.create(tmp_path / "d", SPEC, sample_table(SPEC), fingerprint=model, plan={}).close()
    with pytest.raises(errors.FingerprintMismatch, match="weights_hash"):
        merge([first, ActivationStore.open(tmp_path / "d")], tmp_path / "x")
    table = sample_table(SPEC).drop_columns(["label_style"])
    StoreWriter.create(tmp_path / "e", SPEC, table, fingerprint=FINGERPRINT, plan={}).close()
    with pytest.raises(errors.InvalidSamples, match="label_style"):
        merge([first, ActivationStore.open(tmp_path / "e")], tmp_path / "x")
    create(tmp_path / "f", SPEC).close()
    with pytest.raises(errors.MissingSamples, match="committed"):
        merge([first, ActivationStore.open(tmp_path / "f")], tmp_path / "x")
    with pytest.raises(errors.InvalidSelection, match="No site"):
        subset(first, tmp_path / "x", sites=[])
    with pytest.raises(errors.UnknownSite):
        subset(first, tmp_path / "x", sites=["nope"])
    assert not (tmp_path / "x").exists()


def test_incomplete_sources_are_refused_by_sample(tmp_path: Path) -> None:
    with create(tmp_path / "a", SPEC) as writer:
        writer.write_shard(0, shard_arrays(SPEC, 0))
    with pytest.raises(errors.MissingSamples, match="sample 7"):
        subset(ActivationStore.open(tmp_path / "a"), tmp_path / "x", samples=[1, 7])


def test_npy_files(tmp_path: Path) -> None:
    spec = ragged_spec(JOINED, QUANTISED)
    source = write_ragged(tmp_path / "s", spec)
    out = export(source, tmp_path / "out", samples=[1, 4], steps=slice(1, 3))
    facts = json.loads((out / "export.json").read_text())
    assert facts["samples"] == [1, 4]
    assert facts["timesteps"] == [800, 700]
    for site in spec.sites:
        array = np.load(out / f"{facts['sites'][site.name]['file']}.npy", mmap_mode="r")
        np.testing.assert_array_equal(array, source.site(site.name).read([1, 4], [1, 2], missing="nan"))
        assert list(array.shape) == facts["sites"][site.name]["shape"]
    assert pq.read_table(out / "samples.parquet").column("sample").to_pylist() == [1, 4]
    with pytest.raises(errors.StoreExists):
        export(source, tmp_path / "out")
    with pytest.raises(errors.InvalidSelection, match="No site is chosen"):
        export(source, tmp_path / "nothing", sites=[])
    with pytest.raises(errors.InvalidSelection, match="npy or safetensors"):
        export(source, tmp_path / "other", file_format="pickle")  # type: ignore[arg-type]
    with pytest.raises(errors.UnknownSite):
        export(source, tmp_path / "other", sites=["nope"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "s"]


def test_safetensors_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(ragged_spec(JOINED), sites=(JOINED,))
    source = write_ragged(tmp_path / "s", spec)
    monkeypatch.setattr("activations_store.upkeep.export_files.SHARD_BYTES", 4 * 3 * 2 * 16 * 8 * 2)
    out = export(source, tmp_path / "out", file_format="safetensors", branches=["cond", "uncond"])
    files = sorted(out.glob("*.safetensors"))
    assert len(files) == 3
    whole, seen = source.site(JOINED.name).read(missing="nan"), 0
    for file in files:
        rows = load_file(file)
        branch = 1 - rows["branch"]  # as chosen: cond first
        np.testing.assert_array_equal(rows["x"], whole[rows["sample"], rows["step"], branch, rows["token"]])
        assert np.isfinite(rows["x"]).all()
        seen += len(rows["x"])
    assert seen == source.site(JOINED.name).present().sum() * 16


def with_pictures(path: Path, spec: StoreSpec) -> ActivationStore:
    """A complete store with an image of every sample, and a mask of every third."""
    names = [f"{i:06d}.png" if i % 3 == 0 else "" for i in range(spec.n_samples)]
    table = sample_table(spec).append_column("mask", pa.array(names))
    with StoreWriter.create(path, spec, table, fingerprint=FINGERPRINT, plan=PLAN) as writer:
        for shard in writer.pending():
            writer.write_shard(shard, shard_arrays(spec, shard))
    for i, name in enumerate(names):
        for folder in ("images", *(["masks"] if name else [])):
            (path / folder).mkdir(exist_ok=True)
            (path / folder / f"{i:06d}.png").write_bytes(f"{path.name} {folder} {i}".encode())
    return ActivationStore.open(path)


def pictures(path: Path) -> dict[str, str]:
    return {str(p.relative_to(path)): p.read_text() for name in ("images", "masks") for p in (path / name).glob("*")}


def test_images_and_masks_come_along(tmp_path: Path) -> None:
    spec = small_spec(JOINED)
    a, b = with_pictures(tmp_path / "a", spec), with_pictures(tmp_path / "b", spec)
    (b.path / "images/000004.png").unlink()  # one may be missing
    cut = subset(b, tmp_path / "cut", samples=[3, 4, 10])
    assert cut.samples.column("mask").to_pylist() == ["000000.png", "", ""]
    assert pictures(cut.path) == {
        "images/000000.png": "b images 3",
        "images/000002.png": "b images 10",
        "masks/000000.png": "b masks 3",
    }
    both = merge([a, cut], tmp_path / "both")  # the seam lies inside a shard
    assert both.verify() == []
    expected = {f"images/{i:06d}.png": f"a images {i}" for i in range(11)}
    expected |= {f"masks/{i:06d}.png": f"a masks {i}" for i in range(0, 11, 3)}
    expected |= {"images/000011.png": "b images 3", "images/000013.png": "b images 10", "masks/000011.png": "b masks 3"}
    assert pictures(both.path) == expected
    names = both.samples.column("mask").to_pylist()
    assert {f"masks/{name}" for name in names if name} == {name for name in expected if name.startswith("masks")}
    export(both, tmp_path / "files", samples=[10, 11])
    assert pictures(tmp_path / "files") == {
        name: expected[name] for name in ("images/000010.png", "images/000011.png", "masks/000011.png")
    }


def test_a_stopped_copy_brings_all_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = with_pictures(tmp_path / "a", small_spec(JOINED))
    whole = tree_hashes(subset(source, tmp_path / "whole").path)
    k = stopped = 0
    while True:
        k += 1
        fail = FailAt(k, OSError(errno.EIO, "injected"))
        with monkeypatch.context() as patch:
            patch.setattr(fileio, "rename", fail.wrap(fileio.rename))
            try:
                subset(source, tmp_path / f"b{k}")
            except OSError:
                stopped += 1
        subset(source, tmp_path / f"b{k}")
        gc(tmp_path / f"b{k}")
        assert tree_hashes(tmp_path / f"b{k}") == whole
        shutil.rmtree(tmp_path / f"b{k}")
        if fail.calls < k:
            break
    assert stopped == k - 1 > 20


@pytest.mark.parametrize("where", ["images", "images/000000.png"])
def test_pictures_are_not_taken_through_links(tmp_path: Path, where: str) -> None:
    source = with_pictures(tmp_path / "a", small_spec(JOINED))
    (source.path / where).rename(tmp_path / "elsewhere")
    (source.path / where).symlink_to(tmp_path / "elsewhere")
    for make in (subset, export):
        with pytest.raises(errors.UnsafePath):
            make(source, tmp_path / make.__name__)
