"""``denoscope train``: train sparse autoencoders on sites of a store."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.commands._options import Commands, add_command, positive, steps_range, store_folder

if TYPE_CHECKING:
    from activations_store import ActivationStore
    from sae import TrainConfig

_EXAMPLE = """
denoscope train runs/x --site up_blocks.1 --expansion 8 --k 16 --out runs/x/sae
denoscope train runs/x --site mid_block --architecture batchtopk --k 32
denoscope train runs/x --site mid_block --architecture matryoshka --d-sae 512 --prefixes 64 256 512
denoscope train runs/x --site mid_block --architecture jumprelu --k 32 --sparsity 1
denoscope train runs/x --site mid_block --architecture relu --sparsity 0.5

several dictionaries, each with the same bits as alone; those of one site and steps share one read of the store:
denoscope train runs/x --site mid_block --k 8 16 32 --d-sae 256 1024 --seed 0 1
denoscope train runs/x --site mid_block up_blocks.1 --steps 0-4 5-9

several processes; a stopped run goes on when the same command is given again:
denoscope train runs/x --site mid_block --processes 2
denoscope train runs/x --site mid_block --processes 4 --divide features --d-sae 65536
TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nproc-per-node 2 -m apps.cli train runs/x --site mid_block
"""
ARCHITECTURES = ("topk", "batchtopk", "matryoshka", "jumprelu", "relu")
"""As `sae.config.ARCHITECTURES`, without importing torch for a help text."""


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "train",
        run,
        summary="train sparse autoencoders on sites",
        about="Train a sparse autoencoder on the rows of a site. Writes cfg.json and sae_weights.safetensors (sae-lens "
        "loads the folder), metrics.json and train_log.jsonl. Where an option takes several values, every combination "
        "is trained.",
        example=_EXAMPLE,
        resumable=True,
    )
    parser.add_argument("store", type=Path, help="a store, or a run folder with a store in it")
    parser.add_argument("--site", nargs="+", help="the site to train on (default: the store's only one)")
    parser.add_argument("--out", type=Path, help="folder of the dictionary, or of several (default: RUN/sae/SITE)")

    what = parser.add_argument_group("the dictionary")
    size = what.add_mutually_exclusive_group()
    size.add_argument(
        "--expansion", type=positive, nargs="+", default=[8], help="features as a multiple of the site's width"
    )
    size.add_argument("--d-sae", type=positive, nargs="+", help="number of features")
    what.add_argument(
        "--architecture",
        choices=ARCHITECTURES,
        nargs="+",
        default=["topk"],
        help="topk: k features for every row; batchtopk: k on average; matryoshka: the same, nested; "
        "jumprelu: a learned threshold for each feature, aimed at k; relu: an L1 penalty",
    )
    what.add_argument(
        "--k", type=positive, nargs="+", default=[16], help="features that are on for a row (relu: not used)"
    )
    what.add_argument("--sparsity", type=float, default=1.0, help="jumprelu, relu: weight of the sparsity term")
    what.add_argument(
        "--prefixes", type=positive, nargs="+", help="matryoshka: sizes of the nested dictionaries, the last d_sae"
    )

    how = parser.add_argument_group("training")
    length = how.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=float, default=2.0, help="passes over the store")
    length.add_argument("--rows", type=positive, help="rows to train on")
    how.add_argument("--batch-size", type=positive, default=4096, help="rows a step, of all processes together")
    how.add_argument("--lr", type=float, nargs="+", help="learning rate (default: 2e-4 / sqrt(d_sae / 2^14))")
    how.add_argument("--seed", type=int, nargs="+", default=[0], help="of initial weights; the first also of the rows")
    how.add_argument("--steps", type=steps_range, nargs="+", help="denoising steps to use, such as 5-14 (default: all)")
    how.add_argument(
        "--branches", nargs="+", choices=("uncond", "cond"), help="guidance branches to use (default: all)"
    )
    how.add_argument(
        "--matmul",
        choices=("fp32", "bf16", "int8"),
        default="fp32",
        help="encoder product; bf16 and int8 choose features coarsely and compute their values exactly: faster where "
        "the processor has instructions for them (int8: most since 2019)",
    )

    where = parser.add_argument_group("where it runs")
    where.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    where.add_argument("--processes", type=positive, default=1, help="processes on this machine")
    where.add_argument(
        "--divide",
        choices=("rows", "features"),
        default="rows",
        help="what processes divide: the rows of each batch, or the features of dictionaries too large for one "
        "(topk, batchtopk)",
    )


def run(options: argparse.Namespace) -> None:
    """Train, showing the metrics as they develop."""
    import os

    from activations_store import ActivationStore
    from apps.errors import InvalidOption
    from apps.launch import launch, started_by_launcher
    from apps.measurement import read_json
    from apps.progress import Clock
    from apps.runs import run_of
    from apps.train_bar import training_bar
    from apps.train_grid import grid
    from sae.job import TrainJob

    if options.processes > 1 and started_by_launcher():
        raise InvalidOption("train: --processes starts processes, and torchrun has done so. Give one of the two.")
    talks = int(os.environ.get("RANK", "0")) == 0
    store = ActivationStore.open(store_folder(options.store))
    sites = [find_site(store, name) for name in options.site or [None]]
    configs, folders = grid(store, options, sites, _common(options))
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


def _common(options: argparse.Namespace) -> dict[str, Any]:
    """Fields of `sae.TrainConfig` that are the same for all dictionaries of a command."""
    return {
        "sparsity": options.sparsity,
        "prefixes": None if options.prefixes is None else tuple(options.prefixes),
        "matmul": options.matmul,
        "rows": options.rows,
        "epochs": None if options.rows else options.epochs,
        "batch_size": options.batch_size,
        "branches": None if options.branches is None else tuple(options.branches),
    }


def memory_line(store: ActivationStore, configs: list[TrainConfig]) -> str:
    """What the dictionaries need beside the rows: weights, gradients and two moments of the optimiser."""
    n_bytes = 0
    for config in configs:
        d_in = store.site(config.site).spec.channels
        n_bytes += 2 * d_in * (config.d_sae or d_in * (config.expansion or 1)) * 4
    return f"dictionaries need about {4 * n_bytes / 1e6:,.0f} MB of memory, {n_bytes / 1e6:,.0f} MB on disk"


def find_site(store: ActivationStore, name: str | None) -> str:
    """The store's name of a site as people type it (``up_blocks.1`` for ``unet.up_blocks.1:out``).

    Raises:
        activations_store.errors.UnknownSite: the store has no such site, or several and none was named.
    """
    from activations_store.errors import UnknownSite

    known = ", ".join(store.sites)
    if name is None:
        if len(store.sites) == 1:
            return store.sites[0]
        raise UnknownSite(f"train: {store.path} has {len(store.sites)} sites; choose one with --site: {known}.")
    wanted = name if ":" in name else f"{name}:out"
    matches = [site for site in store.sites if site == wanted or site.partition(".")[2] == wanted]
    if len(matches) != 1:
        raise UnknownSite(f"train: {store.path} has no site {name!r}; it has {known}.")
    return matches[0]


def metrics_line(metrics: dict) -> str:
    """The metrics that one looks at first."""
    explained = metrics["explained_variance"]
    return (
        f"explained variance {explained:.3f} ({min(metrics['ev_per_step']):.3f} to "
        f"{max(metrics['ev_per_step']):.3f} over "
        f"steps), L0 {metrics['l0']:.1f}, dead {metrics['dead_fraction']:.1%}, dense {metrics['dense_fraction']:.1%}"
    )
