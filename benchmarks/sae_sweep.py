"""Learning rate and k on canvas: `python -m benchmarks.sae_sweep STORE --work FOLDER --out FILE.json`.

The rule of `TrainConfig.peak_lr`, c / sqrt(d_sae), is of Gao et al. 2024 (arXiv 2406.04093), whose dictionaries and
runs are far larger than those of a small diffusion model. Here dictionaries of several widths are trained with
multiples of the rule's rate; the measure is explained variance on held-out samples, and the share of features that
never fire there. The rule's exponent holds if the best multiple is the same for all widths, its constant if that
multiple is 1. `ev_lost_by_rule_*` is what following the rule costs against the best rate tried.

A second sweep varies k at the rule's rate.

The store is canvas's: `denoscope collect --model canvas --sites up_blocks.1 --prompts canvas:320 --steps 10`. All
dictionaries of a width are trained from one read, one thread. A stopped sweep goes on where it was; --quick ends
within two minutes and says nothing about the rule.
"""

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

import torch

from activations_store import ActivationStore
from apps.measurement import Measurement
from sae import TrainConfig, train_many

SITE = "unet.up_blocks.1:out"
MULTIPLES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
LR_SWEEP = ((192, 16), (768, 16), (1536, 16))  # (d_sae, k)
K_SWEEP = (768, (4, 8, 16, 32, 64))


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
    rows_each = 40_000 if options.quick else options.rows
    lr_sweep, multiples = (LR_SWEEP[:1], MULTIPLES[:3]) if options.quick else (LR_SWEEP, MULTIPLES)
    rows: list[dict[str, Any]] = []
    for seed in range(1 if options.quick else options.seeds):
        for d_sae, k in lr_sweep:
            rows += sweep(store, options.work, rows_each, seed, [(d_sae, k, m) for m in multiples])
            write(options, rows, rows_each)
        if not options.quick:
            rows += sweep(store, options.work, rows_each, seed, [(K_SWEEP[0], k, 1.0) for k in K_SWEEP[1]])
            write(options, rows, rows_each)


def sweep(
    store: ActivationStore, work: Path, rows: int, seed: int, settings: list[tuple[int, int, float]]
) -> list[dict[str, Any]]:
    """Trains (d_sae, k, multiple of the rule's rate) from one read; a row of results for each."""
    configs, folders = [], []
    for d_sae, k, multiple in settings:
        rule = TrainConfig(SITE, d_sae=d_sae, k=k, rows=rows).peak_lr(d_sae)
        row_seed = None if seed == 0 else 0  # the same rows for all seeds, so that only initial values differ
        configs.append(
            TrainConfig(
                SITE,
                d_sae=d_sae,
                k=k,
                rows=rows,
                lr=multiple * rule,
                seed=seed,
                row_seed=row_seed,
                eval_rows=100_000,
            )
        )
        folders.append(work / f"d{d_sae}-k{k}-x{multiple:g}-seed{seed}")
    found = []
    for (d_sae, k, multiple), config, result in zip(
        settings, configs, train_many(store, configs, folders), strict=True
    ):
        metrics = result.metrics
        row = {"d_sae": d_sae, "k": k, "multiple": multiple, "lr": config.lr, "seed": seed}
        row |= {name: metrics[name] for name in ("explained_variance", "dead_fraction", "l0")}
        row["dead_in_training"] = metrics["dead_in_training"] / d_sae
        found.append(row)
        print(
            f"d_sae {d_sae} k {k} lr {config.lr:.2e} ({multiple:g} x rule) seed {seed}: explained variance "
            f"{row['explained_variance']:.4f}, dead {row['dead_fraction']:.1%}",
            flush=True,
        )
    return found


def write(options: argparse.Namespace, rows: list[dict[str, Any]], rows_each: int) -> None:
    """The JSON of what is there so far."""
    config = {"site": SITE, "rows": rows_each, "seeds": options.seeds, "quick": options.quick, "threads": 1}
    Measurement("sae_sweep", rows, ratios_of(rows), config=config).write(options.out)


def ratios_of(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """The best multiple of each width and k, and what the rule loses against it; means over seeds."""
    means: dict[tuple[int, int], dict[float, float]] = {}
    for d_sae, k, multiple in {(r["d_sae"], r["k"], r["multiple"]) for r in rows}:
        same = [r["explained_variance"] for r in rows if (r["d_sae"], r["k"], r["multiple"]) == (d_sae, k, multiple)]
        means.setdefault((d_sae, k), {})[multiple] = statistics.fmean(same)
    ratios: dict[str, float | None] = {}
    for (d_sae, k), by_multiple in sorted(means.items()):
        if len(by_multiple) == 1:
            continue
        best = max(by_multiple, key=by_multiple.__getitem__)
        ratios[f"best_multiple_d{d_sae}_k{k}"] = best
        ratios[f"ev_lost_by_rule_d{d_sae}_k{k}"] = by_multiple[best] - by_multiple[1.0]
    found = [v for name, v in ratios.items() if name.startswith("best_multiple") and v]
    ratios["best_multiple"] = math.exp(statistics.fmean(map(math.log, found))) if found else None
    return ratios


if __name__ == "__main__":
    main()
