"""Finders of ``denoscope directions`` that fit on a store."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from apps.directions.methods import METHODS, components_of
from apps.errors import InvalidOption

if TYPE_CHECKING:
    from activations_store import ActivationStore
    from apps.runs import Run
    from probe.directions import DictionaryColumns, Direction, StoreFinder

DEFAULT_RANK = 4


def finder_of(options: argparse.Namespace, site: str) -> StoreFinder:
    """The finder that the options describe."""
    from probe import directions

    common: dict[str, Any] = {"site": site, "branch": options.branch, "view": options.view or "mean"}
    if METHODS[options.method].group == "components":
        classes = {"pca": directions.PCA, "ica": directions.ICA, "nmf": directions.NMF}
        return classes[options.method](**common, n_components=components_of(options))
    contrasts = {
        "mean-difference": directions.MeanDifference,
        "lda": directions.LDA,
        "logistic": directions.LogisticProbe,
        "ridge": directions.RidgeProbe,
        "cav": directions.CAV,
    }
    labels = {"factor": options.factor, "positive": options.positive, "negative": options.negative}
    return contrasts[options.method](**common, **labels)


def columns_of(options: argparse.Namespace, target: Run, store: ActivationStore) -> DictionaryColumns:
    """The decoder columns of features of a run's dictionary.

    Raises:
        apps.errors.UnknownName: the run has no such dictionary.
        InvalidOption: its columns are not at its site as they are saved.
    """
    from apps.checks import check_dictionary
    from probe.directions import DictionaryColumns
    from sae import load_sae

    folder = target.sae(options.sae)
    sae = load_sae(folder)
    site = check_dictionary(sae, folder, store)
    if sae.config.time == "film" or sae.config.blocks is not None:
        raise InvalidOption(
            f"directions: a feature of {str(folder)!r} has a vector for every step (film), or every site or step "
            "(crosscoder); choose a dictionary that is neither."
        )
    return DictionaryColumns(
        site=site, branch=options.branch, view=options.view or "tokens", dictionary=sae, features=options.feature
    )


def pair_direction(options: argparse.Namespace, store: ActivationStore) -> Direction:
    """The exchange of singular triplets between two samples of a store.

    Raises:
        InvalidOption: the store has no such samples, or does not hold the sampler's state.
    """
    from probe.directions import LatentSVD

    site = next((name for name in store.sites if name in ("unet:in", "transformer:in")), None)
    n = len(store.samples)
    if site is None or not all(0 <= sample < n for sample in (options.source, options.target)):
        raise InvalidOption(
            f"directions: latent-svd of samples {options.source} and {options.target}; the store holds 0 to {n - 1} "
            f"at {', '.join(store.sites)}. Collect the state with: denoscope collect --sites unet:in"
        )
    n_steps = len(store.spec.timesteps)
    return LatentSVD(site=site, branch=options.branch).write(
        store,
        source=options.source,
        target=options.target,
        step=n_steps // 2 if options.at_step is None else options.at_step,
        rank=options.rank or DEFAULT_RANK,
    )


def bytes_read(store: ActivationStore, site: str) -> int:
    """What one pass over a site's rows of one branch reads."""
    spec = store.site(site).spec
    rows = len(store.holding(site).committed_samples()) * len(store.spec.timesteps) * spec.tokens
    return rows * spec.channels * spec.stored_dtype.itemsize


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
    said = table(header, rows)
    if isinstance(finder, ContrastFinder):
        said += "\nAUC on {} samples with the label and {} without, all held out".format(
            *found.provenance["quality"]["held_out"]
        )
    return said
