"""What all stages of the unlearning benchmark share, made once: recorded activations, dictionaries, concept scores, and
the unedited model's images.

A work folder is a run: ``store/``, ``sae/NAME-HASH/`` with the concept scores in ``scores/NAME-HASH/FACTOR/``,
``unlearn/unedited``, ``recipes/METHOD-FACTOR-LABEL/``, and a record of each finished stage in ``stages/``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.bench.unlearn.config import UnlearnBench
from apps.bench.unlearn.world import Compared, World, compared_rows, rows_for
from apps.progress import bar
from apps.runs import Run
from apps.stages import file_hash
from apps.unlearning import config as unlearn_config
from apps.unlearning import prompt_grids
from apps.unlearning.methods import Edits, Learned
from apps.unlearning.text_dictionary import caption_variants, text_dictionary
from apps.unlearning.unedited import unedited_images

if TYPE_CHECKING:
    from activations_store import ActivationStore
    from probe.interventions import Recipe
    from probe.model.pipeline import Pipeline
    from probe.unlearning import ConceptScores
    from sae import Dictionary

LEARNING = ("direction", "sae")
"""Kinds of methods that learn from recorded activations."""


@dataclass
class Bench:
    """A benchmark in its work folder; what it holds is loaded when it is first asked for.

    Attributes:
        config: what is measured.
        best_sae: for each factor the method whose edits ``random_direction`` controls.
    """

    config: UnlearnBench
    best_sae: dict[str, str] = field(default_factory=dict)

    @property
    def run(self) -> Run:
        """The work folder."""
        return Run(self.config.work)

    @cached_property
    def pipe(self) -> Pipeline:
        """The model."""
        return self.config.place.load()

    @cached_property
    def model_hash(self) -> str:
        """Hash of the model."""
        from probe.model import fingerprint
        from probe.model.fingerprint import fingerprint_hash

        return fingerprint_hash(fingerprint(self.pipe))

    @cached_property
    def world(self) -> World:
        """The world that is asked about."""
        c = self.config
        return c.place.open(
            self.pipe,
            n_recorded=c.n_recorded,
            n_seeds=c.n_seeds,
            objects=c.objects,
            styles=c.styles,
            batch_size=c.batch_size,
        )

    @cached_property
    def store(self) -> ActivationStore | None:
        """Recorded activations; None if no method needs them."""
        from activations_store import ActivationStore

        if not set(self.config.kinds) & set(LEARNING):
            return None
        return ActivationStore.open(self.run.store)

    @cached_property
    def drawn(self) -> np.ndarray:
        """Test rows that some target needs, ascending."""
        rows = [rows_for(self.world.test, *t, self.config.retain_seeds) for t in self.config.targets]
        return np.unique(np.concatenate([*rows, self.compared.other]))

    @cached_property
    def compared(self) -> Compared:
        """Test rows between which the distance is taken."""
        return compared_rows(self.world.test, self.config.retain_seeds)

    @cached_property
    def baseline_images(self) -> np.ndarray:
        """The unedited model's images of the drawn test rows, uint8 (n, H, W, 3)."""
        grid = self.world.test.select(self.drawn)
        with bar("unedited images") as progress:
            return unedited_images(self.run, self.pipe, grid, self.world.sampling, progress=progress)

    @cached_property
    def learned(self) -> Learned:
        """What methods are made from."""
        loaded: dict[str, Any] = {}
        scored: dict[tuple[str, str], ConceptScores] = {}

        def dictionary(name: str) -> Dictionary:
            if name not in loaded:
                from sae import load_sae

                loaded[name] = load_sae(self.run.sae(self.folder_name(name)))
            return loaded[name]

        def scores(name: str, factor: str) -> ConceptScores:
            if (name, factor) not in scored:
                from sae import ConceptScores

                scored[name, factor] = ConceptScores.load(self.scores_folder(name) / factor)
            return scored[name, factor]

        def best(factor: str, label: str) -> Edits:
            return self.recipe(self.best_sae[factor], factor, label).interventions

        steps = self.world.sampling.steps
        return Learned(self.pipe, self.store, self.world.labels, steps, dictionary, scores, best)

    def folder_name(self, name: str) -> str:
        """Name of a dictionary in the run; a changed configuration is another dictionary."""
        return f"{name}-{self.config.train_config(name).content_hash[:8]}"

    def scores_folder(self, name: str) -> Path:
        """Where a dictionary's concept scores lie, one folder for each factor."""
        return self.run.folder / "scores" / self.folder_name(name)

    def weights_hash(self, name: str) -> str:
        """Hash of a dictionary's weights."""
        return file_hash(self.run.sae(self.folder_name(name)) / "sae_weights.safetensors")

    def recipe_folder(self, name: str, factor: str, label: str) -> Path:
        """Where the edit of a method for a target lies."""
        return self.run.new("recipes", f"{name}-{factor}-{label}")

    def recipe(self, name: str, factor: str, label: str) -> Recipe:
        """The chosen edit of a method for a target."""
        from probe.interventions import Recipe

        return Recipe.load(self.recipe_folder(name, factor, label), self.pipe)


def prepare(bench: Bench) -> None:
    """Record, train, score concepts and draw the unedited images, as far as that is not done."""
    learn(bench)
    _ = bench.baseline_images


def learn(bench: Bench) -> None:
    """Record, train and score concepts, if a method needs it and as far as that is not done."""
    if set(bench.config.kinds) & set(LEARNING):
        store = _record(bench)
        for name in bench.config.dictionary_names():
            _train(bench, store, name)


def _record(bench: Bench) -> ActivationStore:
    from probe.capture import CapturePlan, collect

    world, sampling = bench.world, bench.world.sampling
    plan = CapturePlan.for_pipeline(
        bench.pipe,
        bench.config.place.constants.SITES,
        world.recorded.prompts,
        labels=world.recorded.labels,
        steps=sampling.steps,
        guidance=sampling.guidance,
        batch_size=sampling.batch_size,
    )
    with bar("record activations") as progress:
        return collect(bench.pipe, plan, bench.run.store, progress=progress)


def _train(bench: Bench, store: ActivationStore, name: str) -> None:
    from sae import load_sae, score_concepts, train

    folder, config = bench.run.new("sae", bench.folder_name(name)), bench.config.train_config(name)
    with bar(f"train {name}", "step") as progress:
        if config.site in unlearn_config.TEXT.values():
            texts, rows = caption_variants(bench.world.recorded), bench.run.folder / "text" / bench.folder_name(name)
            store = text_dictionary(
                bench.pipe, config, texts, rows, folder, progress=lambda at: progress(at.batch, at.n_batches)
            ).store
        else:
            train(store, config, folder, progress=lambda at: progress(at.batch, at.n_batches))
    out = bench.scores_folder(name)
    if not all((out / factor / "scores.json").is_file() for factor in prompt_grids.DOMAINS):
        for factor, scores in score_concepts(load_sae(folder), store, list(prompt_grids.DOMAINS)).items():
            scores.save(out / factor)
