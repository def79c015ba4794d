"""One method on one target: draw the test images with its chosen edit, judge, attack, audit.

Every function here is a stage: what it returns is JSON, is kept in the work folder, and is not made again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.bench.unlearn.choose import choice_key, chosen
from apps.bench.unlearn.prepare import Bench
from apps.bench.unlearn.world import rows_for
from apps.images import save_png
from apps.stages import Stages, key_hash
from apps.unlearning import edits as unlearning
from apps.unlearning import prompt_grids
from apps.unlearning.methods import Edits

if TYPE_CHECKING:
    from probe.unlearning import PromptGrid, UnlearnScores

UNATTACKED = "none"
"""The attack stage's own name for the prompts as they are."""
_N_SHOWN = 10  # at least as many as the sheets have columns
_SPREAD = 7  # shown and attacked rows are dealt in this order over seeds and labels; prime to their numbers


def run_stage(bench: Bench, what: str, name: str, factor: str, label: str) -> dict[str, Any]:
    """Do a stage, or read what it left.

    Args:
        bench: the benchmark.
        what: ``score``, ``attack`` or ``audit``.
        name: of the method.
        factor, label: the target.
    """
    work, key = {"score": (_score, _score_key), "attack": (_attack, _attack_key), "audit": (_audit, _audit_key)}[what]
    stage = f"{what}-{name}-{factor}-{label}"
    if what == "score":  # few retained images first, all of them later: both stay
        stage += f"-{bench.config.retain_seeds}"
    outputs = [] if name == "no_edit" else [bench.recipe_folder(name, factor, label) / "recipe.json"]
    return Stages(bench.run, lambda line: None, 1).do(
        stage, stage, key(bench, name, factor, label), lambda: work(bench, name, factor, label), outputs=outputs
    )


def _score_key(bench: Bench, name: str, factor: str, label: str) -> dict[str, Any]:
    """All that decides what the test images look like."""
    test = {
        "test": prompt_grids.grid_record(_test(bench, factor, label)),
        "compared": prompt_grids.grid_record(bench.world.test.select(bench.compared.other)),
    }
    return {"choice": choice_key(bench, name, factor, label)["key_hash"], "test": key_hash(test)}


def _attack_key(bench: Bench, name: str, factor: str, label: str) -> dict[str, Any]:
    return {
        "choice": choice_key(bench, name, factor, label)["key_hash"],
        "attacks": list(bench.config.attacks),
        "asked": prompt_grids.grid_record(_asked(bench, factor, label)),
    }


def _audit_key(bench: Bench, name: str, factor: str, label: str) -> dict[str, Any]:
    return {"choice": choice_key(bench, name, factor, label)["key_hash"]}


def _test(bench: Bench, factor: str, label: str) -> PromptGrid:
    return bench.world.test.select(rows_for(bench.world.test, factor, label, bench.config.retain_seeds))


def _asked(bench: Bench, factor: str, label: str) -> PromptGrid:
    """The test prompts that are attacked."""
    test = bench.world.test
    return test.select(spread_rows(test, factor, label, bench.config.attack_images))


def _score(bench: Bench, name: str, factor: str, label: str) -> dict[str, Any]:
    """Draw the test images with the chosen edit, judge them."""
    from probe.unlearning import Predictions
    from probe.unlearning.evaluate import pixel_change

    choice, edits = chosen(bench, name, factor, label)
    rows = rows_for(bench.world.test, factor, label, bench.config.retain_seeds)
    grid = bench.world.test.select(rows)
    before = bench.baseline_images[np.searchsorted(bench.drawn, rows)]
    images, cost = _draw(bench, grid, edits) if edits else (before, {})
    _show(bench, name, factor, label, grid, images)
    judged = Predictions.of(bench.world.judge(images), prompt_grids.DOMAINS)
    return {
        "method": name,
        "factor": factor,
        "label": label,
        "setting": choice["setting"],
        "site": " + ".join(dict.fromkeys(str(edit.where) for edit in edits)),
        "tried": choice["tried"],
        "judged": {domain: list(values) for domain, values in judged.labels.items()},
        "artifact": judged.artifact.tolist(),
        "change": pixel_change(before, images).tolist(),
        "distance": _distance(bench, factor, label, rows, images),
        "cost": cost | {"fit_seconds": sum(row.get("fit_seconds", 0.0) for row in choice["tried"])},
    }


def _generate(bench: Bench, grid: PromptGrid, edits: Edits, progress: Any = None) -> np.ndarray:
    from probe.model import generate

    sampling = asdict(bench.world.sampling)
    return generate(bench.pipe, grid.prompts, grid.seeds, interventions=edits, progress=progress, **sampling)


