"""``denoscope train``: train a sparse autoencoder on one site of a store."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from apps.commands._options import Commands, add_command, positive, steps_range, store_folder

if TYPE_CHECKING:
    from activations_store import ActivationStore

_EXAMPLE = """
denoscope train runs/x/store --site up_blocks.1 --expansion 8 --k 16 --out runs/x/sae
denoscope train runs/x --site mid_block --expansion 16 --k 32 --epochs 3
denoscope train runs/x --site mid_block --architecture batchtopk --k 32 --out runs/x/batchtopk
denoscope train runs/x --site mid_block --architecture matryoshka --d-sae 512 --prefixes 64 256 512
denoscope train runs/x --site mid_block --architecture jumprelu --k 32 --sparsity 1
denoscope train runs/x --site mid_block --architecture relu --sparsity 0.5
"""
ARCHITECTURES = ("topk", "batchtopk", "matryoshka", "jumprelu", "relu")
"""As `sae.config.ARCHITECTURES`, without importing torch for a help text."""


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "train",
        run,
        summary="train a sparse autoencoder on a site",
        about="Train a sparse autoencoder on the rows of one site, over all steps. Writes cfg.json and "
        "sae_weights.safetensors (sae-lens loads the folder), metrics.json and train_log.jsonl.",
        example=_EXAMPLE,
        resumable=True,
    )
    parser.add_argument("store", type=Path, help="a store, or a run folder with a store in it")
    parser.add_argument("--site", help="the site to train on (default: the store's only one)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--expansion", type=positive, default=8, help="features as a multiple of the site's width")
    size.add_argument("--d-sae", type=positive, help="number of features")
    parser.add_argument(
        "--architecture",
        choices=ARCHITECTURES,
        default="topk",
        help="topk: k features for every row; batchtopk: k on average; matryoshka: the same, nested; "
        "jumprelu: a learned threshold for each feature, aimed at k; relu: an L1 penalty",
    )
    parser.add_argument("--k", type=positive, default=16, help="features that are on for a row (relu: not used)")
    parser.add_argument("--sparsity", type=float, default=1.0, help="jumprelu, relu: weight of the sparsity term")
    parser.add_argument(
        "--prefixes", type=positive, nargs="+", help="matryoshka: sizes of the nested dictionaries, the last d_sae"
    )
    parser.add_argument(
        "--matmul",
        choices=("fp32", "bf16"),
        default="fp32",
        help="encoder product; bf16 chooses features in bfloat16 and computes their values exactly: faster where the "
        "processor has instructions for it",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=float, default=2.0, help="passes over the store")
    length.add_argument("--rows", type=positive, help="rows to train on")
    parser.add_argument("--batch-size", type=positive, default=4096, help="rows a step")
    parser.add_argument("--lr", type=float, help="learning rate (default: 2e-4 / sqrt(d_sae / 2^14))")
    parser.add_argument("--seed", type=int, default=0, help="of weights, held-out samples and order")
    parser.add_argument("--steps", type=steps_range, help="denoising steps to use, such as 5-14 (default: all)")
    parser.add_argument(
        "--branches", nargs="+", choices=("uncond", "cond"), help="guidance branches to use (default: all)"
    )
    parser.add_argument("--device", default="cpu", help="where it is trained")
    parser.add_argument("--out", type=Path, help="folder of the dictionary (default: RUN/sae/SITE)")


def run(options: argparse.Namespace) -> None:
    """Train, showing the metrics as they develop."""
    from activations_store import ActivationStore
    from apps.progress import Clock
    from apps.runs import run_of, site_name
    from sae import TrainConfig, train

    store = ActivationStore.open(store_folder(options.store))
    site = find_site(store, options.site)
    config = TrainConfig(
        site=site,
        d_sae=options.d_sae,
        expansion=None if options.d_sae else options.expansion,
        k=options.k,
        architecture=options.architecture,
        sparsity=options.sparsity,
        prefixes=None if options.prefixes is None else tuple(options.prefixes),
        matmul=options.matmul,
        rows=options.rows,
        epochs=None if options.rows else options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        seed=options.seed,
        steps=options.steps,
        branches=None if options.branches is None else tuple(options.branches),
    )
    owner, _ = run_of(store.path)
    out = options.out or owner.new("sae", site_name(site))
    print(f"site {site}, {config.architecture}, k {config.k}, into {out}")
    clock = Clock()
    with training_bar() as progress:
        result = train(store, config, out, progress=progress, device=options.device)
    print(metrics_line(result.metrics))
    print(f"{result.rows} rows in {result.n_batches} steps, {result.folder} ({clock})")
    print(f"next: denoscope features {owner.folder}")


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


def training_bar():
    """A progress bar that shows explained variance, L0 and dead features."""
    from contextlib import contextmanager

    from apps.progress import bar

    @contextmanager
    def show():
        with bar("train", "step") as progress:

            def update(report):
                progress(report.batch, report.n_batches)

            yield update

    return show()


def metrics_line(metrics: dict) -> str:
    """The metrics that one looks at first."""
    explained = metrics["explained_variance"]
    return (
        f"explained variance {explained:.3f} ({min(metrics['ev_per_step']):.3f} to "
        f"{max(metrics['ev_per_step']):.3f} over "
        f"steps), L0 {metrics['l0']:.1f}, dead {metrics['dead_fraction']:.1%}, dense {metrics['dense_fraction']:.1%}"
    )
