"""Where in a network, and when, does it know the class? Two scores of a (site, step), after Revelio.

Each sample is one vector, its map averaged over the cells (Revelio, ICCV 2025, arXiv 2411.16725).

    class spread    mean over units of the standard deviation of the class number over the unit's ten strongest
                    samples; the units are the thousand with the largest mean activation of those that are on in more
                    than ten samples. Lower is better: a unit that stands for a class shows one class.
    purity          the share of the commonest class among those ten samples, mean over the same units
    light probe     accuracy on held-out samples of multinomial logistic regression on the standardised vector

The class spread depends on how the classes happen to be numbered and grows with their number, so it compares sites and
steps of one data set and nothing else; it is given beside its mean over shuffled labels. Purity and the probe do not
depend on the numbering. The paper's own probe is a small convolutional network on the map; this one is linear, so it
reports what is linearly there.
"""

import warnings
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sae.errors import EmptySelection

N_TOP = 10
MAX_UNITS = 1000


class ClassSpread(NamedTuple):
    """Scores of one (site, step) for one factor."""

    spread: float  # NaN if no unit is on in more than ten samples
    purity: float
    spread_shuffled: float  # mean over shuffles
    purity_shuffled: float
    units: int  # that took part


def class_spread(
    codes: np.ndarray, classes: np.ndarray, *, max_units: int = MAX_UNITS, shuffles: int = 5, seed: int = 0
) -> ClassSpread:
    """How mixed the classes are among each unit's strongest samples.

    Args:
        codes: (n_samples, n_units) >= 0, pooled over cells.
        classes: (n_samples,) int class numbers from 0.
        max_units: units that take part at most, those with the largest mean code first.
        shuffles: orders of the classes for the values by chance.
        seed: of the shuffles.

    Returns:
        NaN in all figures where no unit is on in more than ten samples.
    """
    on = (codes > 0).sum(0) > N_TOP
    units = np.nonzero(on)[0]
    units = units[np.argsort(-codes[:, units].mean(0), kind="stable")][:max_units]
    if not len(units):
        nothing = float("nan")
        return ClassSpread(nothing, nothing, nothing, nothing, 0)
    strongest = np.argsort(-codes[:, units], axis=0, kind="stable")[:N_TOP]
    rng = np.random.default_rng(seed)
    found = [_spread_and_purity(classes[strongest])]
    found += [_spread_and_purity(rng.permutation(classes)[strongest]) for _ in range(shuffles)]
    by_chance = np.mean(found[1:], axis=0) if shuffles else (float("nan"), float("nan"))
    return ClassSpread(found[0][0], found[0][1], float(by_chance[0]), float(by_chance[1]), len(units))


def light_probe(vectors: np.ndarray, classes: np.ndarray, train: np.ndarray, *, strength: float = 1.0) -> np.ndarray:
    """(n_held,) bool: whether logistic regression names the class of each held-out sample.

    Args:
        vectors: (n_samples, d).
        classes: (n_samples,) int.
        train: (n_samples,) bool.
        strength: inverse of the L2 penalty.

    Raises:
        EmptySelection: a half is empty, or the training half has a single class.
    """
    if len(np.unique(classes[train])) < 2 or train.all():
        raise EmptySelection("The probe needs two classes among the training samples, and held-out samples.")
    scale = StandardScaler().fit(vectors[train])
    model = LogisticRegression(C=strength, max_iter=300)
    with warnings.catch_warnings():
        # Three hundred iterations are what the probe is allowed; where it stops is its answer.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(scale.transform(vectors[train]), classes[train])
    return np.equal(model.predict(scale.transform(vectors[~train])), classes[~train])


def _spread_and_purity(classes: np.ndarray) -> tuple[float, float]:
    """Of (N_TOP, n_units) class numbers."""
    counts = np.apply_along_axis(np.bincount, 0, classes, minlength=int(classes.max()) + 1)
    return float(classes.std(0).mean()), float((counts.max(0) / len(classes)).mean())
