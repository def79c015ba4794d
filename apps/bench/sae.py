"""What does a dictionary know of a world where everything is known? Canvas, with its planted factors and masks.

Renders of canvas, whose factors and object masks are exact, are brought to a few noise levels of the model's own
sampling schedule; the model is called once at each, and a dictionary is trained on what it computes at each of three
sites. Then everything in ``apps.dictionaries.evaluate`` is measured: reconstruction, concepts beside what was there
before the dictionary, class spread and probe over sites and levels, two seeds compared, and the dictionaries put in
place in generations that the judge reads.

The work folder is a run as any other (store, dictionaries), and what is finished there is not done again.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.dictionaries.evaluate import (
    Row,
    cosine_rows,
    grid_rows,
    reconstruction_rows,
    recovery_rows,
    stability_rows,
    substitution_rows,
)
from apps.errors import OutputExists
from apps.measurement import Measurement, read_json, write_json
from apps.progress import bar, table
from apps.runs import Run, site_name
from apps.stages import Say, Stages, key_hash

if TYPE_CHECKING:
    from activations_store import ActivationStore
    from probe.canvas import Judge
    from probe.model.pipeline import Pipeline
    from sae import SparseAutoencoder

RENDERS = "renders"
CONFIG = "bench.json"
_METHODS = ("features", "untrained", "PCA", "random", "neurons")


@dataclass(frozen=True)
class BenchConfig:
    """What is measured."""

    renders: int = 640  # images with known factors and masks
    levels: int = 4  # noise levels, evenly over the sampling schedule without its first
    sites: tuple[str, ...] = ("mid_block", "up_blocks.0", "up_blocks.1")
    expansion: int = 2  # features as a multiple of the site's width
    k: int = 8  # features on for a row
    rows: int = 800_000  # rows that a dictionary is trained on
    batch_size: int = 512  # rows a step: with few rows, many small steps
    prompts: int = 32  # generations with a dictionary in place
    seed: int = 0


QUICK = BenchConfig(renders=160, levels=2, sites=("up_blocks.0",), rows=100_000, prompts=16)


def bench_sae(
    pipe: Pipeline, judge: Judge, config: BenchConfig, work: Path, say: Say, *, device: str = "cpu"
) -> Measurement:
    """Run everything that is not done yet in ``work``.

    Raises:
        OutputExists: ``work`` holds another bench.
    """
    from probe.model import fingerprint

    run = Run(work)
    _claim(work, config)
    stages = Stages(run, say, n_stages=3 + 2 * len(config.sites))
    stages.do("renders", f"{config.renders} renders with masks", asdict(config), lambda: _draw(config, work / RENDERS))
    store = _collect(pipe, config, run, say)
    pairs = {site: _train(store, site, config, run, say) for site in store.sites}
    rows: list[Row] = []
    factors = tuple(store.factors)
    for site, (first, second) in pairs.items():
        name = site_name(site)
        key = {"sae": file_key(run.sae(name)), "other": file_key(run.sae(f"{name}-again"))}

        def measure(site=site, name=name, first=first, second=second) -> dict[str, Any]:
            with bar(f"{name}: reconstruction", "row") as progress:
                found = reconstruction_rows(name, first, store, site, None, progress)
            found += cosine_rows(name, first)
            found += recovery_rows(name, first, store, site, factors=factors, bar=lambda s: bar(s, "sample"))
            with bar(f"{name}: two seeds", "row") as progress:
                found += stability_rows((name, f"{name}-again"), (first, second), store, site, progress)
            return {"rows": found}

        rows += stages.do(f"measure-{name}", f"{site}: reconstruction, concepts, stability", key, measure)["rows"]

    def measure_grid() -> dict[str, Any]:
        named = {site: (site_name(site), first) for site, (first, _) in pairs.items()}
        with bar("class spread and probe", "cell") as progress:
            return {"rows": grid_rows(store, named, factors=factors, progress=progress)}

    keys = {site: file_key(run.sae(site_name(site))) for site in pairs}
    rows += stages.do("grid", "class spread and probe over sites and levels", keys, measure_grid)["rows"]
    rows += stages.do(
        "substitution",
        f"{config.prompts} generations with dictionaries in place",
        keys,
        lambda: {"rows": _substitute(pipe, judge, {s: p[0] for s, p in pairs.items()}, config)},
    )["rows"]
    return Measurement(
        "bench.sae", rows, _ratios(rows), device=device, config={**asdict(config), "model": fingerprint(pipe)}
    )


def recovery_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The table that people read: features beside what was there before."""
    header = ["site, units", "AUC", "F1", "correlation", "AUC > 0.95", "units each", "false discoveries", "IoU"]
    body = []
    for row in (r for r in rows if r["part"] == "recovery"):
        shown = [f"{row[m]:.3f} ({row[f'{m}_low']:.3f}-{row[f'{m}_high']:.3f})" for m in ("auc", "f1", "correlation")]
        each, false = row["units_per_concept"], row["false_discovery_rate"]
        iou = row.get("iou")
        body.append(
            [f"{site_name(row['site'])}, {row['units']}", *shown, f"{row['recovered']:.0f} of {row['concepts']}",
             "-" if each is None else f"{each:.1f}",
             "-" if false is None else f"{false:.1%}",
             "-" if iou is None else f"{iou:.3f}"]
        )  # fmt: skip
    return table(header, body)


def file_key(folder: Path) -> str:
    """What a stage depends on in a dictionary's folder: its weights."""
    from apps.stages import file_hash

    return file_hash(folder / "sae_weights.safetensors")


