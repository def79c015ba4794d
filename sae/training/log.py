"""What a run says while it trains: one `TrainProgress` every few steps, also a line of `train_log.jsonl`."""

import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from sae._files import atomic_path

_log = logging.getLogger(__name__)
LOG_NAME = "train_log.jsonl"


@dataclass(frozen=True)
class TrainProgress:
    """One progress report; averages are over the steps since the report before."""

    batch: int  # steps done
    n_batches: int  # steps of the whole run
    rows: int  # rows done
    loss: float  # what is minimised: FVU of a batch plus the terms of the architecture
    explained_variance: float  # 1 - pooled squared error / pooled variance about each batch's mean
    l0: float  # features on for a row
    dead: int  # features silent for `dead_after` rows
    lr: float  # learning rate of the last step
    grad_norm: float  # of the last step, before clipping
    rows_per_second: float  # everything included
    data_wait: float  # share of the time spent waiting for rows

    @property
    def seconds_left(self) -> float:
        """Expected time to the last step, at the speed of this report."""
        return (self.n_batches - self.batch) * (self.rows / self.batch) / self.rows_per_second


class Window:
    """Sums between two reports."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.wait = self.loss = self.sse = self.variance = 0.0
        self.n_on = self.batches = self.rows = 0

    def add(self, *, wait: float, rows: int, loss: float, sse: float, variance: float, n_on: int) -> None:
        """Adds a step: seconds waited for rows, rows, loss, squared error, variance, features on in all rows."""
        self.wait += wait
        self.rows += rows
        self.loss += loss
        self.sse += sse
        self.variance += variance
        self.n_on += n_on
        self.batches += 1

    def report(self, batch: int, n_batches: int, dead: int, lr: float, grad_norm: float) -> TrainProgress:
        """The report of these steps."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        return TrainProgress(
            batch=batch,
            n_batches=n_batches,
            rows=batch * (self.rows // self.batches),
            loss=self.loss / self.batches,
            explained_variance=1 - self.sse / self.variance,
            l0=self.n_on / self.rows,
            dead=dead,
            lr=lr,
            grad_norm=grad_norm,
            rows_per_second=self.rows / seconds,
            data_wait=self.wait / seconds,
        )


def write_report(path: Path, report: TrainProgress) -> None:
    """Appends a line to the log of a run."""
    with path.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(asdict(report)) + "\n")
    _log.info(
        "step %d of %d: explained variance %.4f, dead %d",
        report.batch,
        report.n_batches,
        report.explained_variance,
        report.dead,
    )


def truncate_log(path: Path, batch: int) -> None:
    """Drops the lines written after the checkpoint that a run continues from, and a torn last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["batch"] <= batch:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            _log.warning("dropped an unreadable line of %s", path)
    with atomic_path(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
