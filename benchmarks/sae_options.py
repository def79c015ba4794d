"""Architectures, input maps and time options side by side: `python -m benchmarks.sae_options STORE --out FILE`.

STORE holds canvas activations, whose truth is planted, such as

    denoscope collect --sites mid_block up_blocks.0.attentions.1 --prompts canvas:400 --steps 10 --no-images --out RUN

Every variant is trained on the same rows (an equal number of rows of the site, in an order that only the seed decides),
with the same number of features and the same batch; a crosscoder's rows are longer. `per_step` comes twice: with its
features shared out over the steps, and with as many for every step. Measured on samples that no dictionary saw:

    ev, ev_step_T       explained variance about the mean, overall and of each step
    l0                  features on for a row
    dead, dead_step     share of features never on; the same at a single step, mean over steps, of the features that the
                        step's dictionary has
    auc                 for each concept, the AUC of the feature that was best on training samples; mean over concepts
    recovered           concepts with such an AUC above 0.95

of which each is the mean over seeds, with the lowest and the highest beside it. A run that is there already is not
trained again. The L0 of a ReLU dictionary is decided by its penalty, which was set for each input to bring it near k.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from activations_store import ActivationStore
from apps.measurement import Measurement, write_json
from sae import TrainConfig, load_sae, split_samples, train
from sae.architectures.crosscoder import evaluate_blocks
from sae.architectures.timed import encode_maps, members
from sae.config import ARCHITECTURES, INPUTS
from sae.data import select, stream
from sae.evaluation.metrics import VarianceSums
from sae.evaluation.recovery import recover

SITE = "unet.up_blocks.0.attentions.1:out"
OTHER = "unet.mid_block:out"  # read with SITE by a crosscoder
D_SAE, K, BATCH, ROWS = 640, 16, 1024, 400_000
LR = 4e-3  # four times the rule for this size, which is made for far longer runs
PENALTY = {"raw": 0.21, "centred": 0.21, "unit": 0.36, "whitened": 0.29}  # of relu, by hand: an L0 of the order of K
_MEASURES = ("ev", "l0", "dead", "dead_step", "auc", "recovered", "seconds")


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    name: str
    architecture: str = "topk"
    input: str = "raw"
    time: str = "shared"
    d_sae: int = D_SAE
    across_sites: tuple[str, ...] | None = None
    across_steps: bool = False

    @property
    def shown(self) -> str:
        """The time option, for people."""
        if self.across_steps:
            return "crosscoder over steps"
        if self.across_sites:
            return "crosscoder over two sites"
        return self.time if self.time != "per_step" else f"per_step, {self.d_sae} features in all"

    def config(self, seed: int, rows: int, n_steps: int) -> TrainConfig:
        """A run. A crosscoder over steps has as many values to read with fewer rows."""
        share = n_steps if self.across_steps else 1
        return TrainConfig(
            site=SITE,
            d_sae=self.d_sae,
            k=K,
            rows=rows // share,
            batch_size=max(1, BATCH // share),
            holdout=0.25,
            seed=seed,
            lr=LR,
            sparsity=PENALTY[self.input] if self.architecture == "relu" else 1.0,
            row_seed=0,  # the same samples are held out for all
            init_rows=16_384 // share,
            architecture=self.architecture,
            input=self.input,
            time=self.time,
            across_sites=self.across_sites,
            across_steps=self.across_steps,
        )


def variants(n_steps: int) -> Iterator[Variant]:
    """All of them."""
    for architecture in ARCHITECTURES:
        for kind in INPUTS:
            yield Variant(f"{architecture}-{kind}", architecture, kind)
    yield Variant("per-step", time="per_step")
    yield Variant("per-step-each", time="per_step", d_sae=D_SAE * n_steps)
    yield Variant("film", time="film")
    yield Variant("residual", time="residual")
    yield Variant("cross-sites", across_sites=(OTHER,))
    yield Variant("cross-steps", across_steps=True)


def main(argv: list[str] | None = None) -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sae_options", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("store", type=Path, help="a store of canvas activations with the two sites")
    parser.add_argument("--work", type=Path, required=True, help="folder for the dictionaries; a finished one is kept")
    parser.add_argument("--seeds", type=int, default=2, help="dictionaries of each variant")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows to train on")
    parser.add_argument("--quick", action="store_true", help="one seed and a tenth of the rows")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    store = ActivationStore.open(options.store)
    rows, seeds = (options.rows // 10, 1) if options.quick else (options.rows, options.seeds)
    table = []
    for seed_first in (True, False):  # all variants once, then the other seeds: a stopped run has something of each
        for variant in variants(store.spec.n_steps):
            for seed in [0] if seed_first else range(1, seeds):
                measured(store, variant, seed, rows, options.work)
    for variant in variants(store.spec.n_steps):
        found = [measured(store, variant, seed, rows, options.work) for seed in range(seeds)]
        table.append(joined(variant, found, store.spec.n_steps))
    numbers = ratios(table) | {"ev_residual_without_features": predicted(store, options.work / f"residual-{rows}-0")}
    config = {
        "site": SITE,
        "other_site": OTHER,
        "d_sae": D_SAE,
        "k": K,
        "rows": rows,
        "batch": BATCH,
        "lr": LR,
        "seeds": seeds,
    }
    config |= {"samples": store.spec.n_samples, "steps": store.spec.n_steps, "quick": options.quick}
    Measurement("sae_options", table, numbers, config=config).write(options.out)


def measured(store: ActivationStore, variant: Variant, seed: int, rows: int, work: Path) -> dict[str, Any]:
    """One dictionary: from its folder, or trained now."""
    folder = work / f"{variant.name}-{rows}-{seed}"
    path = folder / "options.json"
    if path.exists():
        return json.loads(path.read_text())
    config = variant.config(seed, rows, store.spec.n_steps)
    before = time.process_time()
    result = train(store, config, folder)
    seconds = time.process_time() - before
    metrics: dict[str, Any] = result.metrics
    found: dict[str, Any] = {
        "ev": metrics["explained_variance"],
        "l0": metrics["l0"],
        "dead": metrics["dead_fraction"],
        "seconds": seconds,
        "ev_per_step": metrics["ev_per_step"],
    }
    owned = 1 / result.sae.config.n_groups
    found["dead_step"] = float(np.mean([1 - (1 - dead) / owned for dead in metrics["dead_fraction_per_step"]]))
    if config.is_crosscoder:
        by_block = evaluate_blocks(result.sae, store, samples=split_samples(store, config)[1])
        found["ev_blocks"] = by_block
        own = [value for name, value in by_block.items() if name.partition("@")[0] == SITE]
        found["ev"] = float(np.mean(own))
        found["ev_per_step"] = own if config.across_steps else None
    found |= concepts(store, result.sae, config)
    write_json(path, found)
    print(f"{variant.name} {seed}: " + ", ".join(f"{name} {found[name]:.3f}" for name in _MEASURES), flush=True)
    return found


def concepts(store: ActivationStore, sae: Any, config: TrainConfig) -> dict[str, float]:
    """Concept recovery; features are chosen on the samples of training."""
    chosen = select(store, config.site, branches=["cond"], blocks=sae.config.blocks)
    scores = np.zeros((2, len(chosen.samples), sae.config.d_sae), dtype=np.float32)
    for block in stream(store, chosen, block_bytes=2**21):
        x = torch.from_numpy(block.x)
        code = encode_maps(sae, x, chosen.log_snr)
        for step in range(x.shape[1]):
            part = type(code)(code.values[:, step], code.indices[:, step]).to_dense(sae.config.d_sae)
            scores[0, block.samples] += part.mean(1).numpy() / x.shape[1]
            scores[1, block.samples] += part.amax(1).numpy() / x.shape[1]
    trained = np.isin(chosen.samples, split_samples(store, config)[0])
    labels = {factor: store.labels(factor)[chosen.samples] for factor in store.factors}
    summary = recover(scores, labels, trained, shuffles=0, resamples=2).summary()
    return {"auc": summary["auc"], "recovered": summary["recovered"], "concepts": summary["concepts"]}


def predicted(store: ActivationStore, folder: Path) -> float:
    """Explained variance of what a residual dictionary predicts before any feature is on, on its held-out samples."""
    sae = load_sae(folder)
    config = TrainConfig.from_json(sae.metadata["train"])
    chosen = select(store, SITE, samples=split_samples(store, config)[1])
    sums = VarianceSums(1, chosen.channels)
    for block in stream(store, chosen):
        x = torch.from_numpy(block.x)
        for step, member in enumerate(members(sae, x, chosen.log_snr)):
            with torch.no_grad():
                nothing = member.decode(torch.zeros(*x[:, step].shape[:-1], sae.config.d_sae))
            error = (x[:, step] - nothing).reshape(-1, chosen.channels)
            sums.add(0, x[:, step].reshape(-1, chosen.channels), error)
    return sums.explained_variance()


def joined(variant: Variant, seeds: list[dict[str, Any]], n_steps: int) -> dict[str, Any]:
    """A row of the table: means over seeds, lowest and highest."""
    row: dict[str, Any] = {"variant": variant.name, "architecture": variant.architecture, "input": variant.input}
    row |= {"time": variant.shown, "features": variant.d_sae, "concepts": seeds[0]["concepts"]}
    for name in _MEASURES:
        values = [seed[name] for seed in seeds]
        row |= {name: float(np.mean(values)), f"{name}_low": min(values), f"{name}_high": max(values)}
    for step in range(n_steps):  # a crosscoder over sites is measured by block, not by step
        known = [seed["ev_per_step"][step] for seed in seeds if seed["ev_per_step"] is not None]
        row[f"ev_step_{step}"] = float(np.mean(known)) if known else None
    return row


def ratios(table: list[dict[str, Any]]) -> dict[str, float | None]:
    """Differences from the plain TopK dictionary, in explained variance and mean AUC."""
    by_name = {row["variant"]: row for row in table}
    plain = by_name["topk-raw"]
    others = ("topk-centred", "topk-unit", "topk-whitened", "per-step", "per-step-each", "film", "residual")
    found: dict[str, float | None] = {"ev_shared": plain["ev"], "auc_shared": plain["auc"]}
    for name in others:
        found |= {f"{key}_{name}_minus_shared": by_name[name][key] - plain[key] for key in ("ev", "auc")}
    return found


if __name__ == "__main__":
    main()