def _claim(work: Path, config: BenchConfig) -> None:
    path, wanted = work / CONFIG, asdict(config)
    if path.is_file():
        found = read_json(path)
        if key_hash(found) != key_hash(wanted):
            changed = [k for k in wanted if key_hash({k: found.get(k)}) != key_hash({k: wanted[k]})]
            raise OutputExists(
                f"{str(work)!r} holds a bench with other {', '.join(changed)}; choose another --work, or remove it."
            )
    write_json(path, wanted)


def _draw(config: BenchConfig, folder: Path) -> dict[str, Any]:
    """Renders, masks and the table that ``read_images`` reads."""
    from PIL import Image

    from probe.canvas import FACTORS, render_batch

    folder.mkdir(parents=True, exist_ok=True)
    batch = render_batch(range(config.renders), split="train", seed=1_000 + config.seed)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "prompt", "mask", *FACTORS])
        for i, (image, mask, caption, scene) in enumerate(
            zip(batch.images, batch.masks, batch.captions, batch.scenes, strict=True)
        ):
            name, mask_name = f"{i:06d}.png", f"mask-{i:06d}.png"
            Image.fromarray(image).save(folder / name)
            Image.fromarray(mask).save(folder / mask_name)
            writer.writerow([name, caption, mask_name, *(getattr(scene, factor) for factor in FACTORS)])
    return {"images": len(batch.images)}


def _collect(pipe: Pipeline, config: BenchConfig, run: Run, say: Say) -> ActivationStore:
    """The store of the renders at the chosen levels; goes on where it was stopped."""
    from probe.capture import ImagePlan, collect, estimate, read_images
    from probe.model import generation_defaults, schedule

    levels = schedule(pipe, generation_defaults(pipe).steps)[1]
    at = np.linspace(1, len(levels) - 1, config.levels).round().astype(int)
    plan = ImagePlan.for_pipeline(
        pipe, config.sites, read_images(run.folder / RENDERS), [levels[i] for i in at], first_seed=config.seed,
        branches=("uncond", "cond"), images=False,
    )  # fmt: skip
    if not (run.store / "store.json").is_file():
        say(str(estimate(pipe, plan)))
    with bar("collect") as progress:
        return collect(pipe, plan, run.store, progress=progress)


def _train(
    store: ActivationStore, site: str, config: BenchConfig, run: Run, say: Say
) -> tuple[SparseAutoencoder, SparseAutoencoder]:
    """Two dictionaries that differ in their seed; finished ones are read."""
    from sae import TrainConfig, train

    found = []
    for seed, suffix in ((config.seed, ""), (config.seed + 1, "-again")):
        plan = TrainConfig(
            site=site, expansion=config.expansion, k=config.k, rows=config.rows, batch_size=config.batch_size,
            seed=seed, holdout=0.0,
        )  # fmt: skip
        with bar(f"train {site_name(site)}{suffix}", "step") as progress:
            result = train(
                store, plan, run.new("sae", site_name(site) + suffix),
                progress=lambda report, show=progress: show(report.batch, report.n_batches),
            )  # fmt: skip
        say(f"  {site_name(site)}{suffix}: explained variance {result.metrics['explained_variance']:.3f}")
        found.append(result.sae)
    return found[0], found[1]


def _substitute(
    pipe: Pipeline, judge: Judge, dictionaries: Mapping[str, SparseAutoencoder], config: BenchConfig
) -> list[Row]:
    from apps.dictionaries.substitution import substitute
    from apps.prompts import balanced

    prompts = balanced(config.prompts, seed=config.seed)
    seeds = range(9_000_000, 9_000_000 + config.prompts)
    with bar("substitution", "call") as progress:
        found = substitute(pipe, dictionaries, prompts.prompts, seeds, progress=progress)

    def seen(images: np.ndarray) -> dict[str, Any]:
        verdict = judge(images)
        return {factor: verdict.labels(factor) for factor in prompts.labels}

    return substitution_rows(found, {site: site_name(site) for site in dictionaries}, prompts.labels, seen)


def _ratios(rows: list[Row]) -> dict[str, float | None]:
    """The named numbers, means over sites: units beside each other, then the dictionary alone."""
    ratios: dict[str, float | None] = {}
    for method in _METHODS:
        found = [r for r in rows if r["part"] == "recovery" and r["units"] == method]
        for measure in ("auc", "f1", "correlation", "iou"):
            ratios[f"{method.lower()}_{measure}"] = _mean(r.get(measure) for r in found)
        ratios[f"{method.lower()}_recovered"] = _mean(r["recovered"] / r["concepts"] for r in found)
        ratios[f"{method.lower()}_best_site_auc"] = max(r["auc"] for r in found)
    features = [r for r in rows if r["part"] == "recovery" and r["units"] == "features"]
    ratios["false_discovery_rate"] = _mean(r["false_discovery_rate"] for r in features)
    ratios["found_with_shuffled_labels"] = _mean(r["found_shuffled"] / r["concepts"] for r in features)
    for part, names in {
        "reconstruction": ("explained_variance", "explained_variance_about_zero"),
        "substitution": ("recovered_over_mean", "recovered_over_zero"),
        "stability": ("decoder_shared", "decoder_null_shared", "activation_shared", "activation_null_shared"),
    }.items():
        ratios |= {name: _mean(r[name] for r in rows if r["part"] == part) for name in names}
    for variant in ("sae", "mean", "zero"):
        kept = (r["accuracy_kept"] for r in rows if r["part"] == "images" and r["variant"] == variant)
        ratios[f"accuracy_kept_{variant}"] = _mean(kept)
    return ratios


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of the numbers that are defined."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