def _draw(bench: Bench, grid: PromptGrid, edits: Edits) -> tuple[np.ndarray, dict[str, float]]:
    """The images, and what one costs beside an unedited one: the first batch of both, in CPU time of this process."""
    from probe.unlearning.attacks.task import spending

    first = grid.select(range(min(len(grid), bench.world.sampling.batch_size)))
    start = time.process_time()
    with spending(bench.pipe) as plain:
        _generate(bench, first, ())
    plain_seconds = time.process_time() - start
    start, ends = time.process_time(), []
    with spending(bench.pipe) as edited:
        images = _generate(bench, grid, edits, lambda done, total: ends.append(time.process_time()))
    return images, {
        "seconds_ratio": (ends[0] - start) / plain_seconds,
        "evaluations": edited.evaluations / len(grid),
        "plain_evaluations": plain.evaluations / len(first),
    }


def _distance(bench: Bench, factor: str, label: str, rows: np.ndarray, images: np.ndarray) -> dict[str, float]:
    """How far the retained images are from the unedited model's, and how far those are among themselves."""
    from probe.unlearning import kernel_distance

    features, compared = bench.world.features, bench.compared
    kept = np.asarray([bench.world.test.labels[factor][row] != label for row in compared.own])
    own, other = (np.searchsorted(bench.drawn, part[kept]) for part in (compared.own, compared.other))
    partners, groups = features(bench.baseline_images[other]), compared.seed[kept]
    edited = kernel_distance(features(images[np.searchsorted(rows, compared.own[kept])]), partners, groups=groups)
    unedited = kernel_distance(features(bench.baseline_images[own]), partners, groups=groups)
    return {"mmd": edited.value, "mmd_p": edited.p, "mmd_unedited": unedited.value, "mmd_null_95": unedited.null_95}


def _show(bench: Bench, name: str, factor: str, label: str, grid: PromptGrid, images: np.ndarray) -> None:
    """Keep a few images of the target, for people."""
    folder = bench.run.new("unlearn", f"{name}-{factor}-{label}")
    for i in spread_rows(grid, factor, label, _N_SHOWN):
        save_png(folder / f"{i:06d}.png", images[i])


def spread_rows(grid: PromptGrid, factor: str, label: str, n: int) -> list[int]:
    """Up to n rows that ask for a target, spread over seeds and the other labels."""
    asked = [i for i, value in enumerate(grid.labels[factor]) if value == label]
    step = _SPREAD if len(asked) % _SPREAD else 1
    return sorted(asked[(i * step) % len(asked)] for i in range(min(n, len(asked))))


def _attack(bench: Bench, name: str, factor: str, label: str) -> dict[str, Any]:
    """What each attack gets the edited model to draw."""
    from probe.errors import InvalidRequest, UnsupportedPipeline
    from probe.unlearning import Predictions
    from probe.unlearning.attacks import ATTACKS

    _, edits = chosen(bench, name, factor, label)
    judge = bench.world.judge
    task = bench.world.attack_task(bench.pipe, edits, factor, label, _asked(bench, factor, label))
    before = Predictions.of(judge(task.draw(task.prompts)), prompt_grids.DOMAINS)
    found: dict[str, Any] = {UNATTACKED: _attacked(before, factor, label)}
    for attack in bench.config.attacks:
        try:
            result = ATTACKS[attack](task)
        except (InvalidRequest, UnsupportedPipeline) as error:  # no gradient passes through some edits
            found[attack] = {"refused": str(error)}
            continue
        judged = Predictions.of(judge(result.images), prompt_grids.DOMAINS)
        spent = {"evaluations": result.evaluations, "seconds": result.seconds, "detail": dict(result.detail)}
        found[attack] = _attacked(judged, factor, label) | spent
    return {"method": name, "factor": factor, "label": label, "attacks": found}


def _audit(bench: Bench, name: str, factor: str, label: str) -> dict[str, Any]:
    """What the edited model still holds of the target; means over sites and steps, beside every row."""
    from probe.unlearning.audit import audit

    _, edits = chosen(bench, name, factor, label)
    result = audit(bench.world.audit_task(bench.pipe, edits, factor, label))
    return {"method": name, "factor": factor, "label": label, "means": result.means(), "rows": result.to_rows()}


def _attacked(judged: Any, factor: str, label: str) -> dict[str, Any]:
    """In which images the concept is back."""
    return {
        "back": [value == label for value in judged.labels[factor]],
        "artifact": judged.artifact.tolist(),
    }


def validation_objective(records: Sequence[Mapping[str, Any]]) -> float:
    """Mean over targets of the chosen setting's objective on validation images."""
    return float(np.mean([record["tried"][0]["objective"] for record in records]))


def scores_of(bench: Bench, record: Mapping[str, Any]) -> UnlearnScores:
    """Scores of a record on the test images, with intervals."""
    grid = _test(bench, record["factor"], record["label"])
    return unlearning.score_record(grid, record, n_boot=bench.config.n_boot)
