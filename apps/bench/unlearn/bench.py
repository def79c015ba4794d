"""``denoscope bench unlearn``: every method on every target, with what each costs and how far it can be trusted.

UnlearnCanvas's protocol (``probe.unlearning.protocol``) on a planted world. For each method and target: choose a
setting on validation images, draw the test images, score them, and let attacks try to bring the target back. Stages
that are done are not repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from apps.bench.unlearn.config import UnlearnBench
from apps.bench.unlearn.pool import run_jobs
from apps.bench.unlearn.prepare import Bench, prepare
from apps.bench.unlearn.sheet import target_sheet
from apps.bench.unlearn.tables import frontier_rows, ratios_of, target_rows
from apps.bench.unlearn.target import scores_of, validation_objective
from apps.images import save_png
from apps.locks import only_command
from apps.measurement import Measurement, write_json
from apps.progress import bar
from apps.stages import Say
from apps.unlearning import prompt_grids
from apps.unlearning.methods import method

Records = dict[tuple[str, str, str], dict[str, Any]]
"""What a stage left, by (method, factor, label)."""
_CONTROL = "random_direction"
QUICK: dict[str, Any] = {
    "objects": ("star", "heart", "moon", "cat"),
    "styles": ("flat", "mosaic", "neon", "clay"),
    "n_seeds": 2,
    "retain_seeds": 1,
    "n_recorded": 96,
    "validation": (8, 12),
    "max_settings": 2,
    "train_rows": 200_000,
    "attack_images": 5,
}
"""A small part of the world, within minutes on two slow cores."""
QUICK_METHODS, QUICK_TARGETS, QUICK_ATTACKS = (
    ("no_edit", _CONTROL, "uce", "saeuron"),
    ("star", "mosaic"),
    ("paraphrase",),
)


def bench_unlearn(config: UnlearnBench, say: Say = print, *, workers: int = 1) -> Measurement:
    """Run everything that is not done yet in the work folder.

    Args:
        config: what is measured.
        say: takes lines for people.
        workers: processes.

    Raises:
        FolderInUse: another command is at work in the folder.
    """
    with only_command(config.work, "bench unlearn"):
        return _bench_unlearn(Bench(config), say, workers)


def _bench_unlearn(bench: Bench, say: Say, workers: int) -> Measurement:
    config = bench.config
    write_json(config.work / "bench.json", {"name": "bench.unlearn", "last_config": config_record(config)})
    prepare(bench)
    say(f"{len(bench.baseline_images)} unedited images")
    records: Records = {}

    def run(what: str, names: Sequence[str]) -> Records:
        jobs = [
            (what, name, *target)
            for name in names
            for target in config.targets
            if config.settings(method(name), *target) and (name != _CONTROL or target[0] in bench.best_sae)
        ]
        with bar(what, "stage") as progress:
            found = run_jobs(bench, jobs, workers, progress)
        return {job[1:]: result for job, result in zip(jobs, found, strict=True)}

    records |= run("score", [name for name in config.methods if name != _CONTROL])
    bench.best_sae |= best_sae(records)
    for factor, name in bench.best_sae.items():
        say(f"best feature edit for {factor}s on validation images: {name}")
    if _CONTROL in config.methods:
        records |= run("score", [_CONTROL])
    attacked = run("attack", config.methods) if config.attacks else {}
    audited = run("audit", config.methods) if config.audit else {}
    for factor in prompt_grids.DOMAINS:  # one picture for each factor, of its first target
        label = next((target[1] for target in config.targets if target[0] == factor), None)
        if label is not None:
            save_png(config.work / f"{factor}.png", target_sheet(bench, records, factor, label))
    return _measurement(bench, records, attacked, audited)


def best_sae(records: Records) -> dict[str, str]:
    """For each factor, the feature method that is best on the validation images of all targets it ran on."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for (name, factor, _), record in records.items():
        if method(name).kind == "sae":
            found.setdefault(factor, {}).setdefault(name, []).append(record)
    return {
        factor: max(by_name, key=lambda name, by_name=by_name: validation_objective(by_name[name]))
        for factor, by_name in found.items()
    }


def _measurement(bench: Bench, records: Records, attacked: Records, audited: Records) -> Measurement:
    config = bench.config
    scores = {key: scores_of(bench, record) for key, record in records.items()}
    rows = target_rows(records, attacked, audited, scores, config.retain_seeds) + frontier_rows(records)
    about = config_record(config) | {"best_sae": bench.best_sae, "model_hash": bench.model_hash}
    return Measurement("bench.unlearn", rows, ratios_of(rows, bench.best_sae), config=about)


def config_record(config: UnlearnBench) -> dict[str, Any]:
    """The configuration as JSON values, without the place where it ran."""
    kept = {key: value for key, value in asdict(config).items() if key != "work"}
    return kept | {"place": config.place.record()}
