"""Classification by denoising error, and the entropy of labels given an image.

For every class y the likelihood differs from the others by the errors alone (``likelihood``), so

    P(y | x) = softmax_y [ log P(y) - 1/2 INT da E ||n - eps(z, y)||^2 ]

with the noise shared by all classes: their common noise cancels, which matters more than more evaluations. The errors
are sums over all numbers of a sample and the measure is that of log SNR; a mean over pixels or over timesteps ranks
much the same, but is no probability (Li et al. 2023, https://arxiv.org/abs/2303.16203).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax, xlogy

from probe.errors import InvalidRequest
from probe.information.table import NodeTable


@dataclass(frozen=True, eq=False)
class Labels:
    """Posterior of the classes.

    Attributes:
        classes: names of the columns.
        prior: (classes,) probabilities.
        log_posterior: (images, classes) in nats.
    """

    classes: tuple[str, ...]
    prior: np.ndarray
    log_posterior: np.ndarray

    @property
    def posterior(self) -> np.ndarray:
        """(images, classes) probabilities."""
        return np.exp(self.log_posterior)

    @property
    def best(self) -> np.ndarray:
        """(images,) number of the most probable class."""
        return self.log_posterior.argmax(1)

    @property
    def entropy(self) -> np.ndarray:
        """(images,) entropy of the label given the image, nats."""
        return -xlogy(self.posterior, self.posterior).sum(1)

    @property
    def prior_entropy(self) -> float:
        """Entropy of the label before the image is seen, nats: a bound on what it can tell."""
        return float(-xlogy(self.prior, self.prior).sum())

    @property
    def information(self) -> float:
        """Mutual information of label and image, nats: prior entropy less the mean entropy given the image."""
        return self.prior_entropy - float(self.entropy.mean())

    def accuracy(self, labels: Sequence[str]) -> float:
        """Share of images whose most probable class is theirs."""
        if len(labels) != len(self.log_posterior):
            raise InvalidRequest(f"accuracy: {len(labels)} labels for {len(self.log_posterior)} images.")
        return float(np.mean([self.classes[k] == label for k, label in zip(self.best, labels, strict=True)]))


def classify(table: NodeTable, classes: Sequence[str], prior: Mapping[str, float] | None = None) -> Labels:
    """Posterior over columns of the table.

    Args:
        table: has a column a class, see ``class_columns``.
        classes: their names, at least two.
        prior: a weight above zero a class, divided by their sum; equal if None.

    Raises:
        InvalidRequest: fewer than two classes, no such column, or a prior that does not fit.
    """
    weights = np.array([1.0 if prior is None else prior.get(c, 0.0) for c in classes])
    if len(set(classes)) < 2 or len(set(classes)) != len(classes) or not (np.isfinite(weights) & (weights > 0)).all():
        raise InvalidRequest(
            f"classify: classes {', '.join(classes)} with prior {weights.tolist()}; expected two or more, each once, "
            "with a prior above zero."
        )
    share = weights / weights.sum()
    half = 0.5 * table.weight
    errors = [table.errors(c).sum(2, dtype=np.float64) for c in classes]
    # Relative to the first class: what all have in common would cost digits.
    scores = np.stack([(half * (e - errors[0])).sum(1) for e in errors], 1)
    return Labels(tuple(classes), share, log_softmax(np.log(share) - scores, axis=1))


def running_labels(table: NodeTable, classes: Sequence[str], prior: Mapping[str, float] | None = None) -> list[Labels]:
    """Labels by the nodes up to and with each, from most noise to least; see ``classify``.

    Where the labels are decided, the exact denoiser without a label is the one with it, and adds no information.

    Raises:
        InvalidRequest: see ``classify``; images have nodes of their own.
    """
    return [classify(table.within(table.nodes.window[0], a), classes, prior) for a in table.log_snr[0]]


def fano(error: float, n: int, entropy: float) -> float:
    """Nats that a label and any read-out of it share at least (Fano 1961), by the share of labels read wrongly.

    Args:
        error: that share.
        n: values of the label, at least two.
        entropy: of the label.
    """
    spread = -float(xlogy(error, error) + xlogy(1.0 - error, 1.0 - error))
    return max(entropy - spread - error * float(np.log(n - 1)), 0.0)
