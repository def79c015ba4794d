"""Run a model with and without edits over a prompt grid, judge the images, score the edits.

Any judge will do that takes uint8 images and returns a verdict with ``labels(factor)`` and ``is_artifact``.
The unedited model is generated and judged once and shared by all targets; its own scores are the ceiling to
read the edits against.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from probe.errors import InvalidRequest, UnknownConcept
from probe.interventions.intervention import Intervention
from probe.model.generate import Progress, generate
from probe.model.pipeline import Pipeline
from probe.unlearning.grid import PromptGrid
from probe.unlearning.protocol import Predictions, UnlearnScores, average, score

Target = tuple[str, str]
"""(factor, label), for example ("style", "mosaic")."""


class Verdict(Protocol):
    """What a judge says about N images."""

    @property
    def is_artifact(self) -> Any:
        """(N,) bool."""
        ...

    def labels(self, factor: str) -> Any:
        """The most likely label of each image, N texts."""
        ...


Judge = Callable[[np.ndarray], Verdict]
"""Takes uint8 images (N, height, width, 3)."""


@dataclass(frozen=True)
class TargetResult:
    """One target.

    Attributes:
        scores: of the edited model.
        baseline: the same scores of the unedited model: its UA is the judge's and model's own error.
        images: uint8 (N, height, width, 3), edited, in the order of the grid; None unless kept.
        judged: what the judge saw in them.
    """

    scores: UnlearnScores
    baseline: UnlearnScores
    images: np.ndarray | None
    judged: Predictions


@dataclass(frozen=True)
class Evaluation:
    """All targets.

    Attributes:
        grid: what was prompted.
        results: for each (factor, label), its result.
        averages: for each factor, the mean over its targets.
        baseline_images: uint8 (N, height, width, 3), unedited.
        baseline_judged: what the judge saw in them.
    """

    grid: PromptGrid
    results: Mapping[Target, TargetResult]
    averages: Mapping[str, UnlearnScores]
    baseline_images: np.ndarray
    baseline_judged: Predictions

    def rows(self) -> list[dict[str, Any]]:
        """JSON rows: every target and its baseline, then the averages."""
        rows = []
        for result in self.results.values():
            rows += [result.scores.row() | {"edit": True}, result.baseline.row() | {"edit": False}]
        return rows + [item.row() | {"edit": True} for item in self.averages.values()]

    def ratios(self) -> dict[str, float]:
        """``object_ua``, ``object_ira``, ``object_cra``, ``object_artifacts`` and so on for each factor:
        averages over targets.
        """
        return {
            f"{factor}_{name}": item[name].value
            for factor, item in self.averages.items()
            for name in ("ua", "ira", "cra", "artifacts")
        }


def evaluate(
    pipe: Pipeline,
    judge: Judge,
    grid: PromptGrid,
    edits: Mapping[Target, Sequence[Intervention]],
    *,
    domains: tuple[str, str] = ("object", "style"),
    steps: int | None = None,
    guidance: float | None = None,
    batch_size: int = 16,
    baseline_images: np.ndarray | None = None,
    keep_images: bool = True,
    n_boot: int = 1000,
    progress: Progress | None = None,
) -> Evaluation:
    """Score edits on a grid.

    Args:
        pipe: the model.
        judge: see ``Judge``.
        grid: prompts, seeds and prompted labels; it must cross both domains.
        edits: for each target (factor, label), the interventions that unlearn it.
        domains: the two factors that the protocol is about.
        steps, guidance, batch_size: as ``generate``.
        baseline_images: the unedited images of this grid at the same settings, if they exist already.
        keep_images: whether edited images are returned.
        n_boot: bootstrap replicates.
        progress: called with (done, total) images over the whole evaluation.

    Raises:
        InvalidRequest, UnknownConcept: a target is not in the grid, before anything is generated.
    """
    _check_targets(grid, edits, domains)
    n, n_runs = len(grid), len(edits) + (baseline_images is None)
    done = 0

    def run(interventions: Sequence[Intervention]) -> np.ndarray:
        nonlocal done
        start = done

        def report(count: int, total: int) -> None:
            if progress is not None:
                progress(start + count, n * n_runs)

        images = generate(
            pipe,
            grid.prompts,
            grid.seeds,
            steps=steps,
            guidance=guidance,
            batch_size=batch_size,
            interventions=interventions,
            progress=report,
        )
        done += n
        return images

    before = run(()) if baseline_images is None else baseline_images
    if len(before) != n:
        raise InvalidRequest(f"evaluate: {len(before)} baseline images for a grid of {n}.")
    judged_before = Predictions.of(judge(before), domains)
    results: dict[Target, TargetResult] = {}
    for (factor, label), interventions in edits.items():
        images = run(interventions)
        judged = Predictions.of(judge(images), domains)
        change = pixel_change(before, images)
        results[factor, label] = TargetResult(
            scores=_score(grid, factor, label, domains, judged, change, n_boot),
            baseline=_score(grid, factor, label, domains, judged_before, None, n_boot),
            images=images if keep_images else None,
            judged=judged,
        )
    averages = {
        factor: average([result.scores for (f, _), result in results.items() if f == factor])
        for factor in dict.fromkeys(factor for factor, _ in results)
    }
    return Evaluation(grid, results, averages, before, judged_before)


def pixel_change(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(N,) mean absolute difference of uint8 images, in [0, 1].

    Raises:
        InvalidRequest: the shapes differ.
    """
    if before.shape != after.shape:
        raise InvalidRequest(f"pixel_change: images of {before.shape} and {after.shape}; expected the same shape.")
    difference = np.abs(before.astype(np.int16) - after.astype(np.int16))
    return difference.reshape(len(before), -1).mean(1) / 255.0


