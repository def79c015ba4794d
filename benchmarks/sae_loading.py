"""From the store into the trainer: `python -m benchmarks.sae_loading --out FILE`.

Does a step ever wait for its rows? For shapes A and B of `benchmarks.sae_step`, over a store of float16 rows:

    loader    shuffled batches of 4096 rows as float32 tensors, taken as fast as they come: every pool of 65,536 rows
              that is delivered in the time measured is one that is read in it
    step      the same batches from memory: loss, gradients, update
    train     a run from the store, as `sae.train` does it, and the share of its time that it waits for rows

`loader_over_step_A` is how many times faster rows arrive than a step uses them up; `data_wait_A` is the share. Each
with the store's files in the page cache (warm) and dropped from it (cold). The trainer has one thread, the loader its
own. Figures are wall time, medians over rounds.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from activations_store import ActivationStore, SiteSpec, StoreSpec, StoreWriter
from apps.measurement import Measurement
from benchmarks.sae_step import SHAPES, planted_rows, quartiles
from benchmarks.sae_step_peers import LR, Shape, ours
from benchmarks.store import drop_cache
from sae import TrainConfig, TrainProgress, train
from sae.training.rows import open_rows

SITE, TOKENS, STEPS, SAMPLES_A_SHARD = "unet.mid_block:out", 256, 8, 8
_POOLS = 3  # of the loader, that are timed
_PLANTED_BATCHES = 8  # rows are planted for so many batches and repeated: planting is slow, reading is measured


def main(argv: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sae_loading", description="Does a step ever wait for its rows?"
    )
    parser.add_argument("--quick", action="store_true", help="shape B, two rounds of 12 steps, within two minutes")
    parser.add_argument("--rounds", type=int, default=3, help="rounds")
    parser.add_argument("--steps", type=int, default=24, help="steps of a round")
    parser.add_argument("--shapes", default="AB", help="which shapes of benchmarks.sae_step")
    parser.add_argument("--folder", type=Path, help="where to put the store (default: a temporary folder)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(argv)
    shapes, rounds, steps = ("B", 2, 12) if options.quick else (options.shapes, options.rounds, options.steps)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float | None] = {}
    for name in shapes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            seen = measure(Path(folder), SHAPES[name], rounds, steps)
        rows += [{"shape": name, "what": what, "cache": cache} | quartiles(v) for (what, cache), v in seen.items()]
        for cache in ("cold", "warm"):
            speeds = zip(seen["loader rows/s", cache], seen["step rows/s", "memory"], strict=True)
            ratios[f"loader_over_step_{name}_{cache}"] = statistics.median(a / b for a, b in speeds)
            ratios[f"data_wait_{name}_{cache}"] = statistics.median(seen["train data_wait", cache])
    for row in rows:
        print(f"{row['shape']} {row['what']:<16} {row['cache']:<7} {row['median']:12.4g}")
    for key, value in ratios.items():
        print(f"{key}: {value:.3f}")
    config = {"rounds": rounds, "steps": steps, "threads": 1, "quick": options.quick}
    Measurement("sae_loading", rows, ratios, config=config).write(options.out)


def measure(folder: Path, shape: Shape, rounds: int, steps: int) -> dict[tuple[str, str], list[float]]:
    """(what, cache) -> a figure for each round, in random order within one."""
    planted = planted_rows(shape, _PLANTED_BATCHES)
    seen: dict[tuple[str, str], list[float]] = defaultdict(list)
    order = random.Random(0)
    config = TrainConfig(
        site=SITE, d_sae=shape.d_sae, k=shape.k, batch_size=shape.batch, rows=steps * shape.batch, lr=LR, log_every=4
    )
    n_rows = max(steps * shape.batch, (_POOLS + 2) * config.pool_rows)
    with closing(written(folder / "store", planted, n_rows)) as store:
        for number in range(rounds):
            seen["step rows/s", "memory"].append(step_speed(shape, planted, steps))
            for cache in order.sample(("cold", "warm"), 2):
                if cache == "warm":
                    loader_speed(store, config)  # brings the files in
                else:
                    drop_cache(folder / "store")
                seen["loader rows/s", cache].append(loader_speed(store, config))
                if cache == "cold":
                    drop_cache(folder / "store")
                reports: list[TrainProgress] = []
                train(store, config, folder / f"run-{number}-{cache}", progress=reports.append)
                # The first report has the loader's start in it, which a run has once.
                seen["train data_wait", cache].append(statistics.mean(r.data_wait for r in reports[1:]))
                seen["train rows/s", cache].append(statistics.mean(r.rows_per_second for r in reports[1:]))
    return dict(seen)


def written(folder: Path, planted: Tensor, n_rows: int) -> ActivationStore:
    """A store with at least so many rows for training besides those that a run holds out."""
    maps = planted.half().numpy().reshape(-1, TOKENS, planted.shape[1])
    per_shard = SAMPLES_A_SHARD * STEPS
    n_shards = -(-5 * n_rows // (4 * per_shard * TOKENS))
    spec = StoreSpec(
        (SiteSpec(SITE, TOKENS, planted.shape[1], (16, 16)),),
        n_shards * SAMPLES_A_SHARD,
        tuple(range(STEPS)),
        tuple(np.linspace(-4.0, 4.0, STEPS)),
        ("cond",),
        SAMPLES_A_SHARD,
    )
    samples = np.arange(spec.n_samples)
    table = pa.table({"sample": samples, "prompt": ["planted"] * len(samples), "seed": samples})
    with StoreWriter.create(folder, spec, table, fingerprint={}, plan={}) as writer:
        for shard in range(n_shards):
            chosen = np.arange(shard * per_shard, (shard + 1) * per_shard) % len(maps)
            writer.write_shard(shard, {SITE: maps[chosen].reshape(SAMPLES_A_SHARD, STEPS, 1, TOKENS, -1)})
    return ActivationStore.open(folder)


def loader_speed(store: ActivationStore, config: TrainConfig) -> float:
    """Rows a second that arrive when nothing else is done, in the steady state."""
    per_pool = config.pool_rows // config.batch_size
    with open_rows(store, config, 0).tensors() as batches:
        for _ in range(per_pool):
            next(batches)
        started = time.perf_counter()
        for _ in range(_POOLS * per_pool + 1):  # the last one is of a pool that has just been read
            next(batches)
        return _POOLS * config.pool_rows / (time.perf_counter() - started)


def step_speed(shape: Shape, planted: Tensor, steps: int) -> float:
    """Rows a second that the step of `benchmarks.sae_step` uses up when all are in memory."""
    batches = planted.split(shape.batch)
    step = ours(shape, batches[0], "fp32")
    step(batches[0])
    started = time.perf_counter()
    for number in range(steps):
        step(batches[number % len(batches)])
    return steps * shape.batch / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
