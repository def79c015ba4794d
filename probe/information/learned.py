"""Information between rows and labels or embeddings, for which no diffusion model exists: one is trained.

A small denoiser learns the rows with and without y (``learned_denoiser.py``); a node table of it on rows that it has
not seen gives I(x; y) in both forms (MINDE, Franzese et al. 2024, arXiv 2310.09031; MMG, Yu et al. 2025):

    standard      E|n - eps|^2 - E|n - eps_y|^2     = I - E|e_y|^2 + E|e|^2,  e, e_y what the network errs by
    orthogonal    E|eps - eps_y|^2                  = I + 2 E<exact eps - exact eps_y, e - e_y> + E|e - e_y|^2

An error of the network enters the standard form by its square and the orthogonal one by itself. A network that is too
small or trained too briefly has both too low, the orthogonal one more; one that knows y by heart is wrong with it on
unseen rows, so that the standard form falls, below zero if there is nothing to know, and the orthogonal one rises. The
standard form is the estimate, mostly a low one; the other beside it shows which of the two went wrong. The null is a
second denoiser, trained the same way on y dealt to other rows: its truth is 0.

Information does not change when a side is mapped one to one. So wide rows are turned to their principal components, and
each component is given a normal margin (normal scores, van der Waerden 1952), so that no unit, tail or gap of a margin
is left to learn. Only the first components of wide rows are kept, which can only lose information: what comes out is
that of these components. Nor does it matter which side is denoised. Rows are, told embeddings; but labels are, told
rows, since all that there is to learn of a label is its probability (``learned_labels.py``).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch
from scipy.special import ndtri
from scipy.stats import rankdata

from probe.errors import InvalidRequest
from probe.information.adapt import adaptive_nodes
from probe.information.columns import EMPTY, Column
from probe.information.learned_denoiser import LearnedDenoiser, train_denoisers
from probe.information.learned_labels import LabelDenoiser, train_label_denoisers
from probe.information.mutual import Form, Information, information
from probe.information.perceptrons import Training
from probe.information.table import NodeTable, measure
from probe.information.window import TruncatedWindow

Y, NULL_EMPTY, NULL_Y = "y", "empty, null", "y, null"
_PILOT_ROWS = 256
_BATCH = 4096
_NOISY = 48_000
LEAST = 64
"""Rows that an estimate takes at least."""
ROWS = Training()
LABELS = Training(steps=500, learning_rate=5e-3)
"""Of labels: the best weights come early, and the fewer the rows the earlier."""


@dataclass(kw_only=True, eq=False)
class LearnedInformation:
    """An estimator of I(x; y) with scikit-learn manners.

    Rows of a site are ``probe.directions.rows.SiteRows(store, site, branch, "mean").gather(step)``, with the numbers of
    their samples, and labels of these are ``store.labels(factor)[samples]``.

    Example:
        >>> import numpy as np
        >>> from probe.information import LearnedInformation, Training
        >>> labels = np.arange(400) % 4
        >>> rows = np.random.default_rng(0).standard_normal((400, 8)) + 4.0 * np.eye(4, 8)[labels]
        >>> learned = LearnedInformation(training=Training(steps=300), nodes=16).fit(rows, labels)
        >>> found = learned.information()
        >>> bool(found.null.mean < 0.5 < found.mean)  # nats; log 4 can be told
        True

    Attributes:
        training: of both denoisers, the null's included; None for ``ROWS``, or ``LABELS`` if y is a label.
        components: principal components that are kept of x, and of y if it is no label; None for all.
        test_share: rows that are measured; of the others some choose the weights, a tenth for embeddings and each
            fifth in turn for labels, and the rest are trained on.
        nodes: noise levels of each measured row; None for as many as make 48,000 noisy rows of all.
        seed: of the split, the null, nodes and noise.

    After ``fit``: ``table_``, the errors of both denoisers on the measured rows; ``model_`` and ``null_model_``;
    ``kept_``, shares of the variance of x and y that the components hold.
    """

    training: Training | None = None
    components: int | None = 8
    test_share: float = 0.3
    nodes: int | None = None
    seed: int = 0

    table_: NodeTable = field(init=False, repr=False)
    model_: LearnedDenoiser | LabelDenoiser = field(init=False, repr=False)
    null_model_: LearnedDenoiser | LabelDenoiser = field(init=False, repr=False)
    kept_: tuple[float, float] = field(init=False, repr=False)

    def fit(self, x: np.ndarray, y: np.ndarray, *, progress: Callable[[int, int], None] | None = None) -> Self:
        """Train on most rows and measure the others.

        Args:
            x: (n, d) rows, such as those of a site.
            y: (n, k) embeddings, or (n,) labels of any kind.
            progress: called with (done, total) training steps.

        Raises:
            InvalidRequest: shapes that do not fit, fewer than 64 rows, numbers that are not finite, or a side that
                never varies.
        """
        if (self.nodes or 1) < 1 or not 0.0 < self.test_share < 1.0 or (self.components or 1) < 1:
            raise InvalidRequest(f"{self}: expected nodes and components of at least 1 and a share in (0, 1).")
        rows, kept_x = principal(x, self.components, "x")
        labels = np.ndim(y) == 1
        told, kept_y = (one_hot(y), 1.0) if labels else principal(y, self.components, "y")
        if len(rows) != len(told) or len(rows) < LEAST:
            raise InvalidRequest(
                f"LearnedInformation: {len(rows)} rows of x, {len(told)} of y; expected as many, and {LEAST} or more."
            )
        if labels:
            rows, told = told, rows
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(rows), generator=generator)
        n_test = round(self.test_share * len(rows))
        test, held, rest = order.split([n_test, n := max(8, (len(rows) - n_test) // 10), len(rows) - n_test - n])
        elsewhere = told[torch.randperm(len(told), generator=generator)]
        both = torch.stack([told, elsewhere])
        self.kept_ = (kept_x, kept_y)
        if labels:
            most = torch.cat([held, rest])
            # The shares are those of all labels: of some, they would be too low for the others.
            share = rows.mean(0)
            models = train_label_denoisers(rows[most], both[:, most], share, self.training or LABELS, progress)
        else:
            kept = rows[held], both[:, held]
            models = train_denoisers(rows[rest], both[:, rest], kept, self.training or ROWS, progress)
        self.model_, self.null_model_ = models
        columns = [
            Column(EMPTY),
            Column(Y, list(told[test])),
            Column(NULL_EMPTY, model=self.null_model_),
            Column(NULL_Y, list(elsewhere[test]), self.null_model_),
        ]
        some = test[:_PILOT_ROWS]
        nodes = adaptive_nodes(
            self.model_,
            rows[some],
            [Column(EMPTY), Column(Y, list(told[some]))],
            self.nodes or -(-_NOISY // n_test),
            placement="dealt",
            pilot=24,
            seed=self.seed,
            batch=_BATCH,
        )
        self.table_ = measure(self.model_, rows[test], columns, nodes, seed=self.seed, batch=_BATCH)
        return self

    def information(self, form: Form = "standard") -> Information:
        """The estimate, by measured row and by component (of the label's code if y is a label), with its null.

        What the window leaves out, as for y that fixes x, is in ``window``; it does not warn, since a small network's
        errors leave a gap at the finest levels too.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncatedWindow)
            found = information(self.table_, Y, form=form)
            null = information(self.table_, NULL_Y, given=NULL_EMPTY, form=form)
        return replace(found, null=null)


