"""Denoisers of labels: all that there is to learn of them is the probability of each label given the rows.

A label is one of K points, 1 on axis k and 0 on the others. A denoiser that holds label k for p_k probable is known:

    E[x | z] = softmax( log p + alpha z / sigma^2 )

With nothing told p_k is the share of label k; told a row, perceptrons say what it is. The squared error of such a
denoiser, integrated over all levels, is its surprise at the label (Kong et al. 2023, arXiv 2302.03792, for a discrete
x; here with any p, right or wrong), so that for a label y of a row

    standard form      1/2 INT E[ |n - eps|^2 - |n - eps_y|^2 ] da  =  log p_y(row) - log p_y
    mean               H(y) - cross-entropy                         <= I(rows; y) on rows that are not trained on

(the bound of Barber and Agakov 2003). Training a denoiser at all levels, weighed as the integral weighs them, therefore
is training a classifier by its cross-entropy, and no noise is needed for it.

Labels are often few. So p is the mean of five perceptrons, each trained on four fifths of the rows and stopped by the
other fifth: every row is learned from, and what chance stops too late is one of five.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from probe.information.perceptrons import Perceptrons, Training, train_side_by_side
from probe.model.eps_model import LogSnr, alpha_sigma, check_samples

FOLDS = 5
_LOOKS = 50  # at the loss of rows that are not trained on: few rows are soon known by heart


class LabelDenoiser:
    """Classifiers as an ``EpsModel`` of labels, (K,) one-hot; a condition is a row (k,) float32. CPU, float64.

    Attributes:
        log_share: (K,) log of the labels' shares.
    """

    log_snr_range = (-8.0, 8.0)
    dtype = torch.float64
    device = torch.device("cpu")

    def __init__(self, nets: Sequence[Perceptrons], log_share: torch.Tensor) -> None:
        self.sample_shape: tuple[int, ...] = (len(log_share),)
        self.log_share = log_share
        self._nets = nets

    def log_probability(self, rows: torch.Tensor) -> torch.Tensor:
        """(n, K) float64 of the labels of rows (n, k) float32."""
        with torch.no_grad():
            each = [torch.log_softmax(self.log_share + net(rows[None])[0].double(), 1) for net in self._nets]
        return torch.logsumexp(torch.stack(each), 0) - math.log(len(each))

    def eps(self, z: torch.Tensor, log_snr: LogSnr, cond: Any = None) -> torch.Tensor:
        """See ``EpsModel.eps``; all rows of a batch have a condition, or none has."""
        check_samples(self, z)
        log_p = self.log_share if cond is None or cond[0] is None else self.log_probability(torch.stack(list(cond)))
        alpha, sigma = alpha_sigma(log_snr, z)
        return (z - alpha * torch.softmax(log_p + alpha / sigma**2 * z, 1)) / sigma


def train_label_denoisers(
    labels: torch.Tensor,
    told: torch.Tensor,
    share: torch.Tensor,
    training: Training,
    progress: Callable[[int, int], None] | None = None,
) -> list[LabelDenoiser]:
    """Train classifiers of labels, told each of several sides.

    Args:
        labels: (n, K) one-hot, in any order that has nothing to do with them.
        told: (m, n, k) float32, what each of m denoisers is told.
        share: (K,) what is held probable with nothing told, above 0.
        training: sizes and lengths.
        progress: called with (done, total) steps, a hundred times.
    """
    log_share = share.double().log()
    m, n, k = told.shape
    learns = torch.arange(n) % FOLDS != torch.arange(FOLDS)[:, None]  # (folds, n)
    rows = told.repeat_interleave(FOLDS, 0)
    learned, asked = (torch.cat([rows, part.repeat(m, 1)[..., None].float()], 2) for part in (learns, ~learns))

    def loss(net: Perceptrons, y: torch.Tensor, marked: torch.Tensor, _: torch.Generator) -> torch.Tensor:
        log_p = torch.log_softmax(net(marked[..., :-1]) + log_share.float(), 2)
        weight = marked[..., -1]
        return -(weight * (y * log_p).sum(2)).sum(1) / weight.sum(1).clamp(min=1.0)

    net = Perceptrons(m * FOLDS, k, labels.shape[1], training)
    with torch.no_grad():
        net.weights[-1].zero_()  # so that it begins with the shares, and few rows do not have to unlearn a chance
        net.biases[-1].zero_()
    between = max(1, training.steps // _LOOKS)
    y = labels.float()
    nets = train_side_by_side(net, loss, y, learned, (y, asked), between=between, progress=progress)
    return [LabelDenoiser(nets[i * FOLDS : (i + 1) * FOLDS], log_share) for i in range(m)]
