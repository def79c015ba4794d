"""Unlearn concepts of canvas with a run's dictionaries, and score what was removed and what survived."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.errors import InvalidOption
from apps.images import save_png
from apps.measurement import write_json
from apps.progress import Progress
from apps.runs import Run
from apps.unlearning.prompt_grids import DOMAINS

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from probe.interventions import Intervention
    from probe.unlearning import ConceptScores, Judge, PromptGrid, Setting, UnlearnScores
    from sae import Dictionary

DEFAULT_METHOD = "saeuron"
VALIDATED = ("ua", "ua_clean", "ira", "cra", "artifacts", "artifacts_retain")
"""Scores of a setting on validation images that are kept."""
SHOWN_FILE = "shown.json"
"""Prompt of each image of an edit that is kept, by its file name."""


@dataclass(frozen=True)
class Sampling:
    """How images are generated.

    Attributes:
        steps: denoising steps.
        guidance: guidance scale.
        batch_size: images at a time.
    """

    steps: int
    guidance: float
    batch_size: int = 16


@dataclass(frozen=True)
class Edit:
    """An unlearning edit and what it was made with.

    Attributes:
        method: its name.
        factor: the target's factor.
        label: the target.
        setting: name of the setting.
        interventions: the edit.
        tried: what the search on validation found, best first; empty without a search.
    """

    method: str
    factor: str
    label: str
    setting: str
    interventions: tuple[Intervention, ...]
    tried: Sequence[Mapping[str, Any]] = ()

    @property
    def name(self) -> str:
        """Folder name (``edit_name``)."""
        return edit_name(self.method, self.factor, self.label)


def edit_name(method: str, factor: str, label: str) -> str:
    """Folder name of an edit: ``object-star``, or ``uce-object-star`` for another method than the default."""
    return ("" if method == DEFAULT_METHOD else f"{method}-") + f"{factor}-{label}"


def saeuron_edits(
    label: str, settings: Sequence[Setting], *, sae: Dictionary, scores: ConceptScores, timesteps: Sequence[int]
) -> dict[str, tuple[Intervention, ...]]:
    """SAeUron's edit of a concept for each setting, by the setting's name."""
    from probe.unlearning import saeuron

    return {
        setting_text(setting): saeuron(
            scores, label, dictionary=sae, site=sae.config.site, setting=setting, timesteps=timesteps
        )
        for setting in settings
    }


def choose_edit(
    method: str,
    factor: str,
    label: str,
    candidates: Mapping[str, tuple[Intervention, ...]],
    *,
    pipe: DiffusionPipeline,
    judge: Judge,
    sampling: Sampling,
    validation: PromptGrid,
    judge_one: bool = False,
    progress: Progress | None = None,
) -> Edit:
    """The edit of a target that is best on the validation grid (mean of clean UA, IRA and CRA).

    A single candidate is taken as it is, without generating anything, unless ``judge_one``.
    """
    from probe.unlearning import search

    if not candidates:
        raise InvalidOption(f"unlearn: there is no setting to try for {factor} {label!r}.")
    if len(candidates) == 1 and not judge_one:
        name = next(iter(candidates))
        return Edit(method, factor, label, name, candidates[name])
    found = search(
        pipe,
        judge,
        validation,
        (factor, label),
        candidates,
        domains=DOMAINS,
        progress=progress,
        **asdict(sampling),
    )
    tried = [
        {"setting": c.name, "objective": c.objective} | {score: c.scores[score].value for score in VALIDATED}
        for c in found
    ]
    best = found[0].name
    return Edit(method, factor, label, best, candidates[best], tried)


def run_edit(
    run: Run,
    edit: Edit,
    pipe: DiffusionPipeline,
    judge: Judge,
    grid: PromptGrid,
    before: np.ndarray,
    sampling: Sampling,
    *,
    shown: Sequence[int] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Generate the grid with the edit, judge it, save the recipe and the images that are shown.

    ``unlearn/NAME/`` gets a PNG for each shown row, the unedited one of that row in ``unedited/``, and their prompts.

    Returns:
        JSON values: judged labels, artifacts and change of each image, setting, paths relative to the run folder.
    """
    from probe.model import generate
    from probe.unlearning import Predictions
    from probe.unlearning.evaluate import pixel_change

    images = generate(
        pipe, grid.prompts, grid.seeds, interventions=edit.interventions, progress=progress, **asdict(sampling)
    )
    judged = Predictions.of(judge(images), DOMAINS)
    folder = run.new("unlearn", edit.name)
    for i in shown:
        save_png(shown_image(folder, i), images[i])
        save_png(shown_image(folder / "unedited", i), before[i])
    write_json(folder / SHOWN_FILE, {shown_image(folder, i).name: grid.prompts[i] for i in shown})
    save_edit(run.new("recipes", edit.name), edit, pipe)
    return {
        "factor": edit.factor,
        "label": edit.label,
        "method": edit.method,
        "setting": edit.setting,
        "site": " + ".join(dict.fromkeys(str(item.where) for item in edit.interventions)),
        "tried": list(edit.tried),
        "judged": {name: list(values) for name, values in judged.labels.items()},
        "artifact": judged.artifact.tolist(),
        "change": pixel_change(before, images).tolist(),
        "shown": [int(i) for i in shown],
        "recipe": f"recipes/{edit.name}",
    }


