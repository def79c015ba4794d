"""The progress line of a training: how good the dictionary is by now, how fast it goes, and how long it still takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from apps.progress import bar

if TYPE_CHECKING:
    from sae import TrainProgress


@contextmanager
def training_bar(n_runs: int = 1) -> Iterator[Callable[[int, TrainProgress], None]]:
    """A bar over the steps of all runs; takes (number of the run, its report)."""
    latest: dict[int, TrainProgress] = {}
    with bar("train", "step") as progress:

        def update(run: int, report: TrainProgress) -> None:
            latest[run] = report
            # Runs that have not reported yet are taken to be as long as this one.
            total = sum(seen.n_batches for seen in latest.values()) + (n_runs - len(latest)) * report.n_batches
            progress(sum(seen.batch for seen in latest.values()), total, note(report))

        yield update


def note(report: TrainProgress) -> str:
    """What a report says in a few words."""
    minutes, seconds = divmod(round(report.seconds_left), 60)
    return (
        f"explained {report.explained_variance:.3f}, L0 {report.l0:.1f}, dead {report.dead}, "
        f"{report.rows_per_second:,.0f} rows/s, {report.data_wait:.1%} waiting for rows, {minutes}:{seconds:02d} left"
    )
