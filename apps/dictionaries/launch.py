"""Several processes on this machine for one training: ``denoscope train --processes N``.

They meet at a file in a temporary folder and talk over the loopback interface only, so nothing listens to the network.
The first process draws the progress bar. When one ends with an error the others notice by themselves; who has not
after a grace period is ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from apps.errors import ProcessesFailed

if TYPE_CHECKING:
    from sae.training.job import TrainJob

GRACE = 20.0
"""Seconds that processes get to end by themselves after one has failed."""

_POLL = 0.1
_MARKS = ("RANK", "WORLD_SIZE")


def started_by_launcher() -> bool:
    """Whether this process is one of several already: torchrun, Slurm or this module started it."""
    return all(mark in os.environ for mark in _MARKS)


def launch(job: TrainJob, processes: int) -> None:
    """Runs a job in several processes and waits for them.

    Raises:
        ProcessesFailed: one of them failed; its own message is on standard error. The others are ended.
    """
    with TemporaryDirectory(prefix="denoscope-") as folder:
        description = Path(folder) / "job.json"
        description.write_text(json.dumps(job.to_json()), encoding="utf-8")
        children = [
            subprocess.Popen(
                [sys.executable, "-m", "apps.dictionaries.launch", str(description)],
                env=os.environ | _environment(rank, processes, Path(folder) / "meet"),
            )
            for rank in range(processes)
        ]
        try:
            _wait(children)
        finally:
            _end(children)
    failed = [rank for rank, child in enumerate(children) if child.returncode]
    if failed:
        raise ProcessesFailed(
            f"train: process {', '.join(map(str, failed))} of {processes} failed (see above). The same command "
            "continues at the last checkpoint."
        )


def _environment(rank: int, processes: int, meet: Path) -> dict[str, str]:
    """What `sae.joined` reads, and a fair share of the cores unless the user has said otherwise."""
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "DENOSCOPE_MEET": str(meet),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo"),
    }


def _wait(children: list[subprocess.Popen[bytes]]) -> None:
    """Until all have ended, or `GRACE` after the first failure."""
    deadline: float | None = None
    while any(child.poll() is None for child in children):
        if deadline is None and any(child.poll() for child in children):
            deadline = time.monotonic() + GRACE
        if deadline is not None and time.monotonic() > deadline:
            return
        time.sleep(_POLL)


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    """Terminates who is left, then kills."""
    for child in children:
        if child.poll() is None:
            child.terminate()
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(5)
        if child.poll() is None:
            child.kill()
            child.wait()


def main(description: str) -> int:
    """One of the processes."""
    from apps.cli import FAILED, INTERRUPTED, one_line
    from apps.dictionaries.train_bar import training_bar
    from sae.errors import SAEError
    from sae.training.job import TrainJob

    try:
        job = TrainJob.from_json(json.loads(Path(description).read_text(encoding="utf-8")))
        with training_bar(len(job.configs)) as progress:
            job.run(progress)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (SAEError, OSError, ValueError) as error:
        print(f"denoscope: process {os.environ['RANK']}: {one_line(error)}", file=sys.stderr)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
