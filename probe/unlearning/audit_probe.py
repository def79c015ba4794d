"""Can the concept still be read inside the edited model? Linear probes by site and step, with nulls.

A logistic probe tells prompts that ask for the concept from prompts that ask for something else, from the mean row of a
site at a step. Three ways to train and test it:

    unedited -> unedited    how well the concept can be read at all: the ceiling
    unedited -> edited      does the concept look as it did? A probe fails here also if the edit only moved it
    edited -> edited        can it be read in any form, by a probe trained on the edited model itself

and what each is compared with:

    shuffled      the same probe trained on shuffled labels: chance, for this number of samples
    meaningless   edited -> edited for a random embedding in the concept's place: any word in the prompt can be read
                  where text is read, whether it means something or not

The score is balanced accuracy, 1/2 (true positive rate + true negative rate), with the threshold halfway between the
training classes. That a probe reads the concept does not show that the model uses what it reads; control tasks such as
these two say how much any probe reads (Hewitt and Liang 2019, https://arxiv.org/abs/1909.03368). That no probe reads it
shows that the mean row holds no linear trace of it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from probe.directions.linear_probe import logistic


class Halves(NamedTuple):
    """Mean rows of one site at one step, (n, d) each.

    Attributes:
        train: (concept, other).
        test: (concept, other).
    """

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


class Reading(NamedTuple):
    """What a probe read.

    Attributes:
        accuracy: balanced, in [0, 1].
        low, high: 95 % interval, by resampling the test samples within each class.
        recall: share of the concept's test samples that are found.
        auc: chance that a sample of the concept scores above one of the others; knows no threshold.
        null: mean balanced accuracy of probes trained on shuffled labels.
        null_high: their 95th percentile.
    """

    accuracy: float
    low: float
    high: float
    recall: float
    auc: float
    null: float
    null_high: float


def split(concept: np.ndarray, other: np.ndarray, n_train: int) -> Halves:
    """The first ``n_train`` of each class for training, the rest for tests; (n, d) each."""
    return Halves((concept[:n_train], other[:n_train]), (concept[n_train:], other[n_train:]))


def read(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    C: float = 0.1,
    n_null: int = 10,
    n_boot: int = 300,
    seed: int = 0,
) -> Reading:
    """Train a probe and test it.

    Args:
        train, test: (concept, other), (n, d) each.
        C: inverse strength of the probe's penalty, on standardised channels.
        n_null: probes on shuffled labels.
        n_boot: bootstrap replicates.
        seed: of shuffles and replicates.
    """
    rng = np.random.default_rng(seed)
    concept, other = _scores(train, test, C)
    hits = concept > 0, other <= 0
    draws = sum(part[rng.integers(len(part), size=(n_boot, len(part)))].mean(1) for part in hits) / 2
    nulls = [_null(train, test, C, rng) for _ in range(n_null)]
    ranks = (concept[:, None] > other).mean() + 0.5 * (concept[:, None] == other).mean()
    low, high = np.quantile(draws, (0.025, 0.975))
    return Reading(
        float(hits[0].mean() + hits[1].mean()) / 2,
        float(low),
        float(high),
        float(hits[0].mean()),
        float(ranks),
        float(np.mean(nulls)) if nulls else float("nan"),
        float(np.quantile(nulls, 0.95)) if nulls else float("nan"),
    )


def _scores(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], C: float
) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance of the test samples from the threshold."""
    w, _ = logistic(train[0], train[1], C, 500)
    middle = (train[0].mean(0) @ w + train[1].mean(0) @ w) / 2
    return test[0] @ w - middle, test[1] @ w - middle


def _null(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], C: float, rng: np.random.Generator
) -> float:
    pool = np.concatenate(train)
    order = rng.permutation(len(pool))
    shuffled = pool[order[: len(train[0])]], pool[order[len(train[0]) :]]
    concept, other = _scores(shuffled, test, C)
    return float((concept > 0).mean() + (other <= 0).mean()) / 2