def training_seconds(d: int, k: int, training: Training, *, labels: bool = False) -> float:
    """Seconds that one ``fit`` trains, by a trial of a hundredth of its steps.

    Args:
        d: components of x.
        k: components of y, or how many labels there are.
        training: as of the fit.
        labels: whether y is a label.
    """
    trial = replace(training, steps=max(5, training.steps // 100))
    x = one_hot(np.arange(256) % k) if labels else torch.randn(256, d)
    told = torch.randn(2, 256, d if labels else k)
    for settings in (replace(trial, steps=2), trial):  # the first calls are slow
        start = time.perf_counter()
        if labels:
            train_label_denoisers(x, told, x.mean(0), settings)
        else:
            train_denoisers(x, told, (x, told), settings)
    return (time.perf_counter() - start) * training.steps / trial.steps


def one_hot(labels: np.ndarray) -> torch.Tensor:
    """(n, classes) float64, 1 where a label (n,) is the class.

    Raises:
        InvalidRequest: there is one class only.
    """
    classes, at = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise InvalidRequest(f"LearnedInformation: all {len(at)} labels are {classes.tolist()}; expected two or more.")
    return torch.eye(len(classes), dtype=torch.float64)[torch.from_numpy(at)]


def principal(values: np.ndarray, components: int | None, name: str) -> tuple[torch.Tensor, float]:
    """The first principal components of rows, each as normal scores.

    Args:
        values: (n, d) finite numbers.
        components: how many; None for all.
        name: for messages.

    Returns:
        (n, min(components, rank)) float32, and the share of the variance in them.

    Raises:
        InvalidRequest: another shape, NaN or infinity, or rows that are all the same.
    """
    v = np.asarray(values, np.float64)
    if v.ndim != 2 or not np.isfinite(v).all():
        raise InvalidRequest(f"LearnedInformation: {name} of shape {v.shape}; expected (n, d) finite numbers.")
    v = v - v.mean(0)
    if not v.std(0).max() > 1e-12 * (1.0 + np.abs(values).max()):
        raise InvalidRequest(f"LearnedInformation: the {len(v)} rows of {name} are all the same; expected variance.")
    left, s, _ = np.linalg.svd(v, full_matrices=False)
    rank = int((s > 1e-6 * s[0]).sum())
    n = rank if components is None else min(components, rank)
    # Rounded, so that equal rows stay equal: their ranks would differ by the last digit.
    ranks = rankdata(np.round(left[:, :n] * np.sqrt(len(v)), 9), axis=0)
    scores = ndtri((ranks - 0.5) / len(v))
    return torch.from_numpy(scores).float(), float((s[:n] ** 2).sum() / (s**2).sum())
