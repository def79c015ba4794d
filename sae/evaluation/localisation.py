"""Where is a concept? Overlap of a unit's map with the mask of the object that it stands for.

    IoU = sum |map > threshold  and  mask| / sum |map > threshold  or  mask|        cells, pooled over samples

of the samples that show the concept, with maps averaged over steps. Unit (among a concept's candidates) and threshold
are those with the largest IoU on training samples; what is reported is measured on others. A map that is on everywhere
has an IoU of the mask's share of the picture, given as ``everywhere``: the number to beat.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from activations_store import ActivationStore
from sae.data import Selection
from sae.errors import ShapeMismatch
from sae.evaluation.detectors import Detector, Progress, mean_maps, part
from sae.evaluation.recovery import Concept, Interval

_LEVELS = 48  # thresholds tried
_RESAMPLES = 500


@dataclass(frozen=True)
class Located:
    """The overlap of one concept, on held-out samples."""

    concept: str
    unit: int
    threshold: float
    iou: float
    everywhere: float  # IoU of a map that is on everywhere
    n: int  # held-out samples


@dataclass(frozen=True)
class Localisation:
    """Overlaps of all concepts of a factor."""

    concepts: tuple[Located, ...]
    iou: Interval  # mean over concepts
    everywhere: float


def localise(
    detector: Detector,
    store: ActivationStore,
    chosen: Selection,
    concepts: Sequence[Concept],
    names: np.ndarray,
    masks: np.ndarray,
    train: np.ndarray,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Localisation:
    """Measure the overlap of each concept's best map with the masks.

    Args:
        chosen: the samples, steps and branches to read.
        concepts: of one factor, with their candidate units.
        names: (n_samples,) value of that factor.
        masks: (n_samples, tokens) bool.
        train: (n_samples,) bool.
        progress: called with (done, total) concepts.
    """
    if masks.shape != (len(chosen.samples), chosen.tokens):
        raise ShapeMismatch(
            f"Masks are {masks.shape}; expected {(len(chosen.samples), chosen.tokens)}: a cell each of every sample."
        )
    rng = np.random.default_rng(seed)
    found: list[Located] = []
    draws = []
    for number, concept in enumerate(concepts):
        at = np.nonzero((names == concept.concept) & masks.any(1))[0]
        fit, held = at[train[at]], at[~train[at]]
        if not len(fit) or not len(held):
            continue
        units = np.asarray(concept.candidates)
        maps = mean_maps(detector, store, part(chosen, fit), units)
        unit, threshold = _best(maps, masks[fit])
        on = mean_maps(detector, store, part(chosen, held), units[[unit]])[..., 0] > threshold
        both, either = (on & masks[held]).sum(1), (on | masks[held]).sum(1)
        area = masks[held].sum(1)
        found.append(
            Located(
                concept.concept,
                int(units[unit]),
                threshold,
                _ratio(both.sum(), either.sum()),
                float(area.sum() / masks[held].size),
                len(held),
            )
        )
        again = rng.integers(len(held), size=(_RESAMPLES, len(held)))
        draws.append(both[again].sum(1) / np.maximum(either[again].sum(1), 1))
        if progress is not None:
            progress(number + 1, len(concepts))
    if not found:
        nothing = float("nan")
        return Localisation((), Interval(nothing, nothing, nothing), nothing)
    low, high = np.quantile(np.mean(draws, axis=0), (0.025, 0.975))
    mean = Interval(float(np.mean([c.iou for c in found])), float(low), float(high))
    return Localisation(tuple(found), mean, float(np.mean([c.everywhere for c in found])))


def _best(maps: np.ndarray, masks: np.ndarray) -> tuple[int, float]:
    """Position of the unit, and the threshold, with the largest IoU on (n, tokens, m) maps."""
    best, choice = -1.0, (0, 0.0)
    for unit in range(maps.shape[-1]):
        x = maps[..., unit]
        for threshold in np.unique(np.append(np.quantile(x, np.linspace(0, 0.99, _LEVELS)), 0.0)):
            on = x > threshold
            iou = _ratio((on & masks).sum(), (on | masks).sum())
            if iou > best:
                best, choice = iou, (unit, float(threshold))
    return choice


def _ratio(both: float, either: float) -> float:
    return float(both) / float(either) if either else 0.0
