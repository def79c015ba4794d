"""A collection of real images, killed at any place and started again, ends with the bytes of one never killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from store_support import PYTHON, child_environment, tree_hashes

from activations_store import ActivationStore
from probe.capture import ImagePlan, collect, read_images
from probe.model import load_pipeline

COLLECTOR = """
import json, os, signal, sys
from pathlib import Path
from PIL.Image import Image
from activations_store.storage import fileio
from probe.capture import ImagePlan, collect
from probe.model import load_pipeline

pipe, plan = load_pipeline(sys.argv[1]), ImagePlan.from_json(Path(sys.argv[2]).read_text())

def count(calls, k, log):
    def wrap(function, name):
        def inner(*args, **kwargs):
            calls.append(name)
            if len(calls) == k:
                Path(log).write_text(name)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return inner
    Image.save = wrap(Image.save, "picture")
    fileio.rename = wrap(fileio.rename, "rename")
    fileio.TempFile.write = wrap(fileio.TempFile.write, "write")
    fileio.open_for_writing = wrap(fileio.open_for_writing, "open")

for line in sys.stdin:
    out, k, log = json.loads(line)
    pid = os.fork()
    if pid == 0:
        calls = []
        count(calls, k, log)
        collect(pipe, plan, out)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
CALLS = (3, 8, 13, 18, 23)
"""At which call of the file system each start is killed: in creation, at a mask, an image, a shard, a record."""


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
@pytest.mark.slow
def test_killed_anywhere(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        for name in (f"{i}.png", f"mask{i}.png"):
            Image.fromarray(rng.integers(0, 256, (18, 20, 3), dtype=np.uint8)).save(folder / name)
    rows = [f"{i}.png,{f'mask{i}.png' if i % 2 else ''},cup" for i in range(5)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,mask,object", *rows]))
    pipe = load_pipeline(tiny_folder)
    shards = {"batch_size": 2, "max_samples_per_shard": 2}
    plan = ImagePlan.for_pipeline(pipe, "mid_block", read_images(folder), (-3.0, 1.0), **shards)
    (tmp_path / "plan.json").write_text(plan.to_json())
    whole = tree_hashes(collect(pipe, plan, tmp_path / "whole").path)
    assert sum(name.startswith("images/") for name in whole) == 5
    assert sum(name.startswith("masks/") for name in whole) == 2

    command = [PYTHON, "-c", COLLECTOR, str(tiny_folder), str(tmp_path / "plan.json")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    out, log, killed_at = tmp_path / "killed", tmp_path / "log", set[str]()
    with subprocess.Popen(command, env=child_environment(), **pipes) as child:

        def run(place: Path, k: int) -> int:
            print(json.dumps([str(place), k, str(log)]), file=child.stdin, flush=True)
            assert child.stdout is not None
            return int(child.stdout.readline())

        try:
            for k in CALLS:
                assert run(out, k) == -9
                killed_at.add(log.read_text())
                if (out / "store.json").exists():
                    assert not [p for p in ActivationStore.open(out).verify() if p.is_damage]
            assert len(killed_at) >= 3  # of pictures, renames, writes and opened files
            assert run(out, 0) == 0
            assert child.stdin is not None
            child.stdin.close()
        except BaseException:
            child.kill()  # or leaving the block would wait for it
            raise
    assert tree_hashes(out) == whole
