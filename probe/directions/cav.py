"""Concept activation vectors, with the tests that say whether they mean anything.

Kim et al. 2018 (https://arxiv.org/abs/1711.11279): the vector of a linear classifier of samples with a concept against
random others, refitted against many random sets of others. With many dimensions and few samples *any* labels can be
told apart, so each refit has a control, the same samples with shuffled labels, judged in the same way on samples that
were held out:

    p = (1 + number of controls whose held-out accuracy reaches the median of the real ones) / (1 + repeats)

The TCAV score of a model is the share of inputs whose output of interest rises along the vector, sign(g . v) for
gradients g at the site; it is compared with the scores of the control vectors by Welch's t-test, as in the paper. The
refits share samples, so its p-values are too small rather than too large; the permutation p above is the safer one.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import numpy as np
from scipy.stats import ttest_ind

from activations_store import ActivationStore
from probe.directions.finder import ContrastFinder
from probe.directions.linear_probe import logistic
from probe.directions.rows import SiteRows
from probe.errors import InvalidDirection


class TCAVScore(NamedTuple):
    """How an output depends on a concept.

    Attributes:
        score: (repeats,) share of inputs whose output rises along each vector.
        control: (repeats,) the same for the vectors of shuffled labels.
        p_value: of Welch's t-test of the two; 1 if neither varies and they agree.
    """

    score: np.ndarray
    control: np.ndarray
    p_value: float


@dataclass(kw_only=True, eq=False)
class CAV(ContrastFinder):
    """Concept activation vectors. Needs a store with labels; one row a sample (view ``mean`` or ``map``).

    Attributes:
        repeats: refits against random sets of others, each as large as the concept's.
        C: of the logistic classifier.

    After ``fit``: as ``ContrastFinder``, with the mean of the unit vectors as the direction; ``cavs_`` and ``random_``
    (n, repeats, width) unit vectors; ``accuracy_`` and ``random_accuracy_`` (n, repeats) on held-out samples, of which
    half has the concept; ``p_value_`` (n,).

    Example, after ``denoscope collect --sites mid_block unet:in --prompts canvas:16 --steps 2 --out runs/x``:
        >>> from activations_store import ActivationStore
        >>> from probe.directions import CAV
        >>> store = ActivationStore.open("runs/x/store")
        >>> found = CAV(site="unet.mid_block:out", factor="background", positive="dark", repeats=5).fit(store)
        >>> found.accuracy_.mean(1).shape, found.p_value_.shape
        ((2,), (2,))
    """

    repeats: int = 20
    C: float = 1.0

    cavs_: np.ndarray = field(init=False, repr=False)
    random_: np.ndarray = field(init=False, repr=False)
    accuracy_: np.ndarray = field(init=False, repr=False)
    random_accuracy_: np.ndarray = field(init=False, repr=False)
    p_value_: np.ndarray = field(init=False, repr=False)

    def fit(self, store: ActivationStore) -> Self:
        """See ``ContrastFinder.fit``; 2 x repeats classifiers a step."""
        if self.view == "tokens" or self.repeats < 2:
            raise InvalidDirection(
                f"CAV: view {self.view!r} and {self.repeats} repeats; expected one row a sample (mean or map) and at "
                "least 2 repeats."
            )
        self._found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        super().fit(store)
        steps = sorted(self._found)
        vectors, accuracy = (np.stack([self._found[s][i] for s in steps]) for i in range(2))
        self.cavs_, self.random_ = vectors[:, 0], vectors[:, 1]
        self.accuracy_, self.random_accuracy_ = accuracy[:, 0], accuracy[:, 1]
        reached = self.random_accuracy_ >= np.median(self.accuracy_, 1, keepdims=True)
        self.p_value_ = (1 + reached.sum(1)) / (1 + self.repeats)
        about = self.direction_.provenance
        quality = {**about["quality"], "accuracy": self.accuracy_.mean(1).tolist(), "p_value": self.p_value_.tolist()}
        self.direction_ = replace(self.direction_, provenance={**about, "quality": quality})
        del self._found
        return self

    def score(self, gradients: np.ndarray, row: int = 0) -> TCAVScore:
        """The TCAV score of a model's output.

        Args:
            gradients: (m, width) of the output with respect to the rows of the site, one an input.
            row: which step of ``fit``.
        """
        shares = [((gradients @ v[row].T) > 0).mean(0) for v in (self.cavs_, self.random_)]
        if all(np.ptp(s) == 0 for s in shares):
            return TCAVScore(*shares, p_value=1.0 if shares[0][0] == shares[1][0] else 0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # one of the two does not vary: the test is still defined
            p_value = float(np.asarray(ttest_ind(*shares, equal_var=False))[1])
        return TCAVScore(*shares, p_value=p_value)

    def _vector(self, rows: SiteRows, step: int, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng([self.seed, step])
        concept, others = (rows.gather(step, samples)[1] for samples in (positive, negative))
        n = min(len(concept), len(others))
        vectors, accuracy = np.empty((2, self.repeats, rows.width)), np.empty((2, self.repeats))
        for i in range(self.repeats):
            both = [x[rng.choice(len(x), n, replace=False)] for x in (concept, others)]
            mixed = rng.permutation(np.concatenate(both))
            for kind, (a, b) in enumerate((both, (mixed[:n], mixed[n:]))):
                vectors[kind, i], accuracy[kind, i] = _refit(a, b, self.C, self.holdout)
        self._found[step] = vectors, accuracy
        return vectors[0].mean(0)


def _refit(a: np.ndarray, b: np.ndarray, C: float, holdout: float) -> tuple[np.ndarray, float]:
    """The unit vector of a classifier, and its accuracy on the rows at the end of either set, which it does not see.

    Raises:
        InvalidDirection: too few rows, or nothing to tell apart.
    """
    cut = len(a) - max(1, round(holdout * len(a)))
    if cut < 2:
        raise InvalidDirection(f"CAV: {len(a)} rows of a class; at least three are needed, one of them held out.")
    w, _ = logistic(a[:cut], b[:cut], C, 1000)
    if not np.linalg.norm(w) > 0:
        raise InvalidDirection("CAV: the rows of the classes do not differ at all.")
    middle = (a[:cut].mean(0) + b[:cut].mean(0)) @ w / 2
    correct = np.r_[a[cut:] @ w > middle, b[cut:] @ w <= middle]
    return w / np.linalg.norm(w), float(correct.mean())
