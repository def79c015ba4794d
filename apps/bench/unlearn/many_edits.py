"""SAeUron's edit of several concepts: all at once, or one after another.

joint        the features of all concepts in one edit at each site, found on the unedited model
sequence     an edit for each concept; the features of each are found on the model with the earlier edits in place,
             whose activations are recorded anew
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from apps.bench.unlearn.prepare import Bench
from apps.progress import bar
from apps.stages import key_hash
from apps.unlearning.config import TEXT
from apps.unlearning.methods import Edits

if TYPE_CHECKING:
    from activations_store import ActivationStore
    from apps.unlearning.candidates import Features
    from probe.unlearning import ConceptScores
    from sae import Dictionary


@dataclass
class SetEdits:
    """Edits of sets of concepts, with what a benchmark has learned.

    Attributes:
        bench: the benchmark, its dictionaries trained and scored.
        n_rescored: prompts that are recorded from an edited model.
    """

    bench: Bench
    n_rescored: int
    _sequences: dict[tuple[str, str], list[Edits]] = field(default_factory=dict)

    def joint(self, factor: str, labels: Sequence[str], setting: Features) -> Edits:
        """One edit at each site."""
        return self._edit(setting, labels, {used: self.bench.learned.scores(used, factor) for used in setting.uses})

    def sequence(self, factor: str, labels: Sequence[str], setting: Features) -> Edits:
        """Edit after edit; what was found for the first of the labels with the same setting is kept."""
        found = self._sequences.setdefault((factor, setting.name), [])
        for number in range(len(found), len(labels)):
            scores = self._rescored(factor, labels[:number], setting, sum(found, ()))
            found.append(self._edit(setting, [labels[number]], scores))
        return sum(found[: len(labels)], ())

    def _rescored(self, factor: str, done: Sequence[str], setting: Features, edits: Edits) -> dict[str, ConceptScores]:
        """Concept scores of the model with edits in place, by dictionary; the unedited model's where there are none.

        Features of the text encoder keep their scores: captions are what they were.
        """
        from sae import ConceptScores, score_concepts

        learned = self.bench.learned
        scores = {used: learned.scores(used, factor) for used in setting.uses}
        dictionaries: dict[str, Dictionary] = {used: learned.dictionary(used) for used in setting.uses}
        seen = {used: d for used, d in dictionaries.items() if d.config.site not in TEXT.values()}
        if not edits or not seen:
            return scores
        key = {
            "model": self.bench.model_hash,
            "done": list(done),
            "setting": asdict(setting),
            "dictionaries": {used: self.bench.weights_hash(used) for used in setting.uses},
            "store": learned.recorded.hashes,
            "n": self.n_rescored,
        }
        folder = self.bench.run.folder / "many" / f"{factor}-{len(done)}-{key_hash(key)[:12]}"
        if not all((folder / used / factor / "scores.json").is_file() for used in seen):
            store = self._record(list(dict.fromkeys(d.config.site for d in seen.values())), edits, folder / "store")
            for used, dictionary in seen.items():
                score_concepts(dictionary, store, [factor])[factor].save(folder / used / factor)
            shutil.rmtree(store.path)  # large, and of no further use
        return scores | {used: ConceptScores.load(folder / used / factor) for used in seen}

    def _record(self, sites: Sequence[str], edits: Edits, folder: Path) -> ActivationStore:
        from probe.capture import CapturePlan, collect
        from probe.interventions import intervene

        pipe, world = self.bench.pipe, self.bench.world
        prompts = world.recorded.first(self.n_rescored)
        plan = CapturePlan.for_pipeline(
            pipe,
            sites,
            prompts.prompts,
            labels=prompts.labels,
            steps=world.sampling.steps,
            guidance=world.sampling.guidance,
            batch_size=world.sampling.batch_size,
            images=False,
        )
        with bar("record the edited model") as progress, intervene(pipe, edits):
            return collect(pipe, plan, folder, progress=progress)

    def _edit(self, setting: Features, labels: Sequence[str], scores: dict[str, ConceptScores]) -> Edits:
        from probe.unlearning import saeuron

        learned = self.bench.learned
        edits: Edits = ()
        for used in setting.uses:
            dictionary = learned.dictionary(used)
            edits += saeuron(
                scores[used],
                list(labels),
                dictionary=dictionary,
                site=dictionary.config.site,
                setting=setting.setting,
                timesteps=None if dictionary.config.site in TEXT.values() else learned.timesteps,
            )
        return edits
