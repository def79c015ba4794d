"""Does the model notice when a site carries a dictionary's reconstruction instead of its own rows?

Explained variance weighs all directions alike, the model does not. So the reconstruction is put in place (``sae``),
beside the two things that a dictionary must beat: the site's mean row at that step (``mean``), and nothing (``zero``).

Loss, at every step of an unedited generation, at its own x_t:

    L_v(t) = mean squared difference between the denoiser's output with v in place and without

over channels, cells and guidance branches, in what the model predicts (noise, v, sample or flow). The unedited model
has L_clean = 0, and

    loss recovered = (L_ablate - L_v) / (L_ablate - L_clean)        ablate: mean, or zero

is 1 where the model does not notice and 0 where the dictionary is as bad as the ablation; below 0 it is worse. At one
x_t and level the noise in a prediction is an affine function of it (probe/model/prediction.py), so the fraction is the
same for the error of eps, which is given too. Over steps, L is summed before it is divided.

Images, with v in place at the chosen steps, same prompts and noise: what the judge reads in them, as a share of what
it reads in the unedited ones, and how far the pixels moved.

The mean row is over the samples, cells and branches of the same unedited run. Intervals resample prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apps.dictionaries.splice import Means, Rows, Splice, reconstruction, zero
from apps.errors import InvalidOption
from apps.measurement import Interval
from apps.progress import Progress
from probe.interventions import Intervention, intervene
from probe.model import StepClock, denoiser, generate, generation_defaults
from probe.model.pipeline import Pipeline
from probe.model.prediction import noise_of, prediction_type
from probe.model.schedule import schedule_of, training_level
from sae import OpenedSAE

VARIANTS = ("sae", "mean", "zero")
_RESAMPLES = 1000


@dataclass
class SiteResult:
    """What happened at one site.

    Attributes:
        loss: for each variant (n_prompts, n_steps), of the model's own prediction.
        eps_loss: the same for the predicted noise.
        images: for each variant (n_prompts, H, W, 3) uint8, with the variant in place at the chosen steps.
    """

    loss: dict[str, np.ndarray]
    eps_loss: dict[str, np.ndarray]
    images: dict[str, np.ndarray] = field(default_factory=dict)

    def recovered(self, ablation: str, steps: Sequence[int] | None = None, variant: str = "sae") -> Interval:
        """Loss recovered over some steps together (None = all), with its interval over prompts.

        NaN where the ablation itself changes nothing.
        """
        at = slice(None) if steps is None else list(steps)
        kept, lost = self.loss[variant][:, at].sum(1), self.loss[ablation][:, at].sum(1)
        return _ratio_interval(lost - kept, lost)

    def change(self, clean: np.ndarray, variant: str) -> float:
        """Mean absolute difference from the unedited images, in [0, 1]."""
        return float(np.abs(self.images[variant].astype(np.float32) - clean).mean() / 255)


@dataclass
class Substitution:
    """A substitution experiment.

    Attributes:
        sites: results by site.
        log_snr: (n_steps,).
        at_steps: steps at which images were made with a variant in place.
        clean: (n_prompts, H, W, 3) uint8, unedited.
    """

    sites: dict[str, SiteResult]
    log_snr: tuple[float, ...]
    at_steps: tuple[int, ...]
    clean: np.ndarray


def substitute(
    pipe: Pipeline,
    dictionaries: Mapping[str, OpenedSAE],
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    guidance: float | None = None,
    at_steps: Sequence[int] | None = None,
    images: bool = True,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Substitution:
    """Measure dictionaries in place.

    Args:
        pipe: the model that they were trained on.
        dictionaries: for each site, one dictionary.
        prompts, seeds: of the generations.
        steps, guidance: the model's defaults if None.
        at_steps: steps at which the images carry a variant (None = all); the loss is measured at every step.
        images: whether images are made with each variant in place: the half of the work.
        batch_size: images at a time.
        progress: called with (done, total) denoiser calls.

    Cost: with S sites, 2 + 3 S denoiser calls a step and batch, and 3 S more with images.
    """
    if not dictionaries or not prompts:
        raise InvalidOption("substitute: give at least one dictionary and one prompt.")
    default = generation_defaults(pipe)
    n_steps = default.steps if steps is None else steps
    scale = default.guidance if guidance is None else guidance
    batches = [range(i, min(i + batch_size, len(prompts))) for i in range(0, len(prompts), batch_size)]
    total = (2 + 3 * len(dictionaries) * (2 if images else 1)) * n_steps * len(batches)
    counted = _Count(progress, total)

    def draw(batch: range, interventions: Sequence[Intervention] = ()) -> np.ndarray:
        """Images of a batch; every denoiser call counts."""
        with counted.calls(pipe):
            return generate(
                pipe, prompts[batch.start : batch.stop], seeds[batch.start : batch.stop], steps=n_steps,
                guidance=scale, batch_size=batch_size, interventions=interventions,
            )  # fmt: skip

    means = {site: Means() for site in dictionaries}
    watch = [Intervention(site, Splice(m.watch)) for site, m in means.items()]
    clean = np.concatenate([draw(batch, watch) for batch in batches])
    n_calls = len(schedule_of(pipe.scheduler)[0])
    functions = {
        site: {"sae": reconstruction(sae), "mean": means[site].row, "zero": zero} for site, sae in dictionaries.items()
    }
    results = {
        site: SiteResult(*({v: np.zeros((len(prompts), n_calls)) for v in VARIANTS} for _ in range(2)))
        for site in dictionaries
    }
    for batch in batches:
        with _shadow(pipe, functions, results, batch):
            draw(batch)
    window = tuple(range(n_calls)) if at_steps is None else tuple(at_steps)
    if images:
        for site, variants in functions.items():
            for variant, function in variants.items():
                edit = [Intervention(site, Splice(function), steps=window)]
                results[site].images[variant] = np.concatenate([draw(batch, edit) for batch in batches])
    return Substitution(results, schedule_of(pipe.scheduler)[1], window, clean)


def judged(labels: Mapping[str, Sequence[str]], seen: Mapping[str, Sequence[str]]) -> np.ndarray:
    """(n,) bool: whether the judge sees all that a prompt asks for."""
    return np.logical_and.reduce([np.asarray(seen[f]) == np.asarray(values) for f, values in labels.items()])


def accuracy_kept(clean: np.ndarray, edited: np.ndarray) -> Interval:
    """Correct edited images over correct unedited ones, (n,) bool each, with its interval over prompts."""
    return _ratio_interval(edited.astype(np.float64), clean.astype(np.float64))


class _Count:
    """Denoiser calls done, whoever makes them."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    @contextmanager
    def calls(self, pipe: Pipeline) -> Iterator[None]:
        def tick(*_: Any) -> None:
            self._done += 1
            if self._progress is not None:
                self._progress(min(self._done, self._total), self._total)

        handle = denoiser(pipe)[1].register_forward_pre_hook(tick)
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def _shadow(
    pipe: Pipeline, functions: Mapping[str, Mapping[str, Rows]], results: Mapping[str, SiteResult], batch: range
) -> Iterator[None]:
    """After each denoiser call of a generation, repeat it with every variant in place and note the difference.

    The generation itself goes on with the unedited output.
    """
    inside = False
    with StepClock(pipe) as clock:

        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            nonlocal inside
            if inside:
                return
            inside = True
            clock.__exit__()  # it must not take the calls below for steps
            try:
                clean, step, t, branches = _prediction(output), clock.step, clock.t, clock.branches
                for site, variants in functions.items():
                    for variant, function in variants.items():
                        with intervene(pipe, Intervention(site, Splice(function))):
                            edited = _prediction(module(*args, **kwargs))
                        error, eps_error = _errors(pipe, edited - clean, t, len(branches))
                        at = slice(batch.start, batch.stop)
                        results[site].loss[variant][at, step] = error
                        results[site].eps_loss[variant][at, step] = eps_error
            finally:
                clock.__enter__()
                inside = False

        handle = denoiser(pipe)[1].register_forward_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def _errors(pipe: Pipeline, difference: Tensor, t: float, n_branches: int) -> tuple[np.ndarray, np.ndarray]:
    """(B,) mean squared differences of the prediction and of the noise in it, over branches too."""
    level = training_level(pipe.scheduler, t)
    # noise_of is affine in the output, so it turns a difference of outputs into one of noises where z is 0.
    noise = noise_of(prediction_type(pipe.scheduler), difference, torch.zeros_like(difference), level.signal,
                     max(level.noise, 1e-12))  # fmt: skip
    found = [d.double().square().flatten(1).mean(1).view(n_branches, -1).mean(0) for d in (difference, noise)]
    return found[0].cpu().numpy(), found[1].cpu().numpy()


def _prediction(output: Any) -> Tensor:
    """The denoiser's output tensor."""
    return (output[0] if isinstance(output, tuple) else output.sample).float()


def _ratio_interval(above: np.ndarray, below: np.ndarray) -> Interval:
    """sum above / sum below with a percentile interval over resampled entries; NaN where below sums to 0."""
    if not below.sum() > 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    at = np.random.default_rng(0).integers(len(below), size=(_RESAMPLES, len(below)))
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = above[at].sum(1) / below[at].sum(1)
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return Interval(float(above.sum() / below.sum()), float(low), float(high))
