"""``denoscope features``: which features carry which concept; builds the bundle that the dashboard reads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from apps.commands._options import Commands, add_command, positive

if TYPE_CHECKING:
    from apps.runs import Run
    from sae import FeatureBundle

_EXAMPLE = """
denoscope features runs/x
denoscope features runs/x --sae up_blocks.1 --factors object style --top 3
"""


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "features",
        run,
        summary="find the features of each concept, build the bundle",
        about="Score every feature of a run's dictionaries for every labelled concept, write the feature bundle, and "
        "print the best features of each concept; without labels, those that explain most. A bundle that is up to date "
        "is not built again.",
        example=_EXAMPLE,
        resumable=True,
    )
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="run folder with a store and dictionaries")
    parser.add_argument("--sae", help="name of the dictionary (default: all of the run)")
    parser.add_argument("--factors", nargs="+", help="labelled factors to print (default: all)")
    parser.add_argument("--top", type=positive, default=1, help="features printed for a concept")
    parser.add_argument("--examples", type=positive, default=16, help="samples kept with their maps for every feature")
    parser.add_argument(
        "--copy-images", action="store_true", help="copy images into the bundle, so that it can be moved alone"
    )
    parser.add_argument("--force", action="store_true", help="build again")


def run(options: argparse.Namespace) -> None:
    """Build what is missing, then print."""
    from activations_store import ActivationStore
    from apps.checks import check_dictionary
    from apps.runs import Run
    from sae import load_sae
    from sae.errors import UnknownConcept

    target = Run.open(options.run_folder)
    names = [options.sae] if options.sae else list(target.saes())
    folders = {name: target.sae(name) for name in names} or {"": target.sae()}
    store = ActivationStore.open(target.store)
    for factor in options.factors or ():
        if factor not in store.factors:
            known = ", ".join(store.factors) or "no labels"
            raise UnknownConcept(f"features: no factor {factor!r} in {str(store.path)!r}; it has {known}.")
    dictionaries = {name: load_sae(folder) for name, folder in folders.items()}
    for name, folder in folders.items():
        check_dictionary(dictionaries[name], folder, store)
    for name in folders:
        bundle = bundle_of(
            target, name, store, n_examples=options.examples, copy=options.copy_images, force=options.force
        )
        print(f"\n{name}: {bundle.n_features} features at {bundle.info['site']}, bundle in {bundle.path}")
        for factor in options.factors or bundle.factors:
            print(best_table(bundle, factor, options.top))
        if not bundle.factors:
            print(largest_table(bundle, max(options.top, 10)))
            print(
                "The prompts have no labels, so features are matched with no concept: they are listed by what they "
                "explain. For concepts collect with --prompts canvas:N, or with a CSV file that has a column for each."
            )
    print(f"\nnext: denoscope app {target.folder}")


def bundle_of(
    target: Run, name: str, store, *, n_examples: int = 16, copy: bool = False, force: bool = False
) -> FeatureBundle:
    """The bundle of a dictionary, built if there is none for these weights and this store."""
    from apps.measurement import read_json
    from apps.progress import bar
    from sae import FeatureBundle, build_bundle, load_sae
    from sae.errors import SAEError

    folder, out = target.sae(name), target.new("bundle", name)
    dictionary = load_sae(folder)
    if out.exists() and not force:
        try:
            found = FeatureBundle.open(out)
        except SAEError:  # half a bundle, or one of an older format: it can always be made again
            found = None
        if found is not None and made_from(found, dictionary, store):
            return found
    metrics = folder / "metrics.json"
    with bar(f"features of {name}", "sample") as progress:
        return build_bundle(
            dictionary,
            store,
            target.images if target.images.is_dir() else None,
            out,
            n_examples=n_examples,
            copy_images=copy,
            metrics=read_json(metrics) if metrics.is_file() else None,
            overwrite=True,
            progress=progress,
        )


def made_from(bundle: FeatureBundle, dictionary, store) -> bool:
    """Whether a bundle was built from this dictionary and the samples that this store holds now."""
    from sae.data import store_identity

    return bundle.info.get("store") == store_identity(store) and bundle.info.get("sae") == {
        "config": dictionary.config.to_json(),
        "metadata": dictionary.metadata,
    }


def best_table(bundle: FeatureBundle, factor: str, top: int) -> str:
    """The best features of each concept of a factor, as text."""
    from apps.progress import table

    scores = bundle.score(factor)
    rows = []
    for i, concept in enumerate(bundle.concepts[factor]):
        for feature, auc in bundle.find(factor, concept, top):
            stats = bundle.stats(feature)
            rows.append(
                [
                    concept,
                    str(feature),
                    f"{auc:.3f}",
                    f"{scores[i, feature]:+.4f}",
                    f"{stats['density']:.2%}",
                    f"{stats['p99']:.3g}",
                    str(stats["peak_step"]),
                ]
            )
    return table([factor, "feature", "AUC", "score", "density", "p99", "peak step"], rows)


def largest_table(bundle: FeatureBundle, top: int) -> str:
    """The features that explain most of the variance, as text."""
    from apps.progress import table

    largest = bundle.table.sort_by([("ev_contribution", "descending")]).slice(0, top).to_pylist()
    header = ["feature", "explains", "density", "images", "p99", "peak step"]
    rows = [
        [
            str(row["feature"]),
            f"{row['ev_contribution']:.2%}",
            f"{row['density']:.2%}",
            f"{row['sample_fraction']:.0%}",
            f"{row['p99']:.3g}",
            str(row["peak_step"]),
        ]
        for row in largest
    ]
    return table(header, rows)
