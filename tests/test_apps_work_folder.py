"""A work folder: one command at a time, and unedited images that any list of targets shares."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import build_tiny_pipeline

from apps.bench.unlearn.bench import bench_unlearn
from apps.bench.unlearn.config import UnlearnBench
from apps.bench.unlearn.prepare import Bench, prepare
from apps.errors import FolderInUse
from apps.images import read_image
from apps.locks import HOLDER_FILE, only_command
from apps.runs import Run
from apps.unlearning.edits import Sampling
from apps.unlearning.place import Place
from apps.unlearning.unedited import unedited_images
from probe.model import generate
from probe.unlearning import PromptGrid

HOLD = """
import sys
from pathlib import Path
from apps.locks import only_command
with only_command(Path(sys.argv[1]), "bench moons"):
    print("held", flush=True)
    sys.stdin.read()
"""
SAMPLING = Sampling(2, 2.0, 2)


def grid(*rows: tuple[str, int]) -> PromptGrid:
    prompts, seeds = zip(*rows, strict=True)
    return PromptGrid(prompts, seeds, {"object": tuple("star" for _ in rows), "style": tuple("flat" for _ in rows)})


# One command at a time


def test_a_second_command_is_told_who_works_there_until_that_one_is_gone(tmp_path: Path) -> None:
    work = tmp_path / "work"
    root = Path(__file__).parent.parent
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(work)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        told = rf"bench stars: .* process {other.pid} on .*\(bench moons, since"
        with pytest.raises(FolderInUse, match=told), only_command(work, "bench stars"):
            pass
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.wait(60)
        for pipe in (other.stdin, other.stdout):
            assert pipe is not None
            pipe.close()
    assert (work / HOLDER_FILE).is_file()  # it was killed, and could not take its note away
    with (
        only_command(work, "bench stars"),
        pytest.raises(FolderInUse, match=f"process {os.getpid()} "),
        only_command(work, "bench stars"),
    ):
        pass
    assert not (work / HOLDER_FILE).exists()


def test_a_folder_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), only_command(tmp_path, "bench stars"):
        raise ZeroDivisionError
    with only_command(tmp_path, "bench stars"):
        pass


def test_a_benchmark_does_nothing_in_a_folder_in_use(tmp_path: Path) -> None:
    config = UnlearnBench(tmp_path, ("no_edit",), (("object", "star"),))
    with only_command(tmp_path, "bench unlearn-many"):
        before = sorted(path.name for path in tmp_path.iterdir())
        with pytest.raises(FolderInUse, match="bench unlearn: .*bench unlearn-many"):
            bench_unlearn(config, lambda line: None)
        assert sorted(path.name for path in tmp_path.iterdir()) == before


# Unedited images


def test_what_was_drawn_for_one_list_is_there_for_another(tiny_pipe, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def draw(of: PromptGrid, sampling: Sampling = SAMPLING, pipe: Any = tiny_pipe) -> np.ndarray:
        told.clear()
        return unedited_images(Run(tmp_path), pipe, of, sampling, progress=lambda *at: told.append(at))

    rows = [("a red star", 0), ("a red star", 1), ("a blue moon", 0)]
    first = draw(grid(*rows))
    assert told == [(2, 3), (3, 3)]
    expected = generate(tiny_pipe, [p for p, _ in rows], [s for _, s in rows], steps=2, guidance=2.0, batch_size=2)
    np.testing.assert_array_equal(first, expected)
    again = draw(grid(rows[2], ("a green cup", 5), rows[0]))
    assert told == [(3, 3)]  # one was drawn, two were there
    np.testing.assert_array_equal(again[[0, 2]], first[[2, 0]])
    assert (again[1] != first[0]).any()
    draw(grid(*rows))
    assert told == []
    another = build_tiny_pipeline()
    another.unet.conv_out.weight.data.mul_(2)
    for sampling, pipe in ((Sampling(1, 2.0, 2), tiny_pipe), (SAMPLING, another)):
        draw(grid(rows[0]), sampling, pipe)
        assert told == [(1, 1)]


def test_an_interrupted_command_goes_on_after_its_last_batch(tiny_pipe, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    asked = grid(*(("a red star", seed) for seed in range(5)))
    with pytest.raises(KeyboardInterrupt):
        unedited_images(Run(tmp_path), tiny_pipe, asked, SAMPLING, progress=interrupt)
    told: list[int] = []
    unedited_images(Run(tmp_path), tiny_pipe, asked, SAMPLING, progress=lambda done, _: told.append(done))
    assert told == [4, 5]


@pytest.mark.slow
def test_lists_of_targets_share_a_folder_and_no_stage_notices(tmp_path: Path) -> None:
    """Other targets need other test images; those of the first list stay, and what is done stays done."""
    small = {
        "objects": ("star", "moon"), "styles": ("flat", "neon"), "n_seeds": 3, "retain_seeds": 1,
        "validation": (2, 2), "n_boot": 0, "n_recorded": 16, "place": Place(steps=3),
    }  # fmt: skip
    star, moon = (UnlearnBench(tmp_path, ("no_edit",), (("object", name),), **small) for name in ("star", "moon"))
    bench_unlearn(star, lambda line: None)
    stage = Run(tmp_path).stage("score-no_edit-object-star-1")
    pictures = {path: path.stat().st_mtime_ns for path in (tmp_path / "unlearn" / "unedited").rglob("*.png")}
    done = stage.stat().st_mtime_ns
    other = Bench(moon)
    prepare(other)
    assert len(list((tmp_path / "unlearn" / "unedited").rglob("*.png"))) > len(pictures)
    bench_unlearn(star, lambda line: None)
    assert stage.stat().st_mtime_ns == done
    assert all(path.stat().st_mtime_ns == before for path, before in pictures.items())
    asked = other.world.test.select(other.drawn)
    alone = generate(other.pipe, asked.prompts, asked.seeds, steps=3, guidance=2.0)
    assert np.abs(other.baseline_images.astype(int) - alone).max() <= 1  # batches differ in their members
    assert read_image(next(iter(pictures))).shape == (64, 64, 3)
