"""``denoscope store``: what it prints, what it refuses, and a damaged store that is mended to the same bytes."""

import json
from pathlib import Path

import pytest
from store_support import (
    BITS,
    JOINED,
    complete_store,
    create,
    extend,
    resume,
    shard_arrays,
    small_spec,
    tree_hashes,
    write_pending,
)

from activations_store import ActivationStore
from apps.cli import main

ACTIONS = ("info", "verify", "gc", "merge", "subset", "copy", "export")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return complete_store(tmp_path / "s", small_spec(JOINED)).path


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_has_an_example(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        main(["store", action, "--help"])
    assert info.value.code == 0
    assert f"example:\n  denoscope store {action} " in capsys.readouterr().out


def test_info(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with extend(path) as writer:
        writer.write_shard(0, shard_arrays(writer.spec, 0))
    assert main(["store", "info", str(path)]) == 0
    out = capsys.readouterr().out
    assert "11 of 11 samples" in out
    table = [line.split("  ") for line in out.splitlines() if " of " in line and " x " in line]
    cells = {row[0]: [cell.strip() for cell in row if cell.strip()][1:] for row in table}
    assert cells[JOINED.name][:3] == ["16 x 8", "float16", "3 of 3"]
    assert cells["late"][:3] == ["3 x 4", "float16", "1 of 6"]
    assert cells["late"][-1] == "group more"
    assert cells[JOINED.name][-1] == cells["late"][-2] == "none"
    ActivationStore.open(path).statistics(JOINED.name)
    (path / "commits/000001.json").unlink()
    assert main(["store", "info", str(path)]) == 0
    out = capsys.readouterr().out
    assert "2 of 3" in out and "shards without a commit record: 1" in out
    assert "kept" not in out  # statistics are not about what is committed now
    write_pending(resume(path, small_spec(JOINED)))
    assert main(["store", "info", str(path)]) == 0
    assert "kept" in capsys.readouterr().out
    assert main(["store", "info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["factors"] == ["object", "style"]
    assert facts["bytes"] == sum(f.stat().st_size for f in path.glob("**/arrays/*/*"))


def test_verify_says_what_to_run_again(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "verify", str(path)]) == 0
    assert "sound, every byte" in capsys.readouterr().out
    write_pending(extend(path))
    for file in (*path.glob("arrays/*/c.1.*"), *path.glob("groups/more/arrays/late*/c.0.*")):
        file.write_bytes(file.read_bytes()[:-1])
    assert main(["store", "verify", str(path), "--fast"]) == 1
    out = capsys.readouterr().out
    assert "DAMAGED: arrays/" in out
    assert "run again: shards 1 (samples 4-7)" in out
    assert "denoscope store verify" in out
    assert "shards 0 of group more" in out
    assert main(["store", "verify", str(path), "--repair"]) == 2
    assert "Collect it again the way it was made" in capsys.readouterr().err
    (path / "samples.parquet").unlink()
    assert main(["store", "verify", str(path), "--repair"]) == 2
    assert "cannot be computed again" in capsys.readouterr().err
    assert main(["store", "verify", str(path)]) == 1
    assert "restore the named files from a copy" in capsys.readouterr().out


def test_a_plan_that_is_not_of_collect_is_not_repaired(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.glob("commits/*"))
    next(path.glob("arrays/*/c.1.*")).unlink()
    assert main(["store", "verify", str(path), "--repair"]) == 2
    assert "Collect it again the way it was made" in capsys.readouterr().err
    assert sorted(path.glob("commits/*")) == before  # nothing was removed


def test_damaged_statistics_are_removed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ActivationStore.open(path).statistics(JOINED.name)
    (file,) = (path / "statistics").iterdir()
    file.write_bytes(b"x")
    assert main(["store", "verify", str(path)]) == 1
    assert "computed again" in capsys.readouterr().out
    assert main(["store", "verify", str(path), "--repair"]) == 0
    assert not file.exists()


def test_gc(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path / "commits/000002.json").unlink()
    assert main(["store", "gc", str(path)]) == 0
    assert "1 leftovers removed" in capsys.readouterr().out
    assert ActivationStore.open(path).committed == [0, 1]


def test_subset_merge_export(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--label", "object=cup,moon", "--samples", "0-5", "--steps", "1-2", "--branches", "cond"]
    assert main(["store", "subset", str(path), *chosen, "--out", str(tmp_path / "a")]) == 0
    made = ActivationStore.open(tmp_path / "a")
    assert made.samples.column("origin_sample").to_pylist() == [0, 2, 3, 5]
    assert main(["store", "merge", str(tmp_path / "a"), str(tmp_path / "a"), "--out", str(tmp_path / "b")]) == 0
    assert ActivationStore.open(tmp_path / "b").spec.n_samples == 8
    assert main(["store", "export", str(path), *chosen, "--out", str(tmp_path / "files")]) == 0
    assert sorted(p.suffix for p in (tmp_path / "files").iterdir()) == [".json", ".npy", ".parquet"]
    for bad in (["--label", "object"], ["--label", "object=cup", "--samples", "1"]):
        assert main(["store", "subset", str(path), *bad, "--out", str(tmp_path / "c")]) == 2
    assert "no chosen sample has these labels" in capsys.readouterr().err
    assert main(["store", "subset", str(path), "--label", "colour=red", "--out", str(tmp_path / "c")]) == 2
    assert not (tmp_path / "c").exists()


def test_incomplete_and_missing_stores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create(tmp_path / "s", small_spec(JOINED, BITS)).close()
    assert main(["store", "info", str(tmp_path / "s")]) == 0
    assert "0 of 11 samples" in capsys.readouterr().out
    assert main(["store", "info", str(tmp_path / "nothing")]) == 2
    assert "not an activation store" in capsys.readouterr().err


def test_repair_collects_damaged_shards_again(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from probe.capture import CapturePlan, collect
    from probe.model import load_pipeline

    pipe = load_pipeline(str(tiny_folder))
    prompts = ["a red star", "a blue moon", "the green cup", "a flat moon", "a neon cup"]
    labels = {"object": ["star", "moon", "cup", "moon", "cup"]}
    plan = CapturePlan.for_pipeline(pipe, ["mid_block"], prompts, labels=labels, steps=2, max_samples_per_shard=2)
    path = collect(pipe, plan, tmp_path / "s").path
    whole = tree_hashes(path)
    file = next(path.glob("arrays/*/c.1.*"))
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    record = path / "commits/000002.json"
    record.write_bytes(record.read_bytes()[:-9])
    (path / "images/000002.png").unlink()
    assert main(["store", "verify", str(path)]) == 1
    assert "shards 1, 2 (samples 2-3, 4-4)" in capsys.readouterr().out
    assert main(["store", "verify", str(path), "--repair", "--model", str(tiny_folder)]) == 0
    out = capsys.readouterr().out
    assert "collecting shards 1, 2 again" in out
    assert "the values differ" not in out
    assert tree_hashes(path) == whole
