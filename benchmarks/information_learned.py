"""Learned information beside its exact value: `python -m benchmarks.information_learned --out FILE`.

Tasks of the Beyond Normal benchmark (Czyz et al. 2023, https://arxiv.org/abs/2306.11078) and one without information,
each drawn and learned with several seeds (`probe.information.LearnedInformation`). The estimator turns every margin
normal, so that the benchmark's monotone transforms of a coordinate (half-cube, wiggly, bimodal) are the same task to
it and are not repeated; transforms that mix coordinates (Swiss roll, spiral) are. Then tasks whose y is a label, with
as few rows as a store may have: clusters of rows. A value counts as right within 5 % of the exact one. A run that was
stopped goes on when the same command is given again.
"""

import argparse
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from apps.measurement import Measurement
from apps.progress import bar, table
from apps.runs import Run
from apps.stages import Stages
from probe.information import LearnedInformation
from probe.information.learned import LABELS
from probe.information.learned import ROWS as ROW_TRAINING

ROWS, QUICK_ROWS = 20_000, 6000
TOLERANCE = 0.05
Draw = Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray]]


class Task(NamedTuple):
    """Rows x (n, d) with y (n, k) or labels (n,), and their information in nats."""

    exact: float
    draw: Draw
    y: str = "rows"
    rows: int = ROWS


