"""``denoscope directions``: fit a direction finder on a store, and save the direction and a recipe that adds it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.commands._options import Commands, add_command, positive

if TYPE_CHECKING:
    from activations_store import ActivationStore
    from probe.directions import Direction, StoreFinder

_EXAMPLE = """
denoscope directions runs/x --site up_blocks.1 --method mean-difference --factor object --positive star
denoscope directions runs/x --site up_blocks.1 --method lda --factor style --positive mosaic --negative flat
denoscope directions runs/x --site mid_block --method pca --view map --components 5 --component 2 --strength 3
"""
CONTRASTS = ("mean-difference", "lda", "logistic", "ridge", "cav")
COMPONENTS = ("pca", "ica", "nmf")


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "directions",
        run,
        summary="find directions in a store, save them with a recipe",
        about="Fit a direction finder on the rows of a site, print how good it is at each step, and save the direction "
        "and a recipe that adds it while the model generates (denoscope generate --recipe). What each method is: "
        "probe/directions/README.md.",
        example=_EXAMPLE,
    )
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="run folder with a store")
    parser.add_argument("--site", help="the site (default: the store's only one)")
    parser.add_argument("--method", choices=[*CONTRASTS, *COMPONENTS], default="mean-difference", help="the finder")
    parser.add_argument("--factor", help="labelled factor, for methods that tell labels apart")
    parser.add_argument("--positive", metavar="LABEL", help="the label that the direction points to")
    parser.add_argument("--negative", metavar="LABEL", help="the label that it points away from (default: all others)")
    parser.add_argument("--view", choices=("mean", "tokens", "map"), default="mean", help="what a row is")
    parser.add_argument("--branch", default="cond", help="guidance branch to read, and to edit")
    parser.add_argument("--components", type=positive, default=5, help="how many, for pca, ica and nmf")
    parser.add_argument("--component", type=int, default=0, help="the one that the recipe adds")
    parser.add_argument(
        "--strength", type=float, default=2.0, help="of the recipe, in standard deviations of the site along it"
    )
    parser.add_argument("--name", help="name of the direction and the recipe (default: from method and label)")


def run(options: argparse.Namespace) -> None:
    """Fit, print, save."""
    from activations_store import ActivationStore
    from apps.commands._options import store_folder
    from apps.errors import InvalidOption, OutputExists
    from apps.runs import Run, check_name, find_site
    from probe.directions import save_direction
    from probe.interventions import Recipe

    target = Run.open(options.run_folder)
    store = ActivationStore.open(store_folder(options.run_folder))
    site = find_site(store, options.site)
    name = check_name(options.name or "-".join(filter(None, [options.method, options.factor, options.positive])))
    folder, recipe = target.folder / "directions" / name, target.new("recipes", name)
    for path in (folder, recipe):
        if path.exists():
            raise OutputExists(f"directions: {str(path)!r} exists already; choose another --name, or remove it.")
    n = 1 if options.method in CONTRASTS else options.components
    if not 0 <= options.component < n:
        raise InvalidOption(f"directions: --component {options.component}; expected 0 to {n - 1}.")
    finder = finder_of(options, site).fit(store)
    found = finder.direction_
    print(quality_table(finder, found, store))
    edit = found.intervention(options.component, options.strength, branch=options.branch)
    about = {"direction": found.hash, "component": options.component, "provenance": dict(found.provenance)}
    save_direction(found, folder)
    Recipe((edit,), store.fingerprint, about).save(recipe)
    print(f"\ndirection in {folder}, recipe in {recipe}")
    print(f"next: denoscope generate --prompt '{store.samples.column('prompt')[0]}' --recipe {recipe} --out edited.png")


def finder_of(options: argparse.Namespace, site: str) -> StoreFinder:
    """The finder that the options describe.

    Raises:
        InvalidOption: labels are missing, or given to a method that has no use for them.
    """
    from apps.errors import InvalidOption
    from probe import directions

    common: dict[str, Any] = {"site": site, "branch": options.branch, "view": options.view}
    labels = {"factor": options.factor, "positive": options.positive, "negative": options.negative}
    if options.method in COMPONENTS:
        if any(labels.values()):
            raise InvalidOption(f"directions: {options.method} uses no labels; leave out --factor and the labels.")
        classes = {"pca": directions.PCA, "ica": directions.ICA, "nmf": directions.NMF}
        return classes[options.method](**common, n_components=options.components)
    if not options.factor or not options.positive:
        raise InvalidOption(f"directions: {options.method} needs --factor and --positive, such as object and star.")
    contrasts = {
        "mean-difference": directions.MeanDifference,
        "lda": directions.LDA,
        "logistic": directions.LogisticProbe,
        "ridge": directions.RidgeProbe,
        "cav": directions.CAV,
    }
    return contrasts[options.method](**common, **labels)


def quality_table(finder: StoreFinder, found: Direction, store: ActivationStore) -> str:
    """One line a step: how well labels are told apart, or how much variance is explained."""
    from apps.progress import table
    from probe.directions import CAV, PCA, ContrastFinder

    header = ["step", "log SNR", "scale"]
    if isinstance(finder, ContrastFinder):
        header += ["AUC", "standard error"]
    if isinstance(finder, CAV):
        header += ["p, shuffled labels"]
    if isinstance(finder, PCA):
        header += ["variance explained"]
    rows = []
    for i in range(found.n_rows):
        row = [str(i), f"{store.spec.log_snr[i]:.2f}", f"{float(found.scales[i, 0]):.4g}"]
        if isinstance(finder, ContrastFinder):
            row += [f"{finder.auc_[i]:.3f}", f"{finder.auc_se_[i]:.3f}"]
        if isinstance(finder, CAV):
            row += [f"{finder.p_value_[i]:.3f}"]
        if isinstance(finder, PCA):
            row += [f"{finder.explained_variance_ratio_[i].sum():.1%}"]
        rows.append(row)
    return table(header, rows)
