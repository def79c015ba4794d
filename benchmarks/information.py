"""What a node table costs, and what its nodes are worth: `python -m benchmarks.information --out FILE`.

Cost: denoiser evaluations of `measure` on the embedded model, in CPU seconds each, relative to the bare network called
on batches of the same size. The rest is noise, squared errors of every column and squared differences of every pair.
`table` has 9 columns (the caption, two words and their nulls), `pair` has two; `store` is `collect_table`, to disk.

Error: a mixture of three Gaussians in the plane, whose label has 0.99232 nats of information, at 4 to 256 noise levels
an image: root mean squared error of the mean over 64 images, over seeds, both forms, and what a fixed window loses. The
part that the choice of the images alone has (infinitely many levels) is in it.
"""

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from apps.measurement import Measurement
from probe.canvas import partial_caption, render_batch
from probe.capture.noising import encode
from probe.information import Column, Nodes, caption_columns, collect_table, information, measure
from probe.model import PipelineEps, load_pipeline
from probe.model.analytic import GaussianMixture

BATCH, IMAGES, NODES = 64, 8, 8
EXACT = 0.99232  # nats; see tests/test_information_oracles.py
IMAGES_OF_ERROR = 64


def main(argv: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.information", description="What a node table costs, and what its nodes are worth."
    )
    parser.add_argument("--quick", action="store_true", help="one round, few seeds")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of every way")
    parser.add_argument("--seeds", type=int, default=16, help="repetitions of the error")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(argv)
    rounds, seeds = (1, 4) if options.quick else (options.rounds, options.seeds)
    rows, ratios = cost_rows(rounds)
    errors = error_rows(seeds)
    for row in errors:
        ratios[f"rmse_{row['form']}_{row['nodes']}"] = row["rmse"]
    config = {"rounds": rounds, "seeds": seeds, "batch": BATCH, "images": IMAGES, "nodes": NODES}
    config |= {"threads": torch.get_num_threads(), "load": os.getloadavg()[0], "quick": options.quick}
    Measurement("information", [*rows, *errors], ratios, config=config).write(options.out)
    for row in rows:
        print(f"{row['way']:<8} {1e3 * row['cpu_s']:8.3f} CPU ms an evaluation, {row['wall_per_s']:.0f} a second")
    for row in errors:
        print(f"{row['form']:<11} {row['nodes']:4d} levels  RMSE {row['rmse']:.4f}")
    print({k: v for k, v in ratios.items() if k.startswith("speed")})


def cost_rows(rounds: int) -> tuple[list[dict], dict[str, float | None]]:
    """CPU and wall seconds an evaluation of every way, taking turns."""
    model = PipelineEps(load_pipeline("canvas"))
    batch = render_batch(range(IMAGES), seed=0)
    x = encode(model.pipe, batch.images, model.sample_shape)
    words = {
        role: [getattr(scene, role) for scene in batch.scenes] for role in ("object", "colour", "style", "background")
    }
    columns = caption_columns(batch.captions, words, pairs=[], say=partial_caption, restate=True)[:9]
    nodes = Nodes.logistic(NODES, 1.0, 1.5, model=model)
    ways: dict[str, Callable[[], int]] = {
        "bare": lambda: _bare(model, IMAGES * NODES * len(columns)),
        "table": lambda: measure(model, x, columns, nodes, batch=BATCH).error[..., 0, :].size,
        "pair": lambda: measure(model, x, columns[:2], nodes, batch=BATCH).error[..., 0, :].size,
        "store": lambda: _stored(model, x, columns, nodes),
    }
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    _bare(model, BATCH)
    for _ in range(rounds):
        for way, run in ways.items():
            cpu, wall = time.process_time(), time.perf_counter()
            n = run()
            times[way].append(((time.process_time() - cpu) / n, (time.perf_counter() - wall) / n))
    rows = []
    for way, found in times.items():
        cpu_s, wall_s = (sorted(t[i] for t in found) for i in range(2))
        row = {"part": "cost", "way": way, "cpu_s": median(cpu_s), "cpu_s_lowest": cpu_s[0], "cpu_s_highest": cpu_s[-1]}
        rows.append(row | {"wall_per_s": 1.0 / median(wall_s)})
    bare = rows[0]["cpu_s"]
    return rows, {f"speed_{row['way']}": bare / row["cpu_s"] for row in rows[1:]}


@torch.no_grad()
def _bare(model: PipelineEps, n: int) -> int:
    """The network itself on prepared batches."""
    unet = model.pipe.unet
    z = torch.randn(BATCH, *model.sample_shape)
    t = torch.linspace(0.0, 999.0, BATCH)
    states = torch.randn(BATCH, model.pipe.tokenizer.model_max_length, unet.config.cross_attention_dim)
    done = 0
    while done < n:
        unet(z, t, encoder_hidden_states=states)
        done += BATCH
    return done


def _stored(model: PipelineEps, x: torch.Tensor, columns: list[Column], nodes: Nodes) -> int:
    with tempfile.TemporaryDirectory() as folder:
        collect_table(Path(folder) / "table", model, x, columns, nodes, batch=BATCH)
    return len(x) * nodes.n * len(columns)


def error_rows(seeds: int) -> list[dict]:
    """Root mean squared error of both forms by number of levels."""
    angle = torch.arange(3, dtype=torch.float64) * 2 * math.pi / 3
    means = 1.51834387 * torch.stack([angle.cos(), angle.sin()], 1)
    variances = 0.92157367 * torch.tensor([[0.3, 0.8], [0.6, 0.4], [0.5, 0.5]], dtype=torch.float64)
    model = GaussianMixture(means, torch.diag_embed(variances))
    rows = []
    for n in (4, 16, 64, 256):
        off: dict[str, list[float]] = {"standard": [], "orthogonal": []}
        for seed in range(seeds):
            x, labels = model.sample(IMAGES_OF_ERROR, torch.Generator().manual_seed(seed))
            columns = [Column("empty"), Column("label", labels.tolist())]
            table = measure(model, x, columns, Nodes.logistic(n, 0.0, 1.0, seed=seed), seed=seed, batch=4096)
            for form, errors in off.items():
                errors.append(information(table, "label", form=form).mean - EXACT)  # type: ignore[arg-type]
        rows += [
            {"part": "error", "form": form, "nodes": n, "rmse": float(np.sqrt(np.mean(np.square(e)))), "n": seeds}
            for form, e in off.items()
        ]
    return rows


if __name__ == "__main__":
    main()
