"""Which features of a sample come first: by activation, by share, or by surprise.

With a_i the mean activation of feature i over the chosen cells at one step, p_i its largest there, and of the corpus,
at the same step, m_i its mean activation over all samples and cells (zeros included):

    activation   p_i
    share        a_i / sum_j a_j                                   of the whole code in these cells
    surprise     log2((a_i + e_i) / (m_i + e_i)),  e_i = q_i / 100    in bits

q_i is the 99th percentile of the feature's active values. e_i keeps the ratio finite where the corpus has nothing at
this step, and small where the feature is barely on: surprise is 0 for what is as strong here as anywhere, and at most
log2(101) = 6.7 bits for a feature at its 99th percentile in all chosen cells that is never on at this step elsewhere.
Larger activations than that count as that percentile. A feature that is dead in the corpus takes its own a_i as q_i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from apps.inspecting.codes import Codes

if TYPE_CHECKING:
    from sae import FeatureBundle

SORTS = ("activation", "share", "surprise")
_FLOOR = 0.01  # of the 99th percentile


class Corpus(NamedTuple):
    """What is known of the features over the samples of a bundle.

    Attributes:
        mean_by_step: (n_steps, d_sae) mean activation, zeros included.
        p99: (d_sae,) 99th percentile of the active values; 0 for a dead feature.
    """

    mean_by_step: np.ndarray
    p99: np.ndarray

    @classmethod
    def of(cls, bundle: FeatureBundle) -> Corpus:
        """What a feature bundle knows."""
        return cls(bundle.mean_by_step, bundle.table.column("p99").to_numpy())


@dataclass(frozen=True, eq=False)
class Measures:
    """Every feature in some cells of a sample; (d_sae,) unless said otherwise.

    Attributes:
        by_step: (n_steps, d_sae) mean activation over the cells.
        mean: the same at the chosen step.
        activation, share, surprise: see the module.
        first: index of the first step at which the feature is on in these cells; -1 if it never is.
    """

    by_step: np.ndarray
    mean: np.ndarray
    activation: np.ndarray
    share: np.ndarray
    surprise: np.ndarray
    first: np.ndarray


def measure(codes: Codes, tokens: np.ndarray, step: int, corpus: Corpus) -> Measures:
    """All features in some cells at a step.

    Args:
        codes: of the sample.
        tokens: numbers of the cells, at least one.
        step: index of the step in ``codes`` and ``corpus``.
        corpus: of the same dictionary and steps.
    """
    by_step = codes.mean(tokens)
    on = by_step > 0
    mean, total = by_step[step], by_step[step].sum()
    return Measures(
        by_step=by_step,
        mean=mean,
        activation=codes.peak(tokens, step),
        share=mean / total if total > 0 else mean,
        surprise=surprise(mean, corpus.mean_by_step[step], corpus.p99),
        first=np.where(on.any(0), on.argmax(0), -1),
    )


def surprise(mean: np.ndarray, corpus_mean: np.ndarray, p99: np.ndarray) -> np.ndarray:
    """Bits by which features are stronger than in the corpus; formula in the module. All arguments (d_sae,)."""
    top = np.where(p99 > 0, p99, mean)
    floor = _FLOOR * top
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = np.log2((np.minimum(mean, top) + floor) / (corpus_mean + floor))
    return np.where(top > 0, bits, 0.0)  # dead in the corpus and off here


def ranked(found: Measures, sort: str, keep: np.ndarray) -> np.ndarray:
    """Features that are on at the step, largest first.

    Args:
        found: their measures.
        sort: one of ``SORTS``.
        keep: (d_sae,) bool; the others are left out.
    """
    on = np.flatnonzero((found.mean > 0) & keep)
    return on[np.argsort(-getattr(found, sort)[on], kind="stable")]


class Compared(NamedTuple):
    """Features of two samples in the same cells at the same step, each list strongest first.

    Attributes:
        shared: on in both, by the smaller of the two mean activations.
        only_a, only_b: on in one of them, by their mean activation.
    """

    shared: np.ndarray
    only_a: np.ndarray
    only_b: np.ndarray


def compare(a: np.ndarray, b: np.ndarray, keep: np.ndarray) -> Compared:
    """Who is on where.

    Args:
        a, b: (d_sae,) mean activations.
        keep: (d_sae,) bool; the others are left out.
    """

    def by(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        at = np.flatnonzero(chosen & keep)
        return at[np.argsort(-values[at], kind="stable")]

    return Compared(by(np.minimum(a, b), (a > 0) & (b > 0)), by(a, (a > 0) & (b == 0)), by(b, (b > 0) & (a == 0)))
