"""Forgotten or hidden? What an edited model still holds of a concept that it no longer draws.

Attacks (``attacks``) ask whether the concept can be brought back. An audit looks inside, at three things that an
unlearner need not touch to score well:

    probe        can the concept be read from the activations?                     ``audit_probe.py``
    denoising    are images of the concept still explained best by its name?       ``audit_denoising.py``
    activity     do the features that were edited still fire for its prompts?      ``audit_recording.py``

Every row has a value, an interval, and the null that it must be compared with. There is no verdict: a filter of prompts
leaves all three as they were, an edit of the weights may change some, and what counts as forgotten is for the reader.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from probe.errors import InvalidRequest
from probe.interventions.intervention import Intervention
from probe.model.pipeline import Pipeline
from probe.unlearning.attacks.placeholder import check_contains, embedding_table, substituted, word_tokens
from probe.unlearning.attacks.task import AttackTask
from probe.unlearning.audit_denoising import classify_images
from probe.unlearning.audit_probe import Reading, read, split
from probe.unlearning.audit_recording import Features, Recorded, edited_features, record
from probe.unlearning.audit_result import AuditResult, AuditRow

SITES = ("mid_block", "up_blocks.0", "up_blocks.1")
"""Sites of a UNet that are read if none are named."""


@dataclass(frozen=True, eq=False)
class AuditTask:
    """One edited model, one concept, and what it is tested on.

    Attributes:
        pipe: the pipeline.
        interventions: the edit.
        factor: the concept's factor, such as "object".
        label: the concept, such as "star".
        concept_prompts: n prompts that ask for the concept, ``word`` in each.
        other_prompts: n prompts that ask for other labels of the factor.
        images: uint8 (M, height, width, 3) that show the concept.
        captions: M captions of them, ``word`` once in each.
        other_images: uint8 images that show other labels of the factor.
        other_captions: their captions with ``word`` where their own label is named.
        words: labels that compete for an image, ``word`` among them.
        steps: denoising steps.
        guidance: guidance scale.
        sites: sites of the denoiser to read.
        n_train: prompts of each kind on which probes are trained; the rest are tests.
        batch_size: images at a time.
        word: how prompts and captions name the concept; the label if None.
        seed: of images, noise and nulls.
        n_null: probes on shuffled labels, for each place.
    """

    pipe: Pipeline
    interventions: Sequence[Intervention]
    factor: str
    label: str
    concept_prompts: Sequence[str]
    other_prompts: Sequence[str]
    images: np.ndarray
    captions: Sequence[str]
    other_images: np.ndarray
    other_captions: Sequence[str]
    words: Sequence[str]
    steps: int
    guidance: float
    sites: Sequence[str] = SITES
    n_train: int = 24
    batch_size: int = 16
    word: str | None = None
    seed: int = 0
    n_null: int = 10

    def __post_init__(self) -> None:
        n = len(self.concept_prompts)
        if n != len(self.other_prompts) or not 2 <= self.n_train <= n - 2:
            raise InvalidRequest(
                f"audit of {self.label!r}: {n} prompts of the concept, {len(self.other_prompts)} others, of which "
                f"{self.n_train} for training; expected as many of each, and at least 2 for training and 2 for tests."
            )

    @property
    def name(self) -> str:
        """The word that names the concept in prompts."""
        return self.word or self.label


def audit(task: AuditTask, *, progress: Callable[[str, int, int], None] | None = None) -> AuditResult:
    """Measure everything. Costs five generations of n images each and the denoising errors of the images, twice.

    Args:
        task: what is audited.
        progress: called with (part, done, total).

    Raises:
        InvalidRequest: prompts or captions without the word, or too few of them.
        UnknownSite: a site does not exist.
    """
    tokens = word_tokens(task.pipe, task.name)
    check_contains(task.pipe, [*task.concept_prompts, *task.captions, *task.other_captions], task.name, tokens)
    features = edited_features(task.pipe, task.interventions)
    n = len(task.concept_prompts)

    def run(part: str, interventions: Sequence[Intervention], prompts: Sequence[str], first_seed: int) -> Recorded:
        return record(
            task.pipe,
            interventions,
            task.sites,
            prompts,
            [task.seed * 1_000_003 + first_seed + i for i in range(n)],
            steps=task.steps,
            guidance=task.guidance,
            batch_size=task.batch_size,
            features=features,
            progress=_of_part(progress, part),
        )

    runs = {
        (model, kind): run(f"{model}, {kind} prompts", edits, prompts, seed)
        for model, edits in (("unedited", ()), ("edited", task.interventions))
        for kind, prompts, seed in (("concept", task.concept_prompts, 0), ("other", task.other_prompts, n))
    }
    with substituted(task.pipe, tokens, _meaningless(task, len(tokens))):
        meaningless = run("edited, meaningless word", task.interventions, task.concept_prompts, 0)
    rows = [*_probe_rows(task, runs, meaningless), *_activity_rows(task, runs, features)]
    rows += _denoising_rows(task, progress)
    return AuditResult(task.factor, task.label, rows, runs["edited", "concept"].images, 1 / len(task.words))


def _of_part(progress: Callable[[str, int, int], None] | None, part: str) -> Callable[[int, int], None] | None:
    """Progress of one part."""
    return None if progress is None else lambda done, total: progress(part, done, total)


def _meaningless(task: AuditTask, k: int) -> torch.Tensor:
    """Random embeddings with the mean and spread of the vocabulary's, (k, channels)."""
    table = embedding_table(task.pipe).weight.detach().float()
    drawn = torch.randn((k, table.shape[1]), generator=torch.Generator("cpu").manual_seed(task.seed + 5))
    return table.mean(0) + table.std(0) * drawn.to(table)


