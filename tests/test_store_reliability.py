"""The fault tests at full size: `make test-long`. Results go to benchmarks/results/reliability.json.

0 lost and 0 silent is what must come out. The seed is the environment variable RELIABILITY_SEED, or drawn and written
into the file; RELIABILITY_SCALE makes the sizes smaller (0.1 is a tenth).
"""

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from store_faults import SPECS, as_row, corrupt, fill_disk, kill_and_resume, misplace, victim, write_together
from store_support import REPO
from test_store_machine import StoreMachine

from apps.measurement import Measurement

pytestmark = pytest.mark.long
SEED = int(os.environ.get("RELIABILITY_SEED") or random.SystemRandom().randrange(10**6))
SCALE = float(os.environ.get("RELIABILITY_SCALE") or 1.0)
KILLS, CORRUPTIONS, MISPLACED, TOGETHER, DISKS, HISTORIES = 200, 5000, 500, 200, 20, 2000


def size(n: int) -> int:
    """`n` at the chosen scale."""
    return max(1, round(n * SCALE))


@pytest.fixture(scope="module")
def rows() -> Iterator[list[dict[str, Any]]]:
    """Rows of the measurement file, written when all tests are done."""
    rows: list[dict[str, Any]] = []
    yield rows
    done = Counter[str]()
    for row in rows:
        done.update({key: value for key, value in row.items() if isinstance(value, int) and key != "seed"})
    ratios = {
        "kills": done["kills"],
        "stores_killed": len({row["what"] for row in rows if "kills" in row}),
        "corruptions": done["injected"],
        "silent": done["silent"],
        "writer_runs": done["runs"],
        "full_disks": done["resumed"],
        "histories": done["histories"],
        "lost": done["lost"],
    }
    config = {"seed": SEED, "scale": SCALE}
    out = REPO / "benchmarks/results/reliability.json"
    Measurement("reliability", rows, ratios, config=config).write(out)


def measured(rows: list[dict[str, Any]], what: str, work: Callable[[random.Random], Counter[str]]) -> Counter[str]:
    """Run, and keep what was counted; a failure inside is something lost."""
    started = time.perf_counter()
    try:
        seen = work(random.Random(f"{SEED} {what}"))
    except BaseException:
        rows.append(as_row(what, Counter({"lost": 1}), time.perf_counter() - started, SEED))
        raise
    rows.append(as_row(what, seen, time.perf_counter() - started, SEED))
    return seen


@pytest.mark.parametrize("spec", sorted(SPECS))
def test_kills(tmp_path: Path, rows: list[dict[str, Any]], spec: str) -> None:
    n = -(-size(KILLS) // len(SPECS))
    assert measured(rows, f"kill -9, {spec} store", lambda rng: kill_and_resume(tmp_path, spec, n, rng))["kills"] >= n


def test_corruptions(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    # One in fifty makes no difference (zeros over zeros) and is not counted.
    n = size(CORRUPTIONS)
    seen = measured(rows, "damaged files", lambda rng: corrupt(victim(tmp_path), n + n // 20 + 1, rng))
    assert seen["injected"] >= n
    assert seen["silent"] == 0


def test_misplaced(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    n = size(MISPLACED)
    seen = measured(rows, "misplaced shards and records", lambda rng: misplace(victim(tmp_path), n + n // 5 + 5, rng))
    assert seen["injected"] >= n
    assert seen["silent"] == 0


def test_writers(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    n = size(TOGETHER)
    assert measured(rows, "2 and 4 writers", lambda rng: write_together(tmp_path, n, rng))["runs"] == n


def test_full_disks(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    n = size(DISKS)
    assert measured(rows, "full disks", lambda rng: fill_disk(tmp_path, n, rng))["resumed"] == n


def test_histories(rows: list[dict[str, Any]]) -> None:
    n = size(HISTORIES)

    def run(_: random.Random) -> Counter[str]:
        options = settings(max_examples=n, stateful_step_count=50, deadline=None, database=None)
        run_state_machine_as_test(StoreMachine, settings=options)  # type: ignore[no-untyped-call]
        return Counter({"histories": n})

    assert measured(rows, "histories of up to 50 steps", run)["histories"] == n
