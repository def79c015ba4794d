"""How much an unlearning benchmark is, counted before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from apps.bench.unlearn.prepare import Bench
from apps.bench.unlearn.world import rows_for
from apps.unlearning.candidates import Tuned
from apps.unlearning.methods import method

_IMAGES_AN_ITERATION = 2  # of ESD: half a generation, four evaluations and a backward pass, one state at a time


@dataclass(frozen=True)
class Estimate:
    """How much a benchmark is, before it runs.

    Attributes:
        stages: (method, target) pairs.
        validation_images: drawn to choose settings.
        test_images: drawn with edits.
        unedited_images: drawn once, with those that are recorded.
        attack_images: drawn by attacks, and what their searches cost beside, in images.
        training: what methods that train on the model's own samples cost, in images.
    """

    stages: int
    validation_images: int
    test_images: int
    unedited_images: int
    attack_images: int
    training: int

    @property
    def images(self) -> int:
        """All of them."""
        drawn = self.validation_images + self.test_images + self.unedited_images
        return drawn + self.attack_images + self.training

    def text(self, seconds_each: float | None, workers: int) -> str:
        """For people; with hours if the time of an image on one thread is known."""
        lines = [
            f"{self.stages} stages: {self.images:,} images ({self.unedited_images:,} unedited, "
            f"{self.validation_images:,} to choose settings, {self.test_images:,} to score, "
            f"{self.attack_images:,} or as much work for attacks, {self.training:,} for training)"
        ]
        if seconds_each is not None:
            hours = self.images * seconds_each / workers / 3600
            lines.append(
                f"about {hours:.1f} hours with {workers} process{'es' if workers > 1 else ''} on as many quiet cores, "
                f"at {seconds_each:.2f} s an image; edits that make an image dearer come on top"
            )
        return "\n".join(lines)


def estimate(bench: Bench) -> Estimate:
    """Counts what a run of everything would draw."""
    config, test = bench.config, bench.world.test
    stages = validated = drawn = trained = 0
    for name in config.methods:
        m = method(name)
        for target in config.targets:
            settings = config.settings(m, *target)
            if not settings:
                continue
            stages += 1
            if len(settings) > 1 or m.kind == "sae":
                validated += len(settings) * sum(config.validation)
            trained += sum(_IMAGES_AN_ITERATION * s.setting.iterations for s in settings if isinstance(s, Tuned))
            if name != "no_edit":
                drawn += len(rows_for(test, *target, config.retain_seeds)) + config.batch_size
    unedited = len(bench.drawn) + (config.n_recorded if config.dictionary_names() else 0)
    each = config.attack_images * (1 + len(config.attacks)) + _searched(config.attacks, 2 * bench.world.sampling.steps)
    return Estimate(stages, validated, drawn, unedited, round(stages * each) if config.attacks else 0, trained)


def _searched(attacks: Sequence[str], rows_an_image: int) -> float:
    """What the searches of some attacks cost, in images; a backward pass counts as two forward passes."""
    from probe.unlearning.attacks import EmbeddingBudget, TokenBudget

    e, t = EmbeddingBudget(), TokenBudget()
    rows = {
        "embedding": e.restarts * (e.iterations * e.batch * 3 + 4 * e.validation),
        "token_search": t.rounds * (3 + t.candidates) * t.images * t.n_steps,
    }
    return sum(rows.get(name, 0) for name in attacks) / rows_an_image