def gaussian(d: int, shared: float) -> Draw:
    """d coordinates a side, `shared` the correlation of all 2 d with each other."""

    def draw(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        both = math.sqrt(shared) * rng.standard_normal((n, 1)) + math.sqrt(1 - shared) * rng.standard_normal((n, 2 * d))
        return both[:, :d], both[:, d:]

    return draw


def two_pairs(d: int) -> Draw:
    """d coordinates a side; two of x have the correlation 0.8 with one of y each."""

    def draw(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        x, y = rng.standard_normal((2, n, d))
        y[:, :2] = 0.8 * x[:, :2] + 0.6 * y[:, :2]
        return x, y

    return draw


def additive(e: float) -> Draw:
    """x uniform on [0, 1], y = x + U(-e, e)."""

    def draw(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        x = rng.random((n, 1))
        return x, x + e * (2 * rng.random((n, 1)) - 1)

    return draw


def discrete(m: int) -> Draw:
    """x one of 0 to m - 1, y = x + U(0, 2)."""

    def draw(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        x = rng.integers(m, size=(n, 1)).astype(float)
        return x, x + 2 * rng.random((n, 1))

    return draw


def student(k: int, df: int) -> Draw:
    """Both sides together a Student t law with identity dispersion."""

    def draw(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        both = rng.standard_normal((n, 2 * k)) / np.sqrt(rng.chisquare(df, (n, 1)) / df)
        return both[:, :k], both[:, k:]

    return draw


def swiss_roll(draw: Draw) -> Draw:
    """x of one coordinate rolled up in the plane."""

    def rolled(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        from scipy.special import ndtr

        x, y = draw(n, rng)
        t = 1.5 * np.pi * (1 + 2 * ndtr(x))
        return np.concatenate([t * np.cos(t), t * np.sin(t)], 1) / 21, y

    return rolled


def spiral(draw: Draw, speed: float = 1 / 3) -> Draw:
    """Both sides turned in their first two coordinates by an angle that grows with their squared length."""

    def turned(v: np.ndarray) -> np.ndarray:
        angle = speed * (v**2).sum(1)
        out = v.copy()
        out[:, 0] = np.cos(angle) * v[:, 0] - np.sin(angle) * v[:, 1]
        out[:, 1] = np.sin(angle) * v[:, 0] + np.cos(angle) * v[:, 1]
        return out

    def draw_(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        x, y = draw(n, rng)
        return turned(x), turned(y)

    return draw_


def labelled(shares: Sequence[float], apart: float, d: int, widths: Sequence[float] = ()) -> Draw:
    """Clusters of rows in d dimensions: label k lies `apart` out on axis k, as wide as is said or 1, and is y."""

    def draw(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        y = rng.choice(len(shares), n, p=shares)
        x = np.array(widths or [1.0] * len(shares))[y, None] * rng.standard_normal((n, d))
        return x + apart * np.eye(len(shares), d)[y], y

    return draw


def independent(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two coordinates a side that have nothing to do with each other."""
    x, y = rng.standard_normal((2, n, 2))
    return x, y


TASKS: dict[str, Task] = {
    "independent 2": Task(0.0, independent),
    "normal 0.75": Task(0.41334, gaussian(1, 0.75)),
    "Swiss roll": Task(0.41334, swiss_roll(gaussian(1, 0.75))),
    "uniform 0.75": Task(1 / 3, additive(0.75)),
    "uniform 0.1": Task(1.70944, additive(0.1)),
    "discrete uniform 5": Task(1.05492, discrete(5)),
    "Student 2, df 2": Task(0.19315, student(2, 2)),
    "Student 3, df 2": Task(0.29092, student(3, 2)),
    "Student 5, df 2": Task(0.44815, student(5, 2)),
    "dense 3": Task(0.41334, gaussian(3, 0.5)),
    "dense 5": Task(0.59281, gaussian(5, 0.5)),
    "dense 25": Task(1.29218, gaussian(25, 0.5)),
    "dense 50": Task(1.62427, gaussian(50, 0.5)),
    "two pairs 3": Task(-math.log(1 - 0.8**2), two_pairs(3)),
    "two pairs 5": Task(-math.log(1 - 0.8**2), two_pairs(5)),
    "spiral 3": Task(-math.log(1 - 0.8**2), spiral(two_pairs(3))),
    "labels 4, apart": Task(1.06274, labelled([0.6, 0.2, 0.15, 0.05], 20.0, 8), "label", 1500),
    "labels 4, unequal": Task(0.5690, labelled([0.7, 0.2, 0.07, 0.03], 2.0, 8), "label", 1500),
    "labels 2, widths": Task(0.4221, labelled([0.5, 0.5], 0.0, 4, [1.0, 2.5]), "label", 1500),
    "labels 12": Task(1.4060, labelled([1 / 12] * 12, 2.0, 12), "label", 1500),
    "labels 12, few rows": Task(1.4060, labelled([1 / 12] * 12, 2.0, 12), "label", 480),
}
"""Exact values: closed forms; for Student and dense tasks those of the benchmark; for overlapping labels the mean of a
million draws."""


def main(argv: list[str] | None = None) -> None:
    """Learn and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.information_learned", description="Learned information beside its exact value."
    )
    parser.add_argument("--quick", action="store_true", help="three tasks, one seed, few rows")
    parser.add_argument("--seeds", type=int, default=3, help="draws of every task")
    parser.add_argument("--steps", type=int, default=1500, help="training steps")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="tasks (default: all)")
    parser.add_argument("--work", type=Path, help="folder for what is done already (default: OUT without its .json)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(argv)
    names, seeds, n = options.tasks, range(options.seeds), ROWS
    steps = options.steps
    if options.quick:
        names, seeds, n, steps = names[:3], range(1), QUICK_ROWS, min(steps, 600)
    stages = Stages(Run(options.work or options.out.with_suffix("")), print, len(names) * len(seeds))
    rows = []
    for name in names:
        for seed in seeds:
            task = TASKS[name]
            size, length = (min(n, task.rows), LABELS.steps) if task.y == "label" else (n, steps)
            key = {"task": name, "seed": seed, "rows": size, "steps": length}
            with bar(name, "step") as progress:
                work = partial(learned_row, name, seed, size, length, progress)
                rows.append(
                    stages.do(f"{name.replace(' ', '-').replace(',', '')}-{seed}", f"{name}, {seed}", key, work)
                )
    summary = [summary_row(name, [r for r in rows if r["task"] == name]) for name in names]
    config = {"rows": n, "steps": steps, "seeds": len(seeds), "quick": options.quick}
    config |= {"threads": torch.get_num_threads(), "load": os.getloadavg()[0], "tolerance": TOLERANCE}
    told = [r for r in summary if r["exact"] and r["y"] == "rows"]
    ratios = {"within_tolerance": float(np.mean([r["within"] for r in told])), "tasks": float(len(told))}
    Measurement("information_learned", [*summary, *rows], ratios, config=config).write(options.out)
    header = ["task", "exact", "standard", "orthogonal", "null", "worst error", "s"]
    cells = ("standard", "orthogonal", "null_standard", "worst")
    body = [[r["task"], f"{r['exact']:.3f}", *(f"{r[c]:.3f}" for c in cells), f"{r['seconds']:.0f}"] for r in summary]
    print(table(header, body))


def learned_row(
    name: str, seed: int, n: int, steps: int, progress: Callable[[int, int], None] | None = None
) -> dict[str, float | str | int]:
    """One task and seed."""
    import time

    task = TASKS[name]
    x, y = task.draw(n, np.random.default_rng(seed))
    training = replace(LABELS if task.y == "label" else ROW_TRAINING, steps=steps, seed=seed)
    start = time.process_time()
    learned = LearnedInformation(components=None, training=training, seed=seed)
    learned.fit(x, y, progress=progress)
    row: dict[str, float | str | int] = {"part": "run", "task": name, "seed": seed, "exact": task.exact, "n": n}
    for form in ("standard", "orthogonal"):
        found = learned.information(form)
        assert found.null is not None
        row |= {form: found.mean, f"{form}_error": found.interval(n=200).error, f"null_{form}": found.null.mean}
        row["missing"] = found.window.missing
    return row | {"cpu_s": time.process_time() - start}


def summary_row(name: str, rows: list[dict]) -> dict:
    """Mean over seeds, with the lowest and highest."""
    task = TASKS[name]
    found: dict = {"part": "task", "task": name, "y": task.y, "exact": task.exact, "n": len(rows), "rows": rows[0]["n"]}
    for kind in ("orthogonal", "standard", "null_orthogonal", "null_standard"):
        values = [row[kind] for row in rows]
        found |= {kind: float(np.mean(values)), f"{kind}_low": min(values), f"{kind}_high": max(values)}
    off = [abs(row["standard"] - row["exact"]) for row in rows]
    found |= {"worst": max(off), "seconds": float(np.mean([row["cpu_s"] for row in rows]))}
    if task.exact:
        share = [v / row["exact"] for v, row in zip(off, rows, strict=True)]
        found |= {"worst_share": max(share), "within": float(np.mean([s <= TOLERANCE for s in share]))}
    return found


if __name__ == "__main__":
    main()
