"""Processes that train, forked from one that has imported the package: a start costs a fork, not seconds of import."""

import os
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from activations_store import ActivationStore
from sae import TrainConfig, train, train_many
from sae.errors import ProcessLost, SAEError
from sae.training.job import TrainJob
from sae.training.processes import joined

_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload(["activations_store", "sae", "sae.training.train", "sae.training.processes"])


class Child:
    """A process that runs a function of this module; what it prints goes to a file, and errors to another.

    Args:
        log: the file, without its ending.
        work: the function.
        given: its arguments.
        environment: variables that it finds beside those of the tests.
    """

    def __init__(self, log: Path, work: Callable[..., None], *given: Any, **environment: str) -> None:
        self._files = [log.with_suffix(ending) for ending in (".out", ".err")]
        for file in self._files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        names = [str(file) for file in self._files]
        self._process = _FORKS.Process(target=_run, args=(names, environment, work, given), daemon=True)
        self._process.start()

    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.is_alive()

    def kill(self) -> None:
        """SIGKILL, if it is still there."""
        self._process.kill()

    def finish(self, limit: float) -> tuple[int, str, str]:
        """Exit status (negative for a signal), output and errors; it is killed after ``limit`` seconds."""
        self._process.join(limit)
        if self.running():
            self.kill()
        self._process.join(30)
        status = self._process.exitcode
        assert status is not None
        output, errors = (file.read_text() for file in self._files)
        return status, output, errors


def _run(names: list[str], environment: dict[str, str], work: Callable[..., None], given: Sequence[Any]) -> None:
    for number, name in enumerate(names, 1):
        with Path(name).open("w") as file:
            os.dup2(file.fileno(), number)
    os.environ.update(environment)
    torch.set_num_threads(1)
    work(*given)


def train_alone(store: Path, runs: list[tuple[TrainConfig, Path]]) -> None:
    """Trains each into its folder."""
    for config, folder in runs:
        train(ActivationStore.open(store), config, folder)


def train_together(jobs: list[TrainJob | tuple[TrainJob, ...]]) -> None:
    """One of the processes of some jobs, done one after another; of a tuple each process has the one of its rank."""
    with joined(timeout=20) as peers:
        for value in jobs:
            job = value[peers.rank] if isinstance(value, tuple) else value
            try:
                train_many(ActivationStore.open(job.store), job.configs, job.folders, peers=peers, divide=job.divide)
            except SAEError as error:
                print(type(error).__name__, error, flush=True)
                if isinstance(error, ProcessLost):
                    raise SystemExit(3) from error
