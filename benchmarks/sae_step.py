"""Speed of one training step beside its peers and its limits: `python -m benchmarks.sae_step --out FILE`.

Shapes (d_in, d_sae, k, batch): A (1280, 5120, 32, 4096), B (320, 10240, 32, 4096), C (1280, 20480, 32, 4096).

All contestants of a shape are alive at once and stepped in random order, round after round. On the CPU they have one
thread, and the figure is the CPU time of the process, which other programs on the machine disturb far less than the
wall time that stands beside it. Where there is CUDA, the same is measured there too: wall time of twenty steps in a
row, up to the last one's end, with ratios named `saelens_over_ours_cuda_A` and so on.

A ratio is taken within a round and its median and quartiles are over the rounds. `saelens_over_ours_A` and
`sparsify_over_ours_A` use the fastest of our steps here: with the encoder product in bfloat16 or int8 if the processor
has instructions for it, else in float32, and on CUDA with the faster sparse products; `saelens_over_ours_fp32_A` and
so on use float32 everywhere. `ours_fp32_over_gemm_A` is our step in float32 over the bare encoder product.

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
from benchmarks.sae_step_peers import LR, Shape, Step, contestants, dense_step, variants
from sae import SAEConfig, TopKSAE
from sae.numerics.kernels import using
from sae.training.optimiser import Adam

SHAPES = {"A": Shape(1280, 5120, 32, 4096), "B": Shape(320, 10240, 32, 4096), "C": Shape(1280, 20480, 32, 4096)}
PARITY = Shape(128, 1024, 16, 1024)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
_STEPS = {"cpu": 1, "cuda": 20}  # timed together
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
    parser.add_argument("--device", choices=("cpu", "cuda"), help="one of the two (default: both, where CUDA is)")
    parser.add_argument("--parity-steps", type=int, default=200, help="steps of the parity runs")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    config = {"rounds": options.rounds, "quick": options.quick, "threads": 1, "peers": peer_versions()}
    devices = [device for device in (CPU, CUDA) if options.device in (None, device.type)]
    if options.device is None and not torch.cuda.is_available():
        devices = [CPU]
    if CUDA in devices:
        config["gpu"] = torch.cuda.get_device_name()
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float | None] = {}
    for device in devices:
        found = parity(100 if options.quick else options.parity_steps, device)
        ratios |= {key + _suffix(device): value for key, value in found.items()}
    for key, value in ratios.items():
        print(f"{key}: {value:.5f}", flush=True)
    for device in devices:
        for name in "AB" if options.quick else options.shapes:
            rounds = 2 if options.quick else max(2, options.rounds // 3 if name == "C" else options.rounds)
            times = measure(SHAPES[name], rounds, device)
            rows += [row(name, who, seen, device) for who, seen in times.items()]
            found = {f"{key}{_suffix(device)}": value for key, value in ratios_of(times, device).items()}
            rows += [{"shape": name, "ratio": key, "rounds": rounds} | value for key, value in found.items()]
            ratios |= {f"{key}_{name}": value["median"] for key, value in found.items()}
            for key, value in found.items():
                print(f"{key}_{name}: {value['median']:.2f} ({value['low']:.2f} to {value['high']:.2f})", flush=True)
            Measurement("sae_step", rows, ratios, config=config).write(options.out)  # each shape takes minutes


def _suffix(device: torch.device) -> str:
    return "_cuda" if device == CUDA else ""


def measure(shape: Shape, rounds: int, device: torch.device) -> dict[str, list[tuple[float, float]]]:
    """Contestant -> (CPU, wall) seconds of a step, one for each round; the first step of each is not counted."""
    batches = planted_rows(shape, 2).to(device).split(shape.batch)
    n_steps = _STEPS[device.type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the peers
        steps: dict[str, Step] = {who: make(shape, batches[0]) for who, make in contestants(device).items()}
        seen: dict[str, list[tuple[float, float]]] = defaultdict(list)
        order = random.Random(0)
        for number in range(rounds + 1):
            for who in order.sample(sorted(steps), len(steps)):
                cpu, wall = time.process_time(), time.perf_counter()
                for _ in range(n_steps):
                    steps[who](batches[number % 2])
                if device == CUDA:
                    torch.cuda.synchronize()
                if number:
                    took = time.process_time() - cpu, time.perf_counter() - wall
                    seen[who].append((took[0] / n_steps, took[1] / n_steps))
    return dict(sorted(seen.items()))


def row(shape: str, who: str, seen: list[tuple[float, float]], device: torch.device) -> dict[str, Any]:
    """Seconds of a step with quartiles."""
    figure = quartiles(figures(seen, device))
    wall = statistics.median(w for _, w in seen)
    unit = "s wall" if device == CUDA else "s CPU"
    print(f"{shape} {who:<20} {1000 * figure['median']:9.2f} m{unit}  {1000 * wall:9.2f} ms wall", flush=True)
    return {"shape": shape, "who": who, "device": device.type, "unit": unit, "wall_median": wall} | figure


def figures(seen: list[tuple[float, float]], device: torch.device) -> list[float]:
    """The seconds that count on a device."""
    return [wall if device == CUDA else cpu for cpu, wall in seen]


def ratios_of(times: dict[str, list[tuple[float, float]]], device: torch.device) -> dict[str, dict[str, float]]:
    """The named ratios of time, with quartiles over rounds."""
    seconds = {who: figures(seen, device) for who, seen in times.items()}
    for name in ("ours_fp32", "ours"):  # the fastest of its kind
        own = [who for who in times if who.startswith(name)]
        seconds[name] = seconds[min(own, key=lambda who: statistics.median(seconds[who]))]
    return {
        name: quartiles([a / b for a, b in zip(seconds[above], seconds[below], strict=True)])
        for name, (above, below) in _RATIOS.items()
        if above in seconds
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


def parity(n_steps: int, device: torch.device) -> dict[str, float]:
    """Explained variance on held-out rows after equal training, and its difference from dense autograd."""
    pool = planted_rows(PARITY, 65, seed=1).to(device)
    batches = pool.split(PARITY.batch)
    held_out = batches[-1]

    def fresh(matmul: str) -> TopKSAE:
        config = SAEConfig(PARITY.d_in, PARITY.d_sae, PARITY.k, aux_alpha=0.0, matmul=matmul)
        sae = TopKSAE(config, seed=0).to(device)
        sae.initialise(batches[0])
        return sae

    reference = fresh("fp32")
    step = dense_step(reference)
    for i in range(n_steps):
        step(batches[i % 64])
    facts = {"ev_dense": explained_variance(reference, held_out)}
    # On a CPU every product is compared, also one that is slow there.
    own = variants(device) if device == CUDA else {f"ours_{m}": (m, "torch") for m in ("fp32", "bf16", "int8")}
    for name, (matmul, kernels) in own.items():
        sae = fresh(matmul)
        adam = Adam(sae.trained_tensors(), betas=(0.9, 0.999), eps=6.25e-10, clip_norm=1.0)
        for i in range(n_steps):
            with using(kernels):
                gradients = sae.loss(batches[i % 64])[1]
            adam.update(gradients, LR)
            sae.after_update()
        key = name.replace("ours_", "ev_")
        facts[key] = explained_variance(sae, held_out)
        facts[f"{key}_minus_dense"] = facts[key] - facts["ev_dense"]
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