def _probe_rows(task: AuditTask, runs: dict[tuple[str, str], Recorded], meaningless: Recorded) -> list[AuditRow]:
    rows = []
    for site, found in runs["unedited", "concept"].means.items():
        for step in range(len(found)):
            halves = {
                model: split(
                    runs[model, "concept"].means[site][step], runs[model, "other"].means[site][step], task.n_train
                )
                for model in ("unedited", "edited")
            }
            random = split(meaningless.means[site][step], runs["edited", "other"].means[site][step], task.n_train)
            control = read(random.train, random.test, n_null=0, n_boot=2, seed=task.seed).accuracy
            for trained, tested in (("unedited", "unedited"), ("unedited", "edited"), ("edited", "edited")):
                got: Reading = read(
                    halves[trained].train, halves[tested].test, n_null=task.n_null, seed=task.seed + step
                )
                rows.append(
                    AuditRow(
                        "probe",
                        site,
                        step,
                        trained,
                        tested,
                        got.accuracy,
                        got.low,
                        got.high,
                        got.null,
                        got.null_high,
                        control if trained == "edited" else float("nan"),
                        got.auc,
                        got.recall,
                        2 * len(halves[tested].test[0]),
                    )
                )
    return rows


def _activity_rows(
    task: AuditTask, runs: dict[tuple[str, str], Recorded], features: Sequence[Features]
) -> list[AuditRow]:
    rows = []
    rng = np.random.default_rng(task.seed)
    for k, item in enumerate(features):
        shown = ", ".join(map(str, item.features[:8])) + (", ..." if len(item.features) > 8 else "")
        for model in ("unedited", "edited"):
            concept, other = (runs[model, kind].activity[k] for kind in ("concept", "other"))
            for step in range(len(concept)):
                low, high = _interval(concept[step], rng)
                _, null_high = _interval(other[step], rng)
                rows.append(
                    AuditRow(
                        "activity",
                        f"{item.site} [{shown}]",
                        step,
                        "",
                        model,
                        float(concept[step].mean()),
                        low,
                        high,
                        float(other[step].mean()),
                        null_high,
                        n=concept.shape[1],
                    )
                )
    return rows


def _denoising_rows(task: AuditTask, progress: Callable[[str, int, int], None] | None) -> list[AuditRow]:
    rows = []
    base = AttackTask(
        task.pipe,
        (),
        task.factor,
        task.label,
        [task.concept_prompts[0]],
        [0],
        task.images,
        task.steps,
        task.guidance,
        task.batch_size,
        captions=task.captions,
        word=task.word,
    )
    rng, at = np.random.default_rng(task.seed), list(task.words).index(task.name)
    for model, edits in (("unedited", ()), ("edited", task.interventions)):
        named = []
        for kind, images, captions in (
            ("concept", task.images, task.captions),
            ("other", task.other_images, task.other_captions),
        ):
            found = classify_images(
                replace(base, interventions=edits, references=images, captions=captions),
                task.words,
                seed=task.seed,
                progress=_of_part(progress, f"{model}, {kind} images"),
            )
            best = found.log_posterior >= found.log_posterior.max(1, keepdims=True) - 1e-9
            named.append(best[:, at] / best.sum(1))  # words that the edited model cannot tell apart share the image
        low, high = _interval(named[0], rng)
        _, null_high = _interval(named[1], rng)
        rows.append(
            AuditRow(
                "denoising",
                "",
                -1,
                "",
                model,
                float(named[0].mean()),
                low,
                high,
                float(named[1].mean()),
                null_high,
                n=len(named[0]),
            )
        )
    return rows


def _interval(values: np.ndarray, rng: np.random.Generator, n_boot: int = 500) -> tuple[float, float]:
    """95 % interval of a mean by resampling."""
    draws = values[rng.integers(len(values), size=(n_boot, len(values)))].mean(1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)
