"""What is known about dictionaries, as rows of a measurement file. Each function measures one part of one dictionary.

A row says in ``part`` what it is about and in ``dictionary`` whose it is; see docs/evaluating.md for the definitions.
Samples are split into halves by a seed: what is chosen (a unit for a concept, a threshold, a probe's weights) is chosen
on the first and measured on the second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.measurement import wilson
from apps.object_masks import object_masks
from apps.progress import Progress

if TYPE_CHECKING:
    from activations_store import ActivationStore
    from apps.dictionaries.substitution import Substitution
    from sae import OpenedSAE
    from sae.evaluation.detectors import Detector

Row = dict[str, Any]
Bar = Callable[[str], AbstractContextManager[Progress]]
"""Makes a progress bar with a label."""
LOCATED = "object"
"""The factor that masks belong to."""


def reconstruction_rows(
    name: str, sae: OpenedSAE, store: ActivationStore, site: str, max_rows: int | None, progress: Progress
) -> list[Row]:
    """Both explained variances, L0 and the kinds of features, overall, per step and per branch."""
    from sae import evaluate

    m = evaluate(sae, store, site=site, max_rows=max_rows, progress=progress)
    about = {"dictionary": name, "site": site}
    overall = ("rows", "samples", "explained_variance", "explained_variance_about_zero", "explained_variance_per_dim",
               "mse", "l0", "dead", "almost_dead", "dense")  # fmt: skip
    rows = [
        {"part": "reconstruction", **about, **{key: m[key] for key in overall}, "features": sae.config.d_sae,
         "k": sae.config.k, "width": sae.config.d_in, "almost_dead_below": m["almost_dead_below"],
         "dense_above": m["dense_above"]}
    ]  # fmt: skip
    log_snr = store.spec.log_snr
    for i, step in enumerate(m["steps"]):
        rows.append(
            {"part": "step", **about, "step": step, "log_snr": float(log_snr[step]),
             "explained_variance": m["ev_per_step"][i],
             "explained_variance_about_zero": m["ev_about_zero_per_step"][i],
             "l0": m["l0_per_step"][i], "dead_fraction": m["dead_fraction_per_step"][i]}
        )  # fmt: skip
    for branch in m["branches"]:
        rows.append(
            {"part": "branch", **about, "branch": branch, "explained_variance": m["ev_per_branch"][branch],
             "explained_variance_about_zero": m["ev_about_zero_per_branch"][branch]}
        )  # fmt: skip
    return rows


def cosine_rows(name: str, sae: OpenedSAE) -> list[Row]:
    """The histogram of decoder cosines, one row a bin, as shares."""
    from sae.evaluation.decoder_cosines import cosine_histogram
    from sae.evaluation.stability import decoder_rows

    found = cosine_histogram(decoder_rows(sae))
    pairs, nearest = (counts / max(1, counts.sum()) for counts in (found.pairs, found.nearest))
    return [
        {"part": "cosine", "dictionary": name, "from": float(low), "to": float(high), "pairs": float(p),
         "nearest": float(n), "pairs_above_0.9": found.above}
        for low, high, p, n in zip(found.edges, found.edges[1:], pairs, nearest, strict=False)
    ]  # fmt: skip


def recovery_rows(
    name: str,
    sae: OpenedSAE,
    store: ActivationStore,
    site: str,
    *,
    factors: Sequence[str],
    bar: Bar,
    branch: str = "cond",
    max_rows: int | None = None,
    shuffles: int = 20,
    seed: int = 0,
) -> list[Row]:
    """Concepts recovered by the dictionary, and by what was there before it: see sae/evaluation/recovery.py.

    Beside the features: an untrained dictionary of the same shape, and the baselines of sae/evaluation/detectors.py.
    """
    from sae.data import select
    from sae.evaluation.detectors import FeatureDetector, baselines, part, pooled
    from sae.evaluation.localisation import localise
    from sae.evaluation.recovery import recover
    from sae.evaluation.stability import untrained

    branch = branch if branch in store.spec.branches else store.spec.branches[0]
    chosen = select(store, site, branches=[branch], max_rows=max_rows, blocks=sae.config.blocks)
    train = split_half(len(chosen.samples), seed)
    labels = {f: np.asarray(store.labels(f))[chosen.samples] for f in factors}
    masks = object_masks(store, site, chosen.samples) if LOCATED in labels else None
    fit = part(chosen, np.nonzero(train)[0])
    detectors: list[Detector] = [
        FeatureDetector(sae),
        FeatureDetector(untrained(sae.config, store, fit, seed), "untrained"),
        *baselines(store, fit, sae.config.d_sae, seed=seed),
    ]
    rows: list[Row] = []
    for detector in detectors:
        about = {"dictionary": name, "site": site, "units": detector.name}
        with bar(f"{name}: concepts in {detector.name}") as progress:
            found = recover(pooled(detector, store, chosen, progress=progress), labels, train, shuffles=shuffles)
        summary: Row = {"part": "recovery", **about, "n_units": detector.n_units, **found.summary()}
        where = None
        if masks is not None:
            of_factor = [c for c in found.concepts if c.factor == LOCATED]
            with bar(f"{name}: maps of {detector.name}") as progress:
                where = localise(detector, store, chosen, of_factor, labels[LOCATED], masks, train, progress=progress)
            summary |= {"iou": where.iou.value, "iou_low": where.iou.low, "iou_high": where.iou.high,
                        "iou_everywhere": where.everywhere}  # fmt: skip
        rows.append(summary)
        overlap = {} if where is None else {c.concept: c for c in where.concepts}
        for c in found.concepts:
            located = overlap.get(c.concept) if c.factor == LOCATED else None
            rows.append(
                {"part": "concept", **about, "factor": c.factor, "concept": c.concept, "unit": c.unit,
                 "pooling": c.pooling, "auc": c.auc, "auc_train": c.auc_train, "f1": c.f1, "correlation": c.correlation,
                 "units_above": c.units, "p_value": c.p_value, "n": c.n,
                 **({} if located is None else {"iou": located.iou, "iou_unit": located.unit})}
            )  # fmt: skip
    return rows


def grid_rows(
    store: ActivationStore,
    dictionaries: Mapping[str, tuple[str, OpenedSAE]],
    *,
    factors: Sequence[str],
    branch: str = "cond",
    max_rows: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Row]:
    """Class spread, purity and light probe of every site and step: see sae/evaluation/class_spread.py.

    Args:
        dictionaries: for each site that has one, its name and the dictionary; other sites get the probe alone, and
            so do dictionaries that need more than a row of one step and site.
        progress: called with (done, total) cells of the grid.
    """
    from sae.evaluation.class_spread import class_spread, light_probe

    branch = branch if branch in store.spec.branches else store.spec.branches[0]
    rows: list[Row] = []
    n_steps = store.spec.n_steps
    for i, site in enumerate(store.sites):
        name, sae = dictionaries.get(site, (None, None))
        for step, samples, vectors, codes in _sample_vectors(store, site, sae, branch, max_rows):
            train = split_half(len(samples), seed)
            for factor in factors:
                names = np.asarray(store.labels(factor))[samples]
                known = names != ""
                classes = np.unique(names[known], return_inverse=True)[1]
                right = light_probe(vectors[known], classes, train[known])
                share = wilson(int(right.sum()), len(right))
                row: Row = {"part": "grid", "site": site, "step": step, "log_snr": float(store.spec.log_snr[step]),
                            "factor": factor, "probe": share.value, "probe_low": share.low, "probe_high": share.high,
                            "chance": float(np.bincount(classes).max() / len(classes)), "n": len(right)}  # fmt: skip
                if codes is not None:
                    spread = class_spread(codes[known], classes)
                    row |= {"dictionary": name, **spread._asdict()}
                rows.append(row)
            if progress is not None:
                progress(i * n_steps + step + 1, len(store.sites) * n_steps)
    return rows


def substitution_rows(
    found: Substitution,
    names: Mapping[str, str],
    labels: Mapping[str, Sequence[str]] | None,
    seen: Callable[[np.ndarray], Mapping[str, Sequence[str]]] | None,
) -> list[Row]:
    """Loss recovered by site and step, and what the judge still reads.

    Args:
        found: from ``apps.dictionaries.substitution``.
        names: dictionary of each site.
        labels: what the prompts ask for; None where nobody knows.
        seen: the judge: images to the values that it sees, by factor.
    """
    from apps.dictionaries.substitution import VARIANTS, accuracy_kept, judged

    rows: list[Row] = []
    right = judged(labels, seen(found.clean)) if labels and seen else None
    for site, result in found.sites.items():
        about = {"dictionary": names[site], "site": site}
        for step in (None, *range(len(found.log_snr))):
            at = slice(None) if step is None else slice(step, step + 1)
            row: Row = {"part": "substitution" if step is None else "substitution step", **about}
            if step is not None:
                row |= {"step": step, "log_snr": found.log_snr[step]}
            for ablation in ("mean", "zero"):
                kept = result.recovered(ablation, None if step is None else [step])
                row |= {f"recovered_over_{ablation}": kept.value, f"recovered_over_{ablation}_low": kept.low,
                        f"recovered_over_{ablation}_high": kept.high}  # fmt: skip
            for variant in VARIANTS:
                row[f"loss_{variant}"] = float(result.loss[variant][:, at].sum(1).mean())
                row[f"eps_loss_{variant}"] = float(result.eps_loss[variant][:, at].sum(1).mean())
            rows.append(row | {"n": len(found.clean)})
        for variant in result.images:
            row = {"part": "images", **about, "variant": variant, "at_steps": len(found.at_steps),
                   "pixel_change": result.change(found.clean, variant), "n": len(found.clean)}  # fmt: skip
            if right is not None and labels and seen:
                edited = judged(labels, seen(result.images[variant]))
                kept = accuracy_kept(right, edited)
                row |= {"accuracy_clean": float(right.mean()), "accuracy": float(edited.mean()),
                        "accuracy_kept": kept.value, "accuracy_kept_low": kept.low,
                        "accuracy_kept_high": kept.high}  # fmt: skip
            rows.append(row)
    return rows


def stability_rows(
    names: tuple[str, str], pair: tuple[OpenedSAE, OpenedSAE], store: ActivationStore, site: str,
    progress: Progress | None = None,
) -> list[Row]:  # fmt: skip
    """One row that compares two dictionaries, with the untrained one beside."""
    from apps.measurement import bootstrap_mean
    from sae.evaluation.stability import compare

    found = compare(*pair, store, site=site, progress=progress)
    row: Row = {"part": "stability", "dictionary": names[0], "other": names[1], "site": site, **found.summary()}
    for what in ("decoder", "activation"):
        interval = bootstrap_mean(getattr(found, what).similarity)
        row |= {f"{what}_mean_low": interval.low, f"{what}_mean_high": interval.high}
    return [row]


def split_half(n: int, seed: int) -> np.ndarray:
    """(n,) bool, about half of them True."""
    return np.random.default_rng([seed, n]).permutation(n) < (n + 1) // 2


def _sample_vectors(
    store: ActivationStore, site: str, sae: OpenedSAE | None, branch: str, max_rows: int | None
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray | None]]:
    """For each step: (step, samples, (n, d) mean rows, (n, d_sae) mean codes or None)."""
    from sae.data import select, stream
    from sae.evaluation.detectors import FeatureDetector, pooled

    if sae is not None and (sae.config.blocks is not None or getattr(sae, "READS_PREVIOUS", False)):
        sae = None
    for step in range(store.spec.n_steps):
        limit = max_rows and max_rows // store.spec.n_steps
        chosen = select(store, site, steps=[step], branches=[branch], max_rows=limit)
        vectors = np.concatenate([block.x[:, 0].mean(1) for block in stream(store, chosen)])
        codes = None if sae is None else pooled(FeatureDetector(sae), store, chosen)[0]
        yield step, chosen.samples, vectors, codes
