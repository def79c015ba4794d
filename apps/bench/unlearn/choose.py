"""The edit of a method for a target: every setting draws validation images, the best one's edit is kept as a recipe.

This is a stage of its own. More test images, other attacks or an audit fit nothing again.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Any

from apps.bench.unlearn.prepare import LEARNING, Bench
from apps.stages import Stages, key_hash
from apps.unlearning import edits as unlearning
from apps.unlearning import prompt_grids
from apps.unlearning.methods import Edits, method

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
        edit = _choose(bench, name, factor, label)
        unlearning.save_edit(bench.recipe_folder(name, factor, label), edit, bench.pipe)
        return {"setting": edit.setting, "tried": edit.tried}

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
    learns = method(name).kind in LEARNING
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


def _choose(bench: Bench, name: str, factor: str, label: str) -> unlearning.Edit:
    """The edit, with what was tried, what each fit took, and the settings that were refused.

    A method with a single setting is not validated, unless it edits features: those are compared with each other. Where
    every setting is refused, nothing is edited.
    """
    from probe.errors import InvalidRequest

    m = method(name)
    fitted: dict[str, Edits] = {}
    seconds, refused = {}, []
    for setting in bench.config.settings(m, factor, label):
        start = time.perf_counter()
        try:
            fitted[setting.name] = m.fit(bench.learned, factor, label, setting)
        except InvalidRequest as error:  # a setting may not suit a concept: no feature of its own, for example
            refused.append({"setting": setting.name, "refused": str(error)})
        else:
            seconds[setting.name] = {"fit_seconds": time.perf_counter() - start}
    edit = unlearning.choose_edit(
        name,
        factor,
        label,
        fitted or {REFUSED: ()},
        pipe=bench.pipe,
        judge=bench.world.judge,
        sampling=bench.world.sampling,
        validation=bench.world.validation(factor, label, *bench.config.validation),
        judge_one=m.kind == "sae" or bool(refused),
    )
    tried = [row | seconds.get(row["setting"], {}) for row in edit.tried or [{"setting": edit.setting}]]
    return replace(edit, tried=tried + refused)
