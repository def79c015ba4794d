"""Lenses that are taught: a linear probe at every site and step, and one descriptor mixed from all sites and levels.

Both say before they begin how long they will take, from a first part of the work; half of what they are given teaches
them, and the other half says how well they learned.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.commands._options import load_model, new_file
from apps.errors import InvalidOption
from apps.images import labelled_grid
from apps.lenses.sheets import dotted, number_table, save, stacked, wrapped
from apps.progress import bar, table

if TYPE_CHECKING:
    from apps.lenses.pairs import Pairs
    from probe.lenses import Features, ProbeGrid
    from probe.model.pipeline import Pipeline

SHOWN = 4
"""Pairs of the testing half that a sheet shows."""


def probing(options: argparse.Namespace) -> None:
    """Held-out accuracy of a linear probe at every site and step of a store."""
    from activations_store import ActivationStore
    from apps.runs import find_site, store_folder
    from probe.lenses import probe_grid, store_vectors

    out, store = new_file(options.out, force=options.force), ActivationStore.open(store_folder(options.run_folder))
    sites = [find_site(store, name) for name in options.sites] if options.sites else list(store.sites)
    factors = {factor: store.labels(factor) for factor in options.factor or store.factors}
    if not factors:
        raise InvalidOption(f"lens probe: {str(options.run_folder)!r} has no labels; collect canvas:N or a CSV file.")
    log_snr = store.spec.log_snr
    began = time.perf_counter()
    middle, samples = store_vectors(store, sites[:1], branch=options.branch, steps=(len(log_snr) // 2,))
    for labels in factors.values():
        probe_grid(*_labelled(middle, labels[samples]), shuffles=options.shuffles)
    cells = len(sites) * len(log_snr)
    print(
        f"{len(sites)} sites x {len(log_snr)} steps x {', '.join(factors)}: {cells * len(factors)} probes, each "
        f"{options.shuffles} times more with shuffled labels, of {len(samples)} samples, "
        f"{_time(cells * (time.perf_counter() - began))}",
        flush=True,
    )
    if options.dry_run:
        return
    vectors, samples = store_vectors(store, sites, branch=options.branch)
    found: dict[str, ProbeGrid] = {}
    for factor, labels in factors.items():
        with bar(f"probes of {factor}", "probe") as progress:
            found[factor] = probe_grid(
                *_labelled(vectors, labels[samples]), log_snr=log_snr, shuffles=options.shuffles, progress=progress
            )
    print(table(["", "best", "from", "to", "shuffled", "step", "site"], [_best(*item) for item in found.items()]))
    columns = [f"{level:z.1f}" for level in log_snr]
    sheets = []
    for factor, grid in found.items():
        for values, title in (
            (grid.accuracy, f"{factor}: held-out accuracy, by log SNR"),
            (grid.null.mean(2), "the same with shuffled labels"),
        ):
            sheets.append(number_table(values, grid.sites, columns, title=title, top=1.0))
    save(out, stacked(sheets), {"store": store.hashes, "branch": options.branch} | {"factors": _records(found)})


def mixing(options: argparse.Namespace) -> None:
    """Hyperfeatures: taught on half of the pairs, asked on the other half."""
    from apps.lenses.pairs import given_pairs
    from probe.lenses import Hyperfeatures

    out, pipe = new_file(options.out, force=options.force), load_model(options)
    pairs = given_pairs(options.pairs, pipe, options.seed)
    teach, asked = list(range(len(pairs) // 2)), list(range(len(pairs) // 2, len(pairs)))
    model = Hyperfeatures(steps=options.iterations, seed=options.seed)
    print(_foretold(pipe, pairs, model, options), flush=True)
    if options.dry_run:
        return
    features = _features(pipe, pairs.images, options, "features")
    with bar("mixing", "step") as progress:
        model.fit(
            features.maps,
            [pairs.numbers[i] for i in teach],
            [(pairs.points[i], pairs.truth[i]) for i in teach],
            progress=progress,
        )
    single = {(site, level): maps[level] for site, maps in features.maps.items() for level in range(len(maps))}
    best = max(single, key=lambda key: pairs.share(pairs.matched(single[key], teach), teach).mean())
    matches = pairs.matched(model.transform(features.maps), asked)
    scores = {
        "mixed": pairs.share(matches, asked),
        "best site and level": pairs.share(pairs.matched(single[best], asked), asked),
        "the same place": pairs.share([pairs.points[i] for i in asked], asked),
    }
    name = f"{best[0]} at log SNR {features.log_snr[best[1]]:g}"
    for what, share in scores.items():
        print(f"{what}: {share.mean():.3f} of the points found" + f" ({name})" * (what == "best site and level"))
    record = {
        "pairs": options.pairs,
        "seed": options.seed,
        "sites": model.sites_,
        "log_snr": features.log_snr,
        "weights": model.weights_,
        "loss": model.loss_,
        "n_taught": len(teach),
        "pck": scores,
        "best": {"site": best[0], "log_snr": features.log_snr[best[1]]},
    }
    weights = number_table(
        model.weights_, model.sites_, [f"{level:z.1f}" for level in features.log_snr], title="weights, by log SNR"
    )
    save(out, stacked([weights, _pair_sheet(pairs, matches, asked)]), record)


def _foretold(pipe: Pipeline, pairs: Pairs, model: Any, options: argparse.Namespace) -> str:
    """Images, steps, memory and time, from the features of one pair and three steps with them."""
    from probe.lenses import Hyperfeatures

    began = time.perf_counter()
    one = _features(pipe, pairs.images[list(pairs.numbers[0])], options, "first pair")
    read = time.perf_counter()
    few = Hyperfeatures(steps=3, seed=model.seed)
    few.fit(one.maps, [(0, 1)], [(pairs.points[0], pairs.truth[0])])
    seconds = (read - began) * len(pairs.images) / 2 + (time.perf_counter() - read) * model.steps / 3
    held = sum(maps.nbytes for maps in one.maps.values()) * len(pairs.images) / 2
    return (
        f"{len(pairs)} pairs of {len(pairs.images)} images, {len(one.maps)} sites x {len(one.log_snr)} levels, "
        f"{model.steps} steps: {held / 1e6:.0f} MB of maps in memory, {_time(seconds)}"
    )


def _features(pipe: Pipeline, images: np.ndarray, options: argparse.Namespace, label: str) -> Features:
    from probe.lenses import diffusion_features

    with bar(label) as progress:
        return diffusion_features(
            pipe, images, options.sites, options.log_snr, batch_size=options.batch_size, progress=progress
        )


def _pair_sheet(pairs: Pairs, matches: list[np.ndarray], asked: list[int]) -> np.ndarray:
    """A row a pair: points on the first image, what was found in the second, and where they are."""
    rows = []
    for i, found in list(zip(asked, matches, strict=True))[:SHOWN]:
        first, second = (pairs.images[number] for number in pairs.numbers[i])
        rows.append([dotted(first, pairs.points[i]), dotted(second, found), dotted(second, pairs.truth[i])])
    return labelled_grid(rows, column_labels=["points", "found", "true"], side=256)


def _labelled(vectors: dict[str, np.ndarray], labels: np.ndarray) -> tuple[dict[str, np.ndarray], list[str]]:
    """Without the samples that have no label."""
    known = labels != ""
    return {site: found[:, known] for site, found in vectors.items()}, labels[known].tolist()


def _best(factor: str, grid: ProbeGrid) -> list[str]:
    site, step = grid.best
    at = grid.sites.index(site), step
    shares = [f"{part[at]:.3f}" for part in (grid.accuracy, grid.low, grid.high)]
    return [factor, *shares, f"{grid.null[at].mean():.3f}", str(step), wrapped(site)]


def _records(found: dict[str, ProbeGrid]) -> dict[str, dict[str, Any]]:
    return {factor: vars(grid) | {"best": grid.best} for factor, grid in found.items()}


def _time(seconds: float) -> str:
    from probe.capture.size import human_seconds

    return f"about {human_seconds(seconds)}"
