"""Sites that are added to a collection later, and damage in any part of a store that is mended to the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import build_tiny_pipeline
from PIL import Image
from store_support import tree_hashes

from activations_store import ActivationStore
from activations_store.errors import NotAStore, SpecMismatch
from apps.cli import main
from probe.capture import CapturePlan, ImagePlan, TokenLayout, collect, nonfinite, read_images
from probe.errors import InvalidPlan
from probe.model import load_pipeline

PROMPTS = ["a red star", "a blue moon", "the green cup", "a flat moon", "a neon cup"]
MID, DEEP = "unet.mid_block:out", "unet.up_blocks.0.attentions.0:delta"


def make_plan(pipe, sites, **changes) -> CapturePlan:
    given = {"steps": 2, "batch_size": 2, "labels": {"object": ["star", "moon", "cup", "moon", "cup"]}} | changes
    return CapturePlan.for_pipeline(pipe, sites, given.pop("prompts", PROMPTS), **given)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five images, two of them with masks."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in [f"{i}.png" for i in range(5)] + ["m1.png", "m3.png"]:
        Image.fromarray(rng.integers(0, 256, (18, 20, 3), dtype=np.uint8)).save(folder / name)
    rows = [f"{i}.png,a red cup,{f'm{i}.png' if i % 2 else ''},{i % 2}" for i in range(5)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,prompt,mask,odd", *rows]))
    return folder


def damage(path: Path, shard: int) -> None:
    (file,) = path.glob(f"arrays/*/c.{shard}.*")
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)


def test_a_group_is_what_collecting_its_sites_gives(tiny_pipe, tmp_path):
    both = collect(tiny_pipe, make_plan(tiny_pipe, [MID, DEEP]), tmp_path / "both")
    path = collect(tiny_pipe, make_plan(tiny_pipe, MID), tmp_path / "s").path
    before = tree_hashes(path)
    plan = make_plan(tiny_pipe, DEEP, max_samples_per_shard=2)
    store = collect(tiny_pipe, plan, path, group="deep")
    assert store.path == path and store.sites == (MID, DEEP) and store.groups["deep"].complete
    after = tree_hashes(path)
    assert {name: after[name] for name in before} == before
    assert not (path / "groups/deep/images").exists()
    for site in store.sites:
        np.testing.assert_array_equal(store.site(site).read(), both.site(site).read())
    assert nonfinite(store) == {} and store.verify() == []
    again: list[int] = []
    collect(tiny_pipe, plan, path, group="deep", progress=lambda done, total: again.append(done))
    assert again == []  # it was complete


def test_a_group_has_its_own_tokens_and_counts(tmp_path):
    pipe = build_tiny_pipeline()
    pipe.unet.up_blocks[0].attentions[0].proj_out.bias[0] = float("nan")
    flag = {"on_nonfinite": "flag", "steps": 1, "images": False}
    path = collect(pipe, make_plan(pipe, MID, **flag), tmp_path / "s").path
    store = collect(pipe, make_plan(pipe, DEEP, tokens=5, **flag), path, group="few")
    assert TokenLayout.of(store, DEEP).n_recorded == 5 and TokenLayout.of(store, MID).n_recorded == 16
    counts = nonfinite(store)
    assert list(counts) == [DEEP] and counts[DEEP].total == 5 * 2 * 5  # samples, branches, tokens: one channel


def test_other_samples_or_steps_are_refused(tiny_pipe, tmp_path):
    path = collect(tiny_pipe, make_plan(tiny_pipe, MID), tmp_path / "s").path
    before = tree_hashes(path)
    for changes in ({"first_seed": 3}, {"prompts": PROMPTS[::-1]}, {"labels": {"object": ["cup"] * 5}}):
        with pytest.raises(InvalidPlan, match="other sites of the same samples"):
            collect(tiny_pipe, make_plan(tiny_pipe, DEEP, **changes), path, group="deep")
    with pytest.raises(SpecMismatch, match="timesteps"):
        collect(tiny_pipe, make_plan(tiny_pipe, DEEP, steps=3), path, group="deep")
    with pytest.raises(SpecMismatch, match="has the site already"):
        collect(tiny_pipe, make_plan(tiny_pipe, MID), path, group="deep")
    assert tree_hashes(path) == before
    with pytest.raises(NotAStore):
        collect(tiny_pipe, make_plan(tiny_pipe, MID), tmp_path / "none", group="deep")


def test_a_group_is_collected_and_mended_by_command(tiny_folder, tmp_path, capsys):
    common = ["--model", str(tiny_folder), "--prompts", str(tmp_path / "p.txt"), "--steps", "2"]
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    run = tmp_path / "run"
    assert main(["collect", *common, "--sites", "mid_block", "--out", str(run)]) == 0
    group = ["collect", *common, "--sites", DEEP, "--out", str(run), "--group", "deep"]
    assert main(group) == 0
    out = capsys.readouterr().out
    assert "groups/deep" in out
    assert main(group) == 0
    assert "resuming: 5 of 5 samples" in capsys.readouterr().out
    path = run / "store"
    whole = tree_hashes(path)
    damage(path / "groups/deep", 0)
    damage(path, 0)
    assert main(["store", "verify", str(run)]) == 1
    out = capsys.readouterr().out
    assert "run again: shards 0 (samples 0-4)" in out and "run again: shards 0 of group deep (samples 0-4)" in out
    assert main(["store", "verify", str(run), "--repair", "--model", str(tiny_folder)]) == 0
    out = capsys.readouterr().out
    assert "collecting shards 0 again" in out and "collecting shards 0 of group deep again" in out
    assert tree_hashes(path) == whole


def test_a_store_of_real_images_is_mended(tiny_folder, pictures, tmp_path, capsys):
    pipe = load_pipeline(tiny_folder)
    plan = ImagePlan.for_pipeline(pipe, "mid_block", read_images(pictures), (-3.0, 1.0), max_samples_per_shard=2)
    path = collect(pipe, plan, tmp_path / "s").path
    whole = tree_hashes(path)
    damage(path, 1)
    (path / "masks/000003.png").unlink()  # of the damaged shard
    before = tree_hashes(path)
    repair = ["store", "verify", str(path), "--repair", "--model", str(tiny_folder)]
    assert main(["store", "verify", str(path)]) == 1
    assert "--repair --images FOLDER" in capsys.readouterr().out
    assert main(repair) == 2
    assert "Say where they are: --images FOLDER" in capsys.readouterr().err
    original = (pictures / "4.png").read_bytes()
    (pictures / "4.png").write_bytes((pictures / "0.png").read_bytes())
    assert main([*repair, "--images", str(pictures)]) == 2
    assert "do not make the plan" in capsys.readouterr().err
    assert tree_hashes(path) == before  # nothing was removed
    (pictures / "4.png").write_bytes(original)
    moved = pictures.rename(tmp_path / "elsewhere")  # the place is no part of the plan
    assert main([*repair, "--images", str(moved)]) == 0
    assert tree_hashes(path) == whole
    assert ActivationStore.open(path).verify() == []
