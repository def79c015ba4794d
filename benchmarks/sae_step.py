"""Speed of one training step beside its peers and its limits: `python -m benchmarks.sae_step --out FILE`.

Shapes (d_in, d_sae, k, batch): A (1280, 5120, 32, 4096), B (320, 10240, 32, 4096), C (1280, 20480, 32, 4096).

One thread; all contestants of a shape alive at once and stepped in random order, round after round. The figure is the
CPU time of the process, which other programs on the machine disturb far less than the wall time that stands beside
it. A ratio is taken within a round and its median and quartiles are over the rounds. `saelens_over_ours_A` and
`sparsify_over_ours_A` use the fastest of our steps here: with the encoder product in bfloat16 or int8 if the CPU has
instructions for it, else in float32; `saelens_over_ours_fp32_A` and so on use the latter everywhere.
`ours_fp32_over_gemm_A` is our step in float32 over the bare encoder product.

Parity: from the same weights, over the same rows and number of steps, our step against dense autograd; explained
variance on held-out rows.
"""

import argparse
import random
import statistics
import time
import warnings
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apps.measurement import Measurement
from benchmarks.sae_step_peers import LR, Shape, Step, contestants, dense_step
from sae import SAEConfig, TopKSAE
from sae.training.optimiser import Adam

SHAPES = {"A": Shape(1280, 5120, 32, 4096), "B": Shape(320, 10240, 32, 4096), "C": Shape(1280, 20480, 32, 4096)}
PARITY = Shape(128, 1024, 16, 1024)
_PEERS = ("sae-lens", "eai-sparsify", "dictionary-learning")
_RATIOS = {  # name -> (above, below)
    "saelens_over_ours": ("saelens", "ours"),
    "sparsify_over_ours": ("sparsify", "ours"),
    "saelens_over_ours_fp32": ("saelens", "ours_fp32"),
    "sparsify_over_ours_fp32": ("sparsify", "ours_fp32"),
    "dictionary_learning_over_ours": ("dictionary_learning", "ours"),
    "dense_over_ours": ("dense", "ours"),
    "ours_fp32_over_gemm": ("ours_fp32", "gemm"),
    "ours_fp32_over_gemm_and_gradient": ("ours_fp32", "gemm_and_gradient"),
}