def shown_image(folder: Path, row: int) -> Path:
    """Where the picture of a row of the scored grid lies."""
    return folder / f"{row:06d}.png"


def score_record(grid: PromptGrid, record: Mapping[str, Any], *, n_boot: int = 1000) -> UnlearnScores:
    """Scores of a target from what ``run_edit`` or ``judge_baseline`` kept."""
    from probe.unlearning import Predictions, score

    factor = record["factor"]
    change = record.get("change")
    return score(
        factor,
        record["label"],
        grid.labels,
        Predictions(record["judged"], np.asarray(record["artifact"], bool)),
        cross=DOMAINS[1 - DOMAINS.index(factor)],
        prompts=grid.prompts,
        seeds=grid.seeds,
        change=None if change is None else np.asarray(change, float),
        n_boot=n_boot,
    )


def judge_baseline(judge: Judge, images: np.ndarray) -> dict[str, Any]:
    """What the judge sees in the unedited images, as ``run_edit`` keeps it."""
    from probe.unlearning import Predictions

    judged = Predictions.of(judge(images), DOMAINS)
    return {"judged": {name: list(v) for name, v in judged.labels.items()}, "artifact": judged.artifact.tolist()}


def result_rows(
    grid: PromptGrid, records: Sequence[Mapping[str, Any]], baseline: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """(rows, ratios) of a measurement: each target edited and unedited, then the averages of each factor."""
    from probe.unlearning import average

    rows: list[dict[str, Any]] = []
    by_factor: dict[str, list[UnlearnScores]] = {}
    for record in records:
        scores = score_record(grid, record)
        unedited = {"factor": record["factor"], "label": record["label"], **baseline}
        by_factor.setdefault(record["factor"], []).append(scores)
        extra = {"site": record["site"], "setting": record["setting"]}
        rows += [scores.row() | {"edit": True} | extra, score_record(grid, unedited).row() | {"edit": False}]
    ratios: dict[str, float] = {}
    for factor, found in by_factor.items():
        mean = average(found)
        if len(found) > 1:
            rows.append(mean.row() | {"edit": True, "n_targets": len(found)})
        ratios |= {f"{factor}_{name}": mean[name].value for name in ("ua", "ira", "cra", "artifacts")}
        ratios |= {f"{factor}_{name}": mean[name].value for name in ("artifacts_retain", "change_retain")}
    return rows, ratios


def setting_text(setting: Setting) -> str:
    """A setting in a few words, such as ``2 features, gamma -5, both``."""
    features = f"{setting.n_features} feature" + ("s" if setting.n_features > 1 else "")
    gain = f"gamma {setting.multiplier:g}" if setting.relative else f"multiplier {setting.multiplier:g}"
    steps = "" if setting.steps is None else f", steps {min(setting.steps)}-{max(setting.steps)}"
    margin = f", margin {setting.margin:g}" if setting.margin else ""
    return f"{features}, {gain}, {setting.branch}{steps}{margin}"


def setting_grid(base: Setting, n_features: Sequence[int], multipliers: Sequence[float]) -> list[Setting]:
    """Settings for every combination of feature count and multiplier."""
    return [replace(base, n_features=n, multiplier=m) for n in n_features for m in multipliers]


def save_edit(folder: Path, edit: Edit, pipe: DiffusionPipeline) -> None:
    """Save an edit as a recipe, in the place of one of an earlier setting.

    That one's JSON goes first: without it a folder holds no recipe.
    """
    from probe.interventions import Recipe

    for name in ("recipe.json", "recipe.safetensors"):
        (folder / name).unlink(missing_ok=True)
    about = {"method": edit.method, "target": [edit.factor, edit.label], "setting": edit.setting}
    Recipe.of(pipe, edit.interventions, about).save(folder)
