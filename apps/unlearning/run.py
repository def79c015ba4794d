"""Unlearn canvas's concepts with what a run has learned, by any method of ``unlearn_methods``."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from activations_store import ActivationStore
from apps.checks import check_dictionary, check_model
from apps.commands.features import bundle_of
from apps.errors import InvalidOption
from apps.progress import bar
from apps.stages import Stages, file_hash
from apps.unlearning import edits as unlearning
from apps.unlearning import prompt_grids
from apps.unlearning.candidates import Candidate, Features
from apps.unlearning.edits import setting_grid, setting_text
from apps.unlearning.methods import Edits, Learned, method, with_dictionary
from apps.unlearning.unedited import unedited_images
from probe.canvas import FACTORS
from probe.unlearning import OBJECTS, STYLES, Setting
from sae import load_sae

if TYPE_CHECKING:
    from apps.runs import Run

Settings = dict[str, Candidate]
"""Settings to try, by name."""
_THE_RUNS = "dictionary"  # a run's settings need no name for the one dictionary there is


def unlearn_targets(
    options: argparse.Namespace, target_run: Run, targets: list[tuple[str, str]], pipe: Any, judge: Any
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows and ratios over all targets; each target is a stage, so an interrupted run goes on."""
    store = ActivationStore.open(target_run.store)
    check_model(pipe, store.fingerprint, store.path)
    if "guidance" not in store.plan:
        raise InvalidOption(
            f"unlearn: {str(store.path)!r} was collected from real images, so it does not say how the model draws; "
            "collect from prompts."
        )
    # The store may hold fewer steps than its generations had.
    sampling = unlearning.Sampling(int(store.plan["steps"]), float(store.plan["guidance"]), options.batch_size)
    learned, dictionary_hash = learned_of(options, target_run, store, pipe, sampling.steps)
    grid = prompt_grids.scored_grid(options.seeds)
    seen = set(grid.prompts) | set(store.samples.column("prompt").to_pylist())
    with bar("unedited") as progress:
        before = unedited_images(target_run, pipe, grid, sampling, progress=progress)
    baseline = unlearning.judge_baseline(judge, before)
    stages = Stages(target_run, print, len(targets))
    records = []
    for factor, label in targets:
        settings = candidate_settings(options, factor, label, learned)
        key = {
            "method": options.method,
            "dictionary": dictionary_hash,
            "store": store.hashes,
            "grid": prompt_grids.grid_record(grid),
            "settings": {name: asdict(setting) for name, setting in settings.items()},
            "sampling": asdict(sampling),
            "target": [factor, label],
        }

        def work(factor: str = factor, label: str = label, settings: Settings = settings) -> dict[str, Any]:
            with bar(f"choose a setting for {label}") as progress:
                fit = method(options.method).fit
                edit = unlearning.choose_edit(
                    options.method,
                    factor,
                    label,
                    {name: fit(learned, factor, label, setting) for name, setting in settings.items()},
                    pipe=pipe,
                    judge=judge,
                    sampling=sampling,
                    validation=prompt_grids.validation_grid(factor, label, n_target=12, n_retain=36, exclude=seen),
                    progress=progress,
                )
            with bar(f"without {label}") as progress:
                shown = prompt_grids.shown_rows(grid, factor, label, 10)
                return unlearning.run_edit(
                    target_run, edit, pipe, judge, grid, before, sampling, shown=shown, progress=progress
                )

        name = unlearning.edit_name(options.method, factor, label)
        outputs = [target_run.new("recipes", name) / "recipe.json"]
        records.append(stages.do(f"unlearn-{name}", f"unlearn {factor} {label}", key, work, outputs=outputs))
    return unlearning.result_rows(grid, records, baseline)


def needs_dictionary(name: str) -> bool:
    """Whether a method edits features, or directions at a dictionary's site; unknown methods are refused."""
    return method(name).kind in ("sae", "direction") or name == "random_direction"


def learned_of(
    options: argparse.Namespace, target_run: Run, store: ActivationStore, pipe: Any, steps: int
) -> tuple[Learned, str | None]:
    """What methods are made from: a run's dictionary of ``--sae`` under every name; and its weights' hash."""
    if not needs_dictionary(options.method):
        return Learned(pipe, store, FACTORS, steps, _absent, _absent, _absent), None
    folder = target_run.sae(options.sae)
    name = next(key for key, path in target_run.saes().items() if path == folder)
    sae = load_sae(folder)
    check_dictionary(sae, folder, store)
    bundle = bundle_of(target_run, name, store)

    def pushed(factor: str, label: str) -> Edits:
        setting = Features((_THE_RUNS,), settings_of(options, factor)[0])
        return method("saeuron").fit(learned, factor, label, setting)

    learned = Learned(pipe, store, FACTORS, steps, lambda _: sae, lambda _, factor: bundle.scores(factor), pushed)
    return learned, file_hash(folder / "sae_weights.safetensors")


def _absent(*asked: str) -> Any:
    raise InvalidOption(f"unlearn: the method asked for {asked}, and was given no dictionary.")


def candidate_settings(options: argparse.Namespace, factor: str, label: str, learned: Learned) -> Settings:
    """The settings to try: of the options for methods that push features, else the benchmark's at this dictionary.

    Raises:
        InvalidOption: the method has no settings for the factor.
    """
    m = method(options.method)
    if m.takes is Features:
        return {setting_text(s): Features((_THE_RUNS,), s) for s in settings_of(options, factor)}
    found = m.settings(factor, label)
    if needs_dictionary(options.method):
        site = learned.dictionary(_THE_RUNS).config.site
        found = [with_dictionary(setting, _THE_RUNS, site) for setting in found]
    if not found:
        raise InvalidOption(f"unlearn: {options.method} has no settings for the factor {factor!r}.")
    return {setting.name: setting for setting in found}


def settings_of(options: argparse.Namespace, factor: str) -> list[Setting]:
    """The settings to try for a factor: the paper's, or those of the options."""
    paper = OBJECTS if factor == "object" else STYLES
    base = replace(paper, branch=options.branch, relative=not options.plain, steps=options.edit_steps)
    return setting_grid(base, options.n_features or [base.n_features], options.multiplier or [base.multiplier])
