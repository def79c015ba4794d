"""A worker does not outlive a killed parent."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import multiprocessing, os, signal, sys, time
from apps.orphans import end_with_parent


def work(connection):
    end_with_parent()
    connection.send(os.getpid())
    time.sleep(600)


if __name__ == "__main__":
    here, there = multiprocessing.Pipe()
    multiprocessing.get_context("spawn").Process(target=work, args=(there,)).start()
    print(here.recv(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def gone(pid: int) -> bool:
    """Whether the process has ended; one that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_worker_ends_when_its_parent_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(script)], env=os.environ | {"PYTHONPATH": root}, stdout=subprocess.PIPE, timeout=60
    )
    assert done.returncode == -9
    worker = int(done.stdout)
    end = time.monotonic() + 30
    while not gone(worker) and time.monotonic() < end:
        time.sleep(0.05)
    assert gone(worker)
