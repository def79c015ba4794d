"""What the leading singular vectors of a denoiser cost: `python -m benchmarks.jacobian --out FILE`.

The five leading singular triplets of two Jacobians of the embedded model, at one point of a generation: from the
bottleneck to the predicted noise (`h_to_eps`), and from the sampler's state to the posterior mean (`x_to_x0`). Ways:

    block+5      `top_singular` with five further vectors, the default
    block        the same without further vectors, as published with the pullback metric (Park et al. 2023)
    sequential   one vector after the other by power iteration with deflation, as published for h (Haas et al. 2024)
    dense        the whole matrix by backward passes and its decomposition: the exact answer

All but the last stop when the relative change of every singular value is below 1e-4, or after 50 iterations (of each
vector). The ways take turns. Times are CPU seconds of the process, tracing the model included; wall seconds stand
beside them. `angle` is the sine of the largest principal angle between the found and the exact right subspace.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from apps.measurement import Measurement
from probe.directions import Jacobian, jacobian, principal_angles, top_singular, trajectory
from probe.directions.subspace import dense
from probe.model import PipelineEps, load_pipeline

K, TOL, MOST = 5, 1e-4, 50
MAPS = {"h_to_eps": ("mid_block", "sampler:eps"), "x_to_x0": ("sampler:x_t", "sampler:x0")}
BATCH = {"block+5": 10, "block": 5, "sequential": 1}
"""Directions a pass: as many as a way has, so that none is computed for nothing."""
Found = tuple[torch.Tensor, torch.Tensor, int, float | None]
"""Right vectors, singular values, products in both directions, residual."""


def main(argv: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.jacobian", description="What the leading singular vectors of a denoiser cost."
    )
    parser.add_argument("--quick", action="store_true", help="one round of the default way, without the dense answer")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the iterative ways")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(argv)
    model = PipelineEps(load_pipeline("canvas"))
    point = trajectory(model, "a red star on white background in flat style", 0, steps=10, guidance=2.0)[4]
    rows, ratios = [], {}
    for name, places in MAPS.items():
        ways = {"block+5": _block(5)} if options.quick else WAYS
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        found: dict[str, Found] = {}
        for _ in range(1 if options.quick else options.rounds):
            for way, run in ways.items():
                cpu, wall = time.process_time(), time.perf_counter()
                found[way] = run(jacobian(model, point, *places, batch=BATCH[way]))
                times[way].append((time.process_time() - cpu, time.perf_counter() - wall))
        exact = None
        if not options.quick:
            cpu, wall = time.process_time(), time.perf_counter()
            exact = _dense(jacobian(model, point, *places, batch=16))
            found["dense"] = exact
            times["dense"] = [(time.process_time() - cpu, time.perf_counter() - wall)]
        for way, (v, s, products, residual) in found.items():
            cpu_s, wall_s = (sorted(t[i] for t in times[way]) for i in range(2))
            rows.append(
                {
                    "map": name,
                    "way": way,
                    "cpu_s": median(cpu_s),
                    "cpu_s_lowest": cpu_s[0],
                    "cpu_s_highest": cpu_s[-1],
                    "wall_s": median(wall_s),
                    "products": products,
                    "residual": residual,
                    "angle": None if exact is None else float(torch.sin(principal_angles(v, exact[0])).max()),
                    "value_error": None if exact is None else float(((s - exact[1]).abs() / exact[1]).max()),
                }
            )
            if way != "block+5":
                base = median(t[0] for t in times["block+5"])
                ratios[f"{name}_{way}_cpu_over_block_5"] = rows[-1]["cpu_s"] / base
        ratios[f"{name}_cpu_s"], ratios[f"{name}_wall_s"] = (median(t[i] for t in times["block+5"]) for i in range(2))
        ratios[f"{name}_residual"] = found["block+5"][3]
    config = {
        "k": K,
        "tolerance": TOL,
        "rounds": options.rounds,
        "step": point.step,
        "log_snr": point.log_snr,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "quick": options.quick,
    }
    Measurement("jacobian", rows, ratios, config=config).write(options.out)
    for row in rows:
        print(
            f"{row['map']:<9} {row['way']:<11} {row['cpu_s']:7.2f} CPU s  {row['products']:5d} products  "
            f"residual {row['residual']}  angle {row['angle']}"
        )


def _block(oversample: int) -> Callable[[Jacobian], Found]:
    def run(op: Jacobian) -> Found:
        found = top_singular(op, K, oversample=oversample, tol=TOL, max_iter=MOST)
        return found.v, found.s, 2 * found.iterations * (K + oversample) + K, found.residual

    return run


def _sequential(op: Jacobian) -> Found:
    """Power iteration on J^T J, each vector kept orthogonal to those before it."""
    generator = torch.Generator().manual_seed(0)
    vectors, values, products = torch.empty(0, op.n_in, dtype=torch.float64), [], 0
    for _ in range(K):
        v = torch.randn(1, op.n_in, generator=generator, dtype=torch.float64)
        s = 0.0
        for _ in range(MOST):
            v = v - (v @ vectors.T) @ vectors
            v = v / v.norm()
            w = op.vjp(op.jvp(v)).double()
            products += 2
            before, s = s, float(w.norm()) ** 0.5
            v = w
            if abs(s - before) <= TOL * s:
                break
        v = v - (v @ vectors.T) @ vectors
        vectors = torch.cat([vectors, v / v.norm()])
        values.append(s)
    return vectors, torch.tensor(values, dtype=torch.float64), products, None


def _dense(op: Jacobian) -> Found:
    _, s, vt = np.linalg.svd(dense(op).numpy(), full_matrices=False)
    return torch.from_numpy(vt[:K]), torch.from_numpy(s[:K]), op.n_out, None


WAYS: dict[str, Callable[[Jacobian], Found]] = {"block+5": _block(5), "block": _block(0), "sequential": _sequential}

if __name__ == "__main__":
    main()