@dataclass(frozen=True)
class Candidate:
    """A setting that was tried.

    Attributes:
        name: of the setting.
        objective: what was maximised.
        scores: on the validation grid.
    """

    name: str
    objective: float
    scores: UnlearnScores


def balanced(scores: UnlearnScores) -> float:
    """The default objective: mean of clean UA, IRA and CRA, so that wrecking the image does not count as
    forgetting.

    SAeUron's own search maximises (UA + IRA) / 2 (S4).
    """
    return float(np.mean([scores[name].value for name in ("ua_clean", "ira", "cra")]))


def search(
    pipe: Pipeline,
    judge: Judge,
    grid: PromptGrid,
    target: tuple[str, str | Sequence[str]],
    candidates: Mapping[str, Sequence[Intervention]],
    *,
    objective: Callable[[UnlearnScores], float] = balanced,
    baseline_images: np.ndarray | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> list[Candidate]:
    """Try settings on a validation grid; never use the prompts and seeds that the result is reported on.

    Args:
        pipe, judge, grid: as ``evaluate``; the grid holds validation prompts and seeds.
        target: (factor, label); several labels are unlearned at once.
        candidates: for each name, the interventions to try.
        objective: what to maximise.
        baseline_images: unedited images of the grid; the change of pixels is then measured against them.
        progress: called with (done, total) images over all candidates.
        **settings: ``domains``, ``steps``, ``guidance``, ``batch_size``, as ``evaluate``.

    Returns:
        All candidates, best first; equal ones in the order given.
    """
    if not candidates:
        raise InvalidRequest("search: there are no candidates.")
    found: list[Candidate] = []
    domains = settings.pop("domains", ("object", "style"))
    factor, labels = target
    _check_targets(grid, [(factor, label) for label in ([labels] if isinstance(labels, str) else labels)], domains)
    for i, (name, interventions) in enumerate(candidates.items()):

        def report(done: int, total: int, first: int = i * len(grid)) -> None:
            if progress is not None:
                progress(first + done, len(candidates) * len(grid))

        images = generate(pipe, grid.prompts, grid.seeds, interventions=interventions, progress=report, **settings)
        change = None if baseline_images is None else pixel_change(baseline_images, images)
        scores = _score(grid, *target, domains, Predictions.of(judge(images), domains), change, 0)
        found.append(Candidate(name, objective(scores), scores))
    return sorted(found, key=lambda item: -item.objective)


def _score(
    grid: PromptGrid,
    factor: str,
    label: str | Sequence[str],
    domains: tuple[str, str],
    judged: Predictions,
    change: np.ndarray | None,
    n_boot: int,
) -> UnlearnScores:
    cross = domains[1] if factor == domains[0] else domains[0]
    return score(
        factor,
        label,
        grid.labels,
        judged,
        cross=cross,
        prompts=grid.prompts,
        seeds=grid.seeds,
        change=change,
        n_boot=n_boot,
    )


def _check_targets(grid: PromptGrid, targets: Collection[Target], domains: tuple[str, str]) -> None:
    if not targets:
        raise InvalidRequest("evaluate: there are no edits; give at least one target.")
    for domain in domains:
        grid.targets(domain)
    for factor, label in targets:
        if factor not in domains:
            raise InvalidRequest(f"evaluate: target factor {factor!r}; expected one of {', '.join(domains)}.")
        known = grid.targets(factor)
        if label not in known or len(known) < 2:
            raise UnknownConcept(
                f"evaluate: {factor} {label!r} must be in the grid beside others; it has {', '.join(known)}."
            )
