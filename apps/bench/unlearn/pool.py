"""Stages of the unlearning benchmark in several processes, one torch thread each.

Denoisers of this size gain little from a second thread, so processes that each take the next stage from one list use a
machine better. A stage's result is a file that appears whole or not at all: after any end, the same command goes on.

Each process has a pipe of its own, which reports its death as the end of the data. Nothing is shared, so a process that
is killed can hold nothing that the others wait for; ``concurrent.futures`` can wait for ever when one dies while
another is being started (Python 3.11).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from apps.bench.unlearn.config import UnlearnBench
from apps.bench.unlearn.prepare import Bench
from apps.bench.unlearn.target import run_stage
from apps.errors import ProcessesFailed
from apps.orphans import end_with_parent
from apps.progress import Progress

Job = tuple[str, str, str, str]
"""(what, method, factor, label) of a stage."""
_PATIENCE = 5.0  # seconds that an idle process has to clear up behind itself


def run_jobs(bench: Bench, jobs: Sequence[Job], workers: int, progress: Progress) -> list[dict[str, Any]]:
    """Run stages that are not done yet, in this process or in several.

    Args:
        bench: prepared (``prepare``).
        jobs: stages that do not depend on each other.
        workers: processes; 1 for this one.
        progress: called with (done, total) stages.

    Returns:
        Their results in the order of ``jobs``.

    Raises:
        ProcessesFailed: a process ended before its stage did. Stages that others had begun are finished before this
            or an error of a stage is raised; no further ones are begun.
    """
    if workers == 1 or len(jobs) < 2:
        return [_told(progress, i, len(jobs), lambda job=job: run_stage(bench, *job)) for i, job in enumerate(jobs)]
    found: dict[int, dict[str, Any]] = {}
    failure: BaseException | None = None
    waiting = iter(enumerate(jobs))
    with ExitStack() as processes:
        free = [processes.enter_context(_process(bench)) for _ in range(min(workers, len(jobs)))]
        busy: dict[Connection, int] = {}
        while True:
            while free and failure is None and (following := next(waiting, None)):
                number, job = following
                pipe = free.pop()
                with suppress(OSError):  # a process that has ended is told by reading
                    pipe.send(job)
                busy[pipe] = number
            if not busy:
                break
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                number = busy.pop(pipe)
                try:
                    answer = pipe.recv()
                except (EOFError, OSError):
                    answer = _ended(len(jobs) - len(found), len(jobs))
                else:
                    free.append(pipe)
                if isinstance(answer, BaseException):
                    failure = failure or answer
                else:
                    found[number] = answer
                    progress(len(found), len(jobs))
    if failure is not None:
        raise failure
    return [found[i] for i in range(len(jobs))]


def _told(progress: Progress, i: int, n: int, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    result = work()
    progress(i + 1, n)
    return result


def _ended(left: int, total: int) -> ProcessesFailed:
    return ProcessesFailed(
        f"bench unlearn: a process ended with {left} of {total} stages left (killed, or out of memory). What is done "
        "is kept: start the same command again, with fewer --workers if memory was short."
    )


@contextmanager
def _process(bench: Bench) -> Iterator[Connection]:
    """A process that does the stages sent to it. It ends with the pipe; one in the middle of a stage is ended."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, bench.config, dict(bench.best_sae)))
    process.start()
    there.close()  # or the end of the process would not end the data
    try:
        yield here
    finally:
        here.close()
        process.join(_PATIENCE)
        process.terminate()  # what it has done is in whole files
        process.join()


def _serve(pipe: Connection, config: UnlearnBench, best_sae: Mapping[str, str]) -> None:
    import torch

    end_with_parent()
    torch.set_num_threads(1)
    bench = Bench(config, dict(best_sae))
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(run_stage(bench, *job))
        except Exception as error:
            error.add_note(traceback.format_exc())
            pipe.send(error)
