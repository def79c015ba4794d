"""Learning rate and k on canvas: `python -m benchmarks.sae_sweep STORE --work FOLDER --out FILE.json`.

The rule of Gao et al. 2024 (arXiv 2406.04093), 2e-4 / sqrt(d_sae / 2^14), is of dictionaries and runs far larger than
those of a small diffusion model. Here dictionaries of several widths are trained with multiples of its rate; the
measure is explained variance on held-out samples, and the share of features that never fire there. The rule's exponent
holds if the best multiple is the same for all widths, its constant if that multiple is 1; how far that depends on the
length of a run is tried at one width. High rates buy explained variance with dead features: `best_multiple_*` is the
best of all, `best_alive_multiple_*` the best with less than 1 % dead, `ev_gained_*` what that has more than the rule.

A second sweep varies k.

The store is canvas's: `denoscope collect --model canvas --sites up_blocks.1 --prompts canvas:320 --steps 10`. The
dictionaries of a group are trained from one read, by one thread. A stopped sweep goes on where it was; --quick ends
within two minutes and says nothing about the rule.
"""

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from activations_store import ActivationStore
from apps.measurement import Measurement
from sae import TrainConfig, train_many

SITE = "unet.up_blocks.1:out"
MULTIPLES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
SHORT = (1.0, 4.0, 8.0, 16.0)  # multiples where the run is costly
LR_SWEEP = (  # (d_sae, length of the run as a multiple of --rows, multiples of the rule's rate)
    (192, 1.0, MULTIPLES),
    (768, 1.0, MULTIPLES),
    (192, 0.25, SHORT),
    (192, 4.0, SHORT),
    (1536, 1.0, SHORT),
)
K = 16
K_SWEEP = (768, (4, 8, 16, 32, 64), 4.0)  # d_sae, values of k, multiple of the rule's rate
_ALIVE = 0.01  # share of dead features that is taken for none


def main(argv: list[str] | None = None) -> None:
    """Train, measure, write after each group."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sae_sweep", description="Learning rate and k.")
    parser.add_argument("store", type=Path, help="a store of canvas with the site up_blocks.1")
    parser.add_argument("--work", type=Path, required=True, help="folder for the dictionaries")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--seeds", type=int, default=1, help="dictionaries for every setting")
    parser.add_argument("--rows", type=int, default=800_000, help="rows a dictionary is trained on")
    parser.add_argument("--quick", action="store_true", help="one width, three rates, few rows")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    store = ActivationStore.open(options.store)
    lr_sweep = ((192, 0.05, MULTIPLES[:3]),) if options.quick else LR_SWEEP
    rows: list[dict[str, Any]] = []
    for seed in range(1 if options.quick else options.seeds):
        for d_sae, length, multiples in lr_sweep:
            rows += sweep(store, options, seed, length, [(d_sae, K, multiple) for multiple in multiples])
            write(options, rows)
        if not options.quick:
            d_sae, ks, multiple = K_SWEEP
            rows += sweep(store, options, seed, 1.0, [(d_sae, k, multiple) for k in ks if k != K])
            write(options, rows)


def sweep(
    store: ActivationStore,
    options: argparse.Namespace,
    seed: int,
    length: float,
    settings: list[tuple[int, int, float]],
) -> list[dict[str, Any]]:
    """Trains (d_sae, k, multiple of the rule's rate) from one read; a row of results for each."""
    configs, folders = [], []
    rows = round(length * options.rows)
    for d_sae, k, multiple in settings:
        # The same rows for all seeds, so that only initial values differ.
        row_seed = None if seed == 0 else 0
        rate = multiple * rule(d_sae)
        configs.append(
            TrainConfig(SITE, d_sae=d_sae, k=k, rows=rows, lr=rate, seed=seed, row_seed=row_seed, eval_rows=100_000)
        )
        name = f"d{d_sae}-k{k}-x{multiple:g}-seed{seed}"
        folders.append(options.work / (name if length == 1 else f"{name}-rows{rows}"))
    found = []
    results = train_many(store, configs, folders)
    for (d_sae, k, multiple), config, result in zip(settings, configs, results, strict=True):
        metrics = result.metrics
        row = {"d_sae": d_sae, "k": k, "multiple": multiple, "lr": config.lr, "seed": seed, "steps": result.n_batches}
        row |= {name: metrics[name] for name in ("explained_variance", "dead_fraction", "l0")}
        row["dead_in_training"] = metrics["dead_in_training"] / d_sae
        found.append(row)
        print(
            f"d_sae {d_sae} k {k} steps {result.n_batches} lr {config.lr:.2e} ({multiple:g} x) seed {seed}: explained "
            f"variance {row['explained_variance']:.4f}, dead {row['dead_fraction']:.1%}",
            flush=True,
        )
    return found


def rule(d_sae: int) -> float:
    """The rate of Gao et al. 2024, of which multiples are tried."""
    return 2e-4 / (d_sae / 2**14) ** 0.5


def write(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """The JSON of what is there so far."""
    config = {"site": SITE, "rows": options.rows, "seeds": options.seeds, "quick": options.quick, "threads": 1}
    Measurement("sae_sweep", rows, ratios_of(rows), config=config).write(options.out)


def ratios_of(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """The best multiples of each width and length, and what they gain; means over seeds."""
    groups: dict[tuple[int, int], dict[float, list[dict[str, Any]]]] = {}
    for row in rows:
        if row["k"] == K:
            groups.setdefault((row["d_sae"], row["steps"]), {}).setdefault(row["multiple"], []).append(row)
    ratios: dict[str, float | None] = {}
    for (d_sae, steps), by_multiple in sorted(groups.items()):
        variance = {m: fmean(r["explained_variance"] for r in same) for m, same in by_multiple.items()}
        dead = {m: fmean(r["dead_fraction"] for r in same) for m, same in by_multiple.items()}
        alive = [m for m in variance if dead[m] < _ALIVE]
        best = max(alive, key=variance.__getitem__) if alive else None
        name = f"d{d_sae}_steps{steps}"
        ratios[f"best_multiple_{name}"] = max(variance, key=variance.__getitem__)
        ratios[f"best_alive_multiple_{name}"] = best
        ratios[f"ev_gained_{name}"] = None if best is None else variance[best] - variance[1.0]
    return ratios


if __name__ == "__main__":
    main()
