"""Training by two processes beside one: `python -m benchmarks.sae_processes --out FILE`.

Every process has one thread. A step is what a run does with a batch of 4096 rows that lies in memory: loss, sums over
the processes, update. In one round, in random order:

    one         one process
    rows        two processes, half of the rows of each batch in each; gradients are summed
    features    two processes, half of the features in each; codes and reconstructions are exchanged
    apart       two processes that know nothing of each other, a dictionary in each: the limit, since two cores share
                caches and memory

Figures are rows a second, wall time. A ratio is taken within a round; `rows_over_one_A` of 2 would be twice as fast,
and `rows_over_apart_A` is the share of the limit. Other programs on the machine hurt two processes more than one, as
each waits for the slower: measure on a quiet one.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from apps.measurement import Measurement
from benchmarks.sae_step import SHAPES, planted_rows, quartiles
from benchmarks.sae_step_peers import LR
from sae import SAEConfig, TopKSAE
from sae.numerics.peers import ALONE
from sae.training.division import Division
from sae.training.feature_shards import FeatureDivision
from sae.training.optimiser import Adam
from sae.training.processes import MEET_FILE, joined

MODES = ("one", "rows", "features", "apart")
_RATIOS = (("rows", "one"), ("features", "one"), ("apart", "one"), ("rows", "apart"), ("features", "apart"))
_DIVISIONS: dict[str, type[Division]] = {"one": Division, "rows": Division, "features": FeatureDivision}
_WARM = 2  # steps before the clock starts


def main(argv: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sae_processes", description="Two processes beside one.")
    parser.add_argument("--quick", action="store_true", help="shape B, two rounds of four steps, within two minutes")
    parser.add_argument("--rounds", type=int, default=5, help="rounds")
    parser.add_argument("--steps", type=int, default=8, help="steps of a measurement")
    parser.add_argument("--shapes", default="AB", help="which shapes of benchmarks.sae_step")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(argv)
    shapes, rounds, steps = ("B", 2, 4) if options.quick else (options.shapes, options.rounds, options.steps)
    config = {"rounds": rounds, "steps": steps, "threads": 1, "quick": options.quick}
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float | None] = {}
    order = random.Random(0)
    for shape in shapes:
        seen: dict[str, list[float]] = defaultdict(list)
        for _ in range(rounds):
            for mode in order.sample(MODES, len(MODES)):
                seen[mode].append(measure(shape, mode, steps))
                print(f"{shape} {mode:<10} {seen[mode][-1]:9.0f} rows/s", flush=True)
        rows += [{"shape": shape, "who": mode, "unit": "rows/s"} | quartiles(seen[mode]) for mode in MODES]
        for above, below in _RATIOS:
            name = f"{above}_over_{below}_{shape}"
            found = [a / b for a, b in zip(seen[above], seen[below], strict=True)]
            rows.append({"shape": shape, "ratio": name, "rounds": rounds} | quartiles(found))
            ratios[name] = statistics.median(found)
            print(f"{name}: {ratios[name]:.2f}", flush=True)
        Measurement("sae_processes", rows, ratios, config=config).write(options.out)


def measure(shape: str, mode: str, steps: int) -> float:
    """Rows a second of all processes together."""
    world = 1 if mode == "one" else 2
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(world), "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, "-m", "benchmarks.sae_processes_worker", shape, mode, str(steps)]
        children = [
            subprocess.Popen(
                command,
                env=environment | {"RANK": str(rank), MEET_FILE: str(Path(folder) / "meet")},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(world)
        ]
        try:
            outputs = [child.communicate()[0] for child in children]
        finally:
            for child in children:
                child.kill()
    if any(child.returncode for child in children):
        raise RuntimeError(f"A process of {mode} on shape {shape} failed; its message is above.")
    return sum(json.loads(output) for output in outputs)


def work(shape_name: str, mode: str, steps: int) -> float:
    """Rows a second that this process adds to the sum of all."""
    torch.set_num_threads(1)
    shape = SHAPES[shape_name]
    with joined() as everyone:
        peers = ALONE if mode == "apart" else everyone
        kind = _DIVISIONS.get(mode, Division)
        rank, world = kind.share_of_rows(shape.batch, peers)
        batches = [batch.chunk(world)[rank] for batch in planted_rows(shape, 2).split(shape.batch)]
        sae = TopKSAE(SAEConfig(shape.d_in, shape.d_sae, shape.k), seed=0)
        sae.initialise(batches[0] if world == 1 else planted_rows(shape, 1))
        division = kind(sae, peers)
        adam = Adam(division.sae.trained_tensors(), betas=(0.9, 0.999), eps=6.25e-10, clip_norm=1.0)
        dead = torch.zeros(0, dtype=torch.int64)
        started = 0.0
        for number in range(_WARM + steps):
            if number == _WARM:
                everyone.total(1)  # all are there
                started = time.perf_counter()
            result, gradients = division.sae.loss(batches[number % 2], dead)
            division.reduce(result, gradients, dead)
            adam.update(gradients, LR, norm=division.norm(gradients))
            division.sae.after_update()
        everyone.total(1)
        seconds = time.perf_counter() - started
    return shape.batch * steps / seconds / peers.world


if __name__ == "__main__":
    main()
