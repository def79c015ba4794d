"""``denoscope train``: train sparse autoencoders on sites of a store."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.commands._options import Commands, add_command, positive, steps_range

if TYPE_CHECKING:
    from activations_store import ActivationStore
    from sae import TrainConfig

_EXAMPLE = """
denoscope train runs/x --site up_blocks.1 --expansion 8 --k 16 --out runs/x/sae
denoscope train runs/x --site mid_block --architecture batchtopk --k 32
denoscope train runs/x --site mid_block --architecture matryoshka --d-sae 512 --prefixes 64 256 512
denoscope train runs/x --site mid_block --architecture jumprelu --k 32 --sparsity 1
denoscope train runs/x --site mid_block --architecture relu --sparsity 0.5
denoscope train runs/x --site mid_block --input whitened
denoscope train runs/x --site mid_block --time film
denoscope train runs/x --site mid_block --time per_step --step-groups 0-4 5-9
denoscope train runs/x --site mid_block --across-sites up_blocks.0 --across-steps
denoscope train runs/x --site mid_block --k 8 16 32 --d-sae 256 1024 --seed 0 1
denoscope train runs/x --site mid_block up_blocks.1 --steps 0-4 5-9
denoscope train runs/x --site mid_block --processes 2
denoscope train runs/x --site mid_block --processes 4 --divide features --d-sae 65536
"""
ARCHITECTURES = ("topk", "batchtopk", "matryoshka", "jumprelu", "relu")
INPUTS = ("raw", "centred", "unit", "whitened")
TIMES = ("shared", "per_step", "film", "residual")
KERNELS = ("auto", "torch", "triton")
"""As in `sae.config` and `sae.train_config`, without importing torch for a help text."""


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "train",
        run,
        summary="train sparse autoencoders on sites",
        about="Train a sparse autoencoder on the rows of a site. Writes cfg.json and sae_weights.safetensors (sae-lens "
        "loads the folder), metrics.json and train_log.jsonl. Where an option takes several values (...), every "
        "combination is trained, each to the same bits as alone; those of one site and steps share one read of the "
        "store. A run that was stopped goes on when the same command is given again.",
        example=_EXAMPLE,
        resumable=True,
    )
    parser.add_argument("store", type=Path, help="a store, or a run folder with a store in it")
    parser.add_argument(
        "--site", nargs="+", metavar="SITE", help="the site to train on (default: the store's only one)"
    )
    parser.add_argument("--out", type=Path, help="folder of the dictionary, or of several (default: RUN/sae/SITE)")
    _add_dictionary(parser.add_argument_group("the dictionary"))
    _add_training(parser.add_argument_group("training"))
    where = parser.add_argument_group(
        "where it runs",
        "On several machines, start the same command without --processes under torchrun on each: "
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nproc-per-node 2 -m apps.cli train runs/x --site mid_block",
    )
    where.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    where.add_argument("--processes", type=positive, default=1, metavar="N", help="processes on this machine")
    where.add_argument(
        "--divide",
        choices=("rows", "features"),
        default="rows",
        help="what processes divide: the rows of each batch, or the features of dictionaries too large for one "
        "(topk, batchtopk)",
    )


def _add_dictionary(group: argparse._ArgumentGroup) -> None:
    """What is trained."""
    size = group.add_mutually_exclusive_group()
    size.add_argument(
        "--expansion", type=positive, nargs="+", metavar="N", help="features as a multiple of the width (default: 8)"
    )
    size.add_argument("--d-sae", type=positive, nargs="+", metavar="N", help="number of features")
    group.add_argument(
        "--architecture",
        choices=ARCHITECTURES,
        nargs="+",
        metavar="NAME",
        help="topk: k features for every row; batchtopk: k on average; matryoshka: the same, nested; jumprelu: a "
        "learned threshold for each feature, aimed at k; relu: an L1 penalty (default: topk)",
    )
    group.add_argument(
        "--k", type=positive, nargs="+", metavar="N", help="features on for a row; relu: not used (default: 16)"
    )
    group.add_argument("--sparsity", type=float, default=1.0, help="jumprelu, relu: weight of the sparsity term")
    group.add_argument(
        "--prefixes", type=positive, nargs="+", metavar="N", help="matryoshka: sizes of the nested dictionaries"
    )
    group.add_argument(
        "--input",
        choices=INPUTS,
        default="raw",
        help="what is done to a row first: centred: less the mean; unit: and to unit length; whitened: by the site's "
        "covariance. Undone when a row is decoded",
    )
    group.add_argument(
        "--time",
        choices=TIMES,
        default="shared",
        help="how the step enters: shared: not at all; per_step: a dictionary for each step, or for each of "
        "--step-groups; film: scale and shift by noise level; residual: what the step before does not predict",
    )
    group.add_argument("--step-groups", type=steps_range, nargs="+", metavar="STEPS", help="per_step: such as 0-4 5-9")
    group.add_argument(
        "--across-sites", nargs="+", metavar="SITE", help="crosscoder: sites that share one code with --site"
    )
    group.add_argument("--across-steps", action="store_true", help="crosscoder: one code for all steps of a cell")


def _add_training(group: argparse._ArgumentGroup) -> None:
    """On which rows, and how."""
    length = group.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=float, default=2.0, help="passes over the store")
    length.add_argument("--rows", type=positive, metavar="N", help="rows to train on")
    group.add_argument(
        "--batch-size", type=positive, default=4096, metavar="N", help="rows a step, of all processes together"
    )
    group.add_argument(
        "--lr", type=float, nargs="+", metavar="RATE", help="peak learning rate (default: by the number of features)"
    )
    group.add_argument(
        "--seed", type=int, nargs="+", metavar="N", help="of initial weights; the first also of the rows (default: 0)"
    )
    group.add_argument("--steps", type=steps_range, nargs="+", help="denoising steps, such as 5-14 (default: all)")
    group.add_argument("--branches", nargs="+", choices=("uncond", "cond"), help="guidance branches (default: all)")
    group.add_argument(
        "--matmul",
        choices=("fp32", "bf16", "int8"),
        default="fp32",
        help="encoder product; bf16 and int8 choose features coarsely and compute their values exactly: faster where "
        "the processor has instructions for them (int8: most since 2019)",
    )
    group.add_argument(
        "--kernels",
        choices=KERNELS,
        default="auto",
        help="sparse products on a GPU: by PyTorch or Triton; auto: the faster in the first step, kept in run.json",
    )


def run(options: argparse.Namespace) -> None:
    """Train, showing the metrics as they develop."""
    import os

    from activations_store import ActivationStore
    from apps.dictionaries.launch import launch, started_by_launcher
    from apps.dictionaries.train_bar import training_bar
    from apps.dictionaries.train_grid import grid
    from apps.errors import InvalidOption
    from apps.measurement import read_json
    from apps.progress import Clock
    from apps.runs import find_site, run_of, store_folder
    from sae.training.job import TrainJob

    if options.processes > 1 and started_by_launcher():
        raise InvalidOption("train: --processes starts processes, and torchrun has done so. Give one of the two.")
    talks = int(os.environ.get("RANK", "0")) == 0
    store = ActivationStore.open(store_folder(options.store))
    sites = [find_site(store, name) for name in options.site or [None]]
    configs, folders = grid(store, options, sites, _common(store, options))
    job = TrainJob(str(store.path), tuple(configs), tuple(map(str, folders)), options.device, options.divide)
    clock = Clock()
    if talks:
        for config, folder in zip(configs, folders, strict=True):
            print(f"site {config.site}, {config.architecture}, k {config.k}, into {folder}")
        print(memory_line(store, configs))
    if options.processes > 1:
        launch(job, options.processes)
    else:
        with training_bar(len(configs)) as progress:
            job.run(progress)
    if not talks:
        return
    for folder in folders:
        metrics = read_json(folder / "metrics.json")
        print(metrics_line(metrics))
        print(f"{metrics['training_rows']} rows, {folder} ({clock})")
    print(f"next: denoscope features {run_of(store.path)[0].folder}")


def _common(store: ActivationStore, options: argparse.Namespace) -> dict[str, Any]:
    """Fields of `sae.TrainConfig` that are the same for all dictionaries of a command."""
    from apps.runs import find_site

    return {
        "sparsity": options.sparsity,
        "prefixes": None if options.prefixes is None else tuple(options.prefixes),
        "matmul": options.matmul,
        "kernels": options.kernels,
        "rows": options.rows,
        "epochs": None if options.rows else options.epochs,
        "batch_size": options.batch_size,
        "branches": None if options.branches is None else tuple(options.branches),
        "input": options.input,
        "time": options.time,
        "groups": None if options.step_groups is None else tuple(options.step_groups),
        "across_sites": tuple(find_site(store, name) for name in options.across_sites or ()) or None,
        "across_steps": options.across_steps,
    }


def memory_line(store: ActivationStore, configs: list[TrainConfig]) -> str:
    """What the dictionaries need beside the rows: weights, gradients and two moments of the optimiser."""
    from sae.training.prepare import sae_config, selection_of

    n_bytes = 0
    for config in configs:
        shape = sae_config(store, config, selection_of(store, config, store.committed_samples()))
        n_bytes += 2 * shape.d_in * shape.d_sae * 4
    return f"dictionaries need about {4 * n_bytes / 1e6:,.0f} MB of memory, {n_bytes / 1e6:,.0f} MB on disk"


def metrics_line(metrics: dict) -> str:
    """The metrics that one looks at first."""
    explained = metrics["explained_variance"]
    return (
        f"explained variance {explained:.3f} ({min(metrics['ev_per_step']):.3f} to "
        f"{max(metrics['ev_per_step']):.3f} over steps), L0 {metrics['l0']:.1f}, "
        f"dead {metrics['dead_fraction']:.1%}, dense {metrics['dense_fraction']:.1%}"
    )
