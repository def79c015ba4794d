"""The edit of a method for a target: every setting draws validation images, the best one's edit is kept as a recipe.

This is a stage of its own. More test images, other attacks or an audit fit nothing again.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from apps.bench.unlearn.prepare import Bench
from apps.stages import Stages, key_hash
from apps.unlearning import edits as unlearning
from apps.unlearning import prompt_grids
from apps.unlearning.methods import Edits, method

VALIDATED = ("ua", "ua_clean", "ira", "cra", "artifacts", "artifacts_retain")
"""Scores of a setting on validation images that are kept."""
REFUSED = "unedited: no setting fits"
"""The setting of a method that has no edit for a target. It is scored as one that changes nothing, which is what its
user gets; leaving the target out would flatter the method.
"""


def chosen(bench: Bench, name: str, factor: str, label: str) -> tuple[dict[str, Any], Edits]:
    """({setting, tried}, edit) of a method for a target. What was tried stands with the best first."""
    if name == "no_edit":
        (setting,) = bench.config.settings(method(name), factor, label)
        return {"setting": setting.name, "tried": [{"setting": setting.name}]}, ()

    def work() -> dict[str, Any]:
        from probe.interventions import Recipe

        setting, edits, tried = _choose(bench, name, factor, label)
        folder = bench.recipe_folder(name, factor, label)
        unlearning.remove_recipe(folder)
        Recipe.of(bench.pipe, edits, {"method": name, "target": [factor, label], "setting": setting}).save(folder)
        return {"setting": setting, "tried": tried}

    stage = f"choose-{name}-{factor}-{label}"
    record = Stages(bench.run, lambda line: None, 1).do(
        stage, stage, choice_key(bench, name, factor, label), work,
        outputs=[bench.recipe_folder(name, factor, label) / "recipe.json"],
    )  # fmt: skip
    return record, bench.recipe(name, factor, label).interventions


def choice_key(bench: Bench, name: str, factor: str, label: str) -> dict[str, Any]:
    """All that decides which edit is chosen."""
    settings = bench.config.settings(method(name), factor, label)
    used = sorted({used for setting in settings for used in setting.uses})
    learns = method(name).kind in ("direction", "sae")
    key = {
        "model": bench.model_hash,
        "target": [factor, label],
        "settings": [asdict(setting) for setting in settings],
        "dictionaries": {used: bench.weights_hash(used) for used in used},
        "store": bench.learned.recorded.hashes if learns else None,
        "validation": prompt_grids.grid_record(bench.world.validation(factor, label, *bench.config.validation)),
        "sampling": asdict(bench.world.sampling),
    }
    if name == "random_direction":
        of = bench.best_sae[factor]
        key |= {"of": of, "of_key": choice_key(bench, of, factor, label)["key_hash"]}
    return {"key_hash": key_hash(key), "settings": key["settings"]}


def _choose(bench: Bench, name: str, factor: str, label: str) -> tuple[str, Edits, list[dict[str, Any]]]:
    """(setting, edit, what was tried).

    A method with a single setting is not validated, unless it edits features: those are compared with each other. Where
    every setting is refused, nothing is edited.
    """
    from probe.errors import InvalidRequest
    from probe.unlearning import search

    m, sampling = method(name), asdict(bench.world.sampling)
    settings = bench.config.settings(m, factor, label)
    fitted: dict[str, Edits] = {}
    seconds, refused = {}, []
    for setting in settings:
        start = time.perf_counter()
        try:
            fitted[setting.name] = m.fit(bench.learned, factor, label, setting)
        except InvalidRequest as error:  # a setting may not suit a concept: no feature of its own, for example
            refused.append({"setting": setting.name, "refused": str(error)})
        else:
            seconds[setting.name] = {"fit_seconds": time.perf_counter() - start}
    if not fitted:
        fitted[REFUSED] = ()
    elif len(settings) == 1 and m.kind != "sae":
        (only,) = fitted
        return only, fitted[only], [{"setting": only} | seconds[only]]
    validation = bench.world.validation(factor, label, *bench.config.validation)
    target, domains = (factor, label), prompt_grids.DOMAINS
    found = search(bench.pipe, bench.world.judge, validation, target, fitted, domains=domains, **sampling)
    tried = [
        {"setting": one.name, **seconds.get(one.name, {}), "objective": one.objective}
        | {score: one.scores[score].value for score in VALIDATED}
        for one in found
    ]
    best = found[0].name
    return best, fitted[best], tried + refused
