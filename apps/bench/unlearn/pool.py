"""Stages of the unlearning benchmark in several processes, one torch thread each.

Denoisers of this size gain little from a second thread, so processes that each take the next stage from one list use a
machine better. A stage's result is a file that appears whole or not at all: after any end, the same command goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from apps.bench.unlearn.prepare import Bench, UnlearnBench
from apps.bench.unlearn.target import run_stage
from apps.errors import ProcessesFailed
from apps.orphans import end_with_parent
from apps.progress import Progress

Job = tuple[str, str, str, str]
"""(what, method, factor, label) of a stage."""

_opened: Bench | None = None


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
        ProcessesFailed: a process ended before its stage did.
    """
    if workers == 1 or len(jobs) < 2:
        return [_told(progress, i, len(jobs), lambda job=job: run_stage(bench, *job)) for i, job in enumerate(jobs)]
    found: dict[int, dict[str, Any]] = {}
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), get_context("spawn"), initializer=_open, initargs=(bench.config, bench.best_sae)
    )
    with pool:
        numbers = {pool.submit(_run, job): i for i, job in enumerate(jobs)}
        try:
            for future in as_completed(numbers):
                found[numbers[future]] = future.result()
                progress(len(found), len(jobs))
        except BrokenProcessPool as error:
            raise ProcessesFailed(
                f"bench unlearn: a process ended with {len(jobs) - len(found)} of {len(jobs)} stages left (killed, or "
                "out of memory). What is done is kept: start the same command again, with fewer --workers if memory "
                "was short."
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)  # one stage failed: the others need not be begun
            raise
    return [found[i] for i in range(len(jobs))]


def _told(progress: Progress, i: int, n: int, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    result = work()
    progress(i + 1, n)
    return result


def _open(config: UnlearnBench, best_sae: Mapping[str, str]) -> None:
    import torch

    global _opened
    end_with_parent()
    torch.set_num_threads(1)
    _opened = Bench(config, dict(best_sae))


def _run(job: Job) -> dict[str, Any]:
    if _opened is None:
        raise RuntimeError("bench unlearn: a stage was run in a process without a benchmark.")
    return run_stage(_opened, *job)
