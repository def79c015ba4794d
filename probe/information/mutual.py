"""Mutual information between an image and what is said about it, in nats.

With f_c the denoiser under condition c and the integral over log SNR a (Kong et al. 2024,
https://arxiv.org/abs/2310.07972; for the exact denoiser, Kong et al. 2023, https://arxiv.org/abs/2302.03792),

    standard      i(x; y | c) = 1/2 INT da E[ ||n - eps_c||^2 - ||n - eps_cy||^2 ]  =  log p(x | c, y) / p(x | c)
    orthogonal    o(x; y | c) = 1/2 INT da E ||eps_c - eps_cy||^2                   >= 0

Averaged over images and what is said about them, both are the conditional mutual information I(x; y | c), at every
pixel (the orthogonality principle). For one image they differ: only the standard form is its log-likelihood ratio,
which may be negative; only the orthogonal form is a map without noise of the errors' size. Claims about one image take
the first, maps and averages the second. With c empty this is I(x; y).

A word's information given the rest of its caption is ``information(table, "caption", given="caption-colour")``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from probe.errors import InvalidRequest
from probe.information.columns import CAPTION, EMPTY, SHUFFLED, swap, without
from probe.information.intervals import Interval, interval, pointwise_error
from probe.information.nodes import GapCurve, Nodes
from probe.information.table import NodeTable
from probe.information.window import Window, check_window

Form = Literal["standard", "orthogonal"]


@dataclass(frozen=True, eq=False)
class Information:
    """Information that one column has over another.

    Attributes:
        column, given: the columns, "what is said" and "what was known".
        form: "standard" or "orthogonal".
        terms: (images, nodes) nats, to be summed over nodes.
        pixels: (images, tokens) nats, to be summed over tokens.
        nodes, log_snr, weight: of the table.
        grid: (height, width) of the tokens, or None.
        window: what the window leaves out, judged by the orthogonal form.
        null: the same for a caption or word of another image, or None if the table has no such column.
    """

    column: str
    given: str
    form: Form
    terms: np.ndarray
    pixels: np.ndarray
    nodes: Nodes
    log_snr: np.ndarray
    weight: np.ndarray
    grid: tuple[int, int] | None
    window: Window
    null: Information | None = None

    @cached_property
    def pointwise(self) -> np.ndarray:
        """(images,) nats."""
        return self.terms.sum(1)

    @property
    def mean(self) -> float:
        """Mean over images: the (conditional) mutual information in nats."""
        return float(self.pointwise.mean())

    @property
    def pointwise_error(self) -> np.ndarray:
        """(images,) standard error of ``pointwise`` by the noise and places of the nodes."""
        return pointwise_error(self.terms)

    def interval(self, level: float = 0.95, n: int = 1000, seed: int = 0) -> Interval:
        """Interval of the mean by bootstrap over images and nodes."""
        shared = self.nodes.shared
        return interval([self.terms], lambda v: float(v[0].mean()), level=level, n=n, seed=seed, shared_nodes=shared)

    @property
    def maps(self) -> np.ndarray:
        """(images, height, width) nats a pixel.

        Raises:
            InvalidRequest: samples are no maps.
        """
        if self.grid is None:
            raise InvalidRequest("Information.maps: the samples are vectors; use pixels.")
        return self.pixels.reshape(-1, *self.grid)

    def region(self, masks: np.ndarray) -> np.ndarray:
        """(images,) nats within masks (images, tokens) bool, or (tokens,) for all images."""
        return np.where(masks, self.pixels, 0.0).sum(1)

    @property
    def curve(self) -> GapCurve:
        """Information by step, from most noise to least: the mean gap of the nodes of each cell."""
        return gap_curve(self.terms, self.log_snr, self.weight, shared=self.nodes.shared)


def information(table: NodeTable, column: str, *, given: str = EMPTY, form: Form = "standard") -> Information:
    """Information of one column over another, image by image and pixel by pixel.

    Args:
        table: has both columns.
        column: with what is said, e.g. "caption".
        given: without it, e.g. "empty" (mutual information) or "caption-colour" (conditional).
        form: see above.

    Raises:
        InvalidRequest: no such column or form.

    Warns:
        TruncatedWindow: the gap is not over at an edge of the window.
    """
    found = _information(table, column, given, form)
    found.window.warn(f"information of {column!r} given {given!r}")
    return found


def word_information(table: NodeTable, role: str, *, form: Form = "standard") -> Information:
    """Information of a word given the rest of its caption."""
    return information(table, CAPTION, given=without(role), form=form)


def gap_curve(terms: np.ndarray, log_snr: np.ndarray, weight: np.ndarray, *, shared: bool = True) -> GapCurve:
    """Mean integrand over images; ``terms`` (images, nodes) are half of weight times it.

    Images that share their nodes are averaged node by node, others over runs of neighbouring cells, 64 at most.
    """
    n_images, n = terms.shape
    if shared:
        groups = [np.s_[:, j] for j in range(n)]
    else:
        order = np.array_split(np.argsort(log_snr, axis=None), max(n, min(64, terms.size)))
        groups = [np.unravel_index(part, terms.shape) for part in order]
    width = np.array([weight[g].sum() / n_images for g in groups])
    level = np.array([np.average(log_snr[g], weights=weight[g]) for g in groups])
    return GapCurve(level, np.array([2.0 * terms[g].sum() / n_images for g in groups]) / width, width)


def integrand(table: NodeTable, column: str, given: str, form: Form) -> np.ndarray:
    """(images, nodes, tokens): what is integrated, before weights.

    Raises:
        InvalidRequest: no such column or form.
    """
    if form not in get_args(Form):
        raise InvalidRequest(f"information: form {form!r}; expected one of {', '.join(get_args(Form))}.")
    if form == "orthogonal":
        return table.differences(given, column)
    # Widened first: errors are much larger than what they differ by.
    return table.errors(given).astype(np.float64) - table.errors(column)


def pixel_nats(table: NodeTable, column: str, given: str = EMPTY, form: Form = "orthogonal") -> np.ndarray:
    """(images, tokens) nats: the maps of ``information`` by themselves, without a look at the window.

    Raises:
        InvalidRequest: no such column or form.
    """
    return _over_nodes(0.5 * table.weight, integrand(table, column, given, form))


def _over_nodes(half: np.ndarray, f: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ijt->it", half, f)


def _information(table: NodeTable, column: str, given: str, form: Form) -> Information:
    f = integrand(table, column, given, form)
    half = 0.5 * table.weight
    gap = table.differences(given, column).sum(2, dtype=np.float64)
    curve = gap_curve(half * gap, table.log_snr, table.weight, shared=table.nodes.shared)
    window = check_window(curve, table.nodes.window)
    null = _null(table, column, given)
    return Information(
        column,
        given,
        form,
        half * f.sum(2, dtype=np.float64),
        _over_nodes(half, f),
        table.nodes,
        table.log_snr,
        table.weight,
        table.grid,
        window,
        None if null is None else _information(table, null, given, form),
    )


def _null(table: NodeTable, column: str, given: str) -> str | None:
    """The column that says the same sort of thing about another image."""
    if column != CAPTION:
        return None
    roles = {without(c.removeprefix(swap(""))): c for c in table.columns if c.startswith(swap(""))}
    if given in roles:
        return roles[given]
    return SHUFFLED if given == EMPTY and SHUFFLED in table.columns else None