def main(argv: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sae_step", description="Speed of one training step.")
    parser.add_argument("--quick", action="store_true", help="shapes A and B, two rounds, within two minutes")
    parser.add_argument("--rounds", type=int, default=9, help="rounds for A and B; C gets a third")
    parser.add_argument("--shapes", default="ABC", help="which shapes")
    parser.add_argument("--parity-steps", type=int, default=200, help="steps of the parity runs")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    config = {"rounds": options.rounds, "quick": options.quick, "threads": 1, "peers": peer_versions()}
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float | None] = {}
    ratios |= parity(100 if options.quick else options.parity_steps)
    for key, value in ratios.items():
        print(f"{key}: {value:.5f}", flush=True)
    for name in "AB" if options.quick else options.shapes:
        rounds = 2 if options.quick else max(2, options.rounds // 3 if name == "C" else options.rounds)
        times = measure(SHAPES[name], rounds)
        rows += [row(name, who, seen) for who, seen in times.items()]
        found = ratios_of(times)
        rows += [{"shape": name, "ratio": key, "rounds": rounds} | value for key, value in found.items()]
        ratios |= {f"{key}_{name}": value["median"] for key, value in found.items()}
        for key, value in found.items():
            print(f"{key}_{name}: {value['median']:.2f} ({value['low']:.2f} to {value['high']:.2f})", flush=True)
        Measurement("sae_step", rows, ratios, config=config).write(options.out)  # each shape takes minutes


def measure(shape: Shape, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Contestant -> (CPU, wall) seconds of a step, one for each round; the first step of each is not counted."""
    batches = planted_rows(shape, 2).split(shape.batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the peers
        steps: dict[str, Step] = {who: make(shape, batches[0]) for who, make in contestants().items()}
        seen: dict[str, list[tuple[float, float]]] = defaultdict(list)
        order = random.Random(0)
        for number in range(rounds + 1):
            for who in order.sample(sorted(steps), len(steps)):
                cpu, wall = time.process_time(), time.perf_counter()
                steps[who](batches[number % 2])
                if number:
                    seen[who].append((time.process_time() - cpu, time.perf_counter() - wall))
    return dict(sorted(seen.items()))


def row(shape: str, who: str, seen: list[tuple[float, float]]) -> dict[str, Any]:
    """Seconds of a step with quartiles."""
    cpu = quartiles([c for c, _ in seen])
    wall = statistics.median(w for _, w in seen)
    print(f"{shape} {who:<20} {1000 * cpu['median']:9.1f} ms CPU  {1000 * wall:9.1f} ms wall", flush=True)
    return {"shape": shape, "who": who, "unit": "s CPU", "wall_median": wall} | cpu


def ratios_of(times: dict[str, list[tuple[float, float]]]) -> dict[str, dict[str, float]]:
    """The named ratios of CPU time, with quartiles over rounds."""
    cpu = {who: [c for c, _ in seen] for who, seen in times.items()}
    own = [who for who in cpu if who.startswith("ours_")]
    cpu["ours"] = cpu[min(own, key=lambda who: statistics.median(cpu[who]))]
    return {
        name: quartiles([a / b for a, b in zip(cpu[above], cpu[below], strict=True)])
        for name, (above, below) in _RATIOS.items()
        if above in cpu
    }


def quartiles(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"low": low, "median": median, "high": high}


def planted_rows(shape: Shape, n_batches: int, seed: int = 0) -> Tensor:
    """Sparse combinations of a planted dictionary, frequencies by a power law, with a mean and some noise."""
    g = torch.Generator().manual_seed(seed)
    n = n_batches * shape.batch
    features = torch.randn(shape.d_sae, shape.d_in, generator=g) / shape.d_in**0.5
    mean = torch.randn(shape.d_in, generator=g) * 0.2
    weights = 1 / torch.arange(1, shape.d_sae + 1) ** 0.7
    x = mean + 0.02 * torch.randn(n, shape.d_in, generator=g)
    for start in range(0, n, 512):
        part = x[start : start + 512]
        chosen = torch.multinomial(weights.expand(len(part), -1), shape.k, generator=g)
        strength = torch.rand(len(part), shape.k, generator=g) + 0.5
        part += torch.nn.functional.embedding_bag(chosen, features, mode="sum", per_sample_weights=strength)
    return x


def parity(n_steps: int) -> dict[str, float]:
    """Explained variance on held-out rows after equal training, and its difference from dense autograd."""
    pool = planted_rows(PARITY, 65, seed=1)
    batches = pool.split(PARITY.batch)
    held_out = batches[-1]

    def fresh(matmul: str) -> TopKSAE:
        sae = TopKSAE(SAEConfig(PARITY.d_in, PARITY.d_sae, PARITY.k, aux_alpha=0.0, matmul=matmul), seed=0)
        sae.initialise(batches[0])
        return sae

    reference = fresh("fp32")
    step = dense_step(reference)
    for i in range(n_steps):
        step(batches[i % 64])
    facts = {"ev_dense": explained_variance(reference, held_out)}
    for matmul in ("fp32", "bf16", "int8"):
        sae = fresh(matmul)
        adam = Adam(sae.trained_tensors(), betas=(0.9, 0.999), eps=6.25e-10, clip_norm=1.0)
        for i in range(n_steps):
            adam.update(sae.loss(batches[i % 64])[1], LR)
            sae.after_update()
        facts[f"ev_{matmul}"] = explained_variance(sae, held_out)
        facts[f"ev_{matmul}_minus_dense"] = facts[f"ev_{matmul}"] - facts["ev_dense"]
    return facts


def explained_variance(sae: TopKSAE, x: Tensor) -> float:
    """1 - sum of squared errors / sum of squares about the mean."""
    with torch.no_grad():
        error = x - sae.decode_sparse(sae.encode_sparse(x))
    return 1 - float(error.square().sum() / (x - x.mean(0)).square().sum())


def peer_versions() -> dict[str, str]:
    """Versions of the installed peers."""
    found = {}
    for name in _PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
