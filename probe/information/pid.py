"""Partial information decomposition: what two words tell about an image together, alone, and only jointly.

With I1, I2 the information of each word about the image and I12 that of both, a redundancy R fixes all four atoms,

    U1 = I1 - R     U2 = I2 - R     S = I12 - I1 - I2 + R          R + U1 + U2 + S = I12

(Williams and Beer 2010, https://arxiv.org/abs/1004.2515). Which R is a choice that the data do not make:

    mmi             min(E i1, E i2): on averages, the default. All usual measures agree with it for a scalar Gaussian
                    target (Barrett 2015, https://arxiv.org/abs/1411.2832)
    pointwise_min   E min(i1, i2)
    finn_lizier     E [ min(h1, h2) - min(h1 - i1, h2 - i2) ], specificity less ambiguity, with h the surprisals of the
                    words themselves (Finn and Lizier 2018, https://arxiv.org/abs/1801.09010). If both words are equally
                    surprising this is E max(i1, i2): the weaker word's unique part is then negative
    i_min           E over targets of min over words of the specific information, the mean of i over what is said of one
                    target (Williams and Beer). Images that are targets of their own make it pointwise_min

Only mmi takes averages, for which the orthogonal form is better; the others take log-likelihood ratios of single
images, which only the standard form is. A redundancy is decided pixel by pixel in ``pixels``: those maps need not sum
to that of the image. Given a context (the rest of the caption; DiffusionPID, Dewan et al. 2024,
https://arxiv.org/abs/2406.05191) every information is conditional on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from probe.errors import InvalidRequest
from probe.information.columns import CAPTION, EMPTY, pair, without, word
from probe.information.intervals import Interval, interval
from probe.information.mutual import Form, Information, information
from probe.information.table import NodeTable

Measure = Literal["mmi", "pointwise_min", "finn_lizier", "i_min"]


class Atoms(NamedTuple):
    """The four atoms in nats, all of one shape: means over images."""

    redundancy: np.ndarray
    unique_first: np.ndarray
    unique_second: np.ndarray
    synergy: np.ndarray


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Decomposition of what two columns say about the images.

    Attributes:
        measure: of redundancy.
        image: the atoms of whole images, scalars.
        pixels: the atoms pixel by pixel, (tokens,).
        first, second, both: the informations that were decomposed.
        surprisal: (h1, h2), (images,) each, the words' own surprisals if they were given.
        specificity, ambiguity: the two parts of the finn_lizier redundancy, else None.
    """

    measure: Measure
    image: Atoms
    pixels: Atoms
    first: Information
    second: Information
    both: Information
    surprisal: tuple[np.ndarray, np.ndarray] | None
    specificity: float | None
    ambiguity: float | None

    def interval(self, atom: str, level: float = 0.95, n: int = 500, seed: int = 0) -> Interval:
        """Interval of one atom of the image by bootstrap over images and nodes.

        Raises:
            InvalidRequest: no such atom; or i_min, whose groups of images no draw of images keeps.
        """
        if atom not in Atoms._fields or self.measure == "i_min":
            raise InvalidRequest(
                f"Decomposition.interval: {atom!r} of {self.measure}; expected one of {', '.join(Atoms._fields)}, and "
                "another measure than i_min."
            )
        # Surprisals belong to images, so they are drawn with them: as terms whose nodes do not differ.
        terms = [part.terms for part in (self.first, self.second, self.both)]
        h = self.surprisal
        if h is not None:
            terms += [np.broadcast_to(v[:, None] / terms[0].shape[1], terms[0].shape) for v in h]

        def statistic(values: Sequence[np.ndarray]) -> float:
            drawn = None if h is None else (values[3], values[4])
            return float(getattr(atoms(*values[:3], measure=self.measure, surprisal=drawn), atom))

        return interval(terms, statistic, level=level, n=n, seed=seed, shared_nodes=self.first.nodes.shared)


def atoms(
    i1: np.ndarray,
    i2: np.ndarray,
    i12: np.ndarray,
    *,
    measure: Measure = "mmi",
    surprisal: tuple[np.ndarray, np.ndarray] | None = None,
    targets: Sequence[Any] | np.ndarray | None = None,
) -> Atoms:
    """The four atoms of pointwise informations.

    Args:
        i1, i2, i12: (images, ...) nats of the first, the second, and both.
        measure: see the module.
        surprisal: (images,) -log P of each word, nats, for finn_lizier.
        targets: one label an image for i_min: images of one label are one target. Each its own if None.

    Raises:
        InvalidRequest: unknown measure, shapes that do not fit, or finn_lizier without surprisals.
    """
    if measure not in get_args(Measure):
        raise InvalidRequest(f"pid: measure {measure!r}; expected one of {', '.join(get_args(Measure))}.")
    if not i1.shape == i2.shape == i12.shape or i1.ndim == 0:
        raise InvalidRequest(f"pid: shapes {i1.shape}, {i2.shape}, {i12.shape}; expected three equal, images first.")
    e1, e2, e12 = i1.mean(0), i2.mean(0), i12.mean(0)
    if measure == "mmi":
        r = np.minimum(e1, e2)
    elif measure == "pointwise_min":
        r = np.minimum(i1, i2).mean(0)
    elif measure == "finn_lizier":
        r = specificity(surprisal, i1) - ambiguity(surprisal, i1, i2)
    else:
        r = _i_min(i1, i2, targets)
    return Atoms(r, e1 - r, e2 - r, e12 - e1 - e2 + r)


def specificity(surprisal: tuple[np.ndarray, np.ndarray] | None, like: np.ndarray) -> np.ndarray:
    """E min(h1, h2): what both words say, whatever it is about. Of the shape of ``like`` without images."""
    h1, h2 = _surprisal(surprisal, like)
    return np.broadcast_to(np.minimum(h1, h2), like.shape).mean(0)


def ambiguity(surprisal: tuple[np.ndarray, np.ndarray] | None, i1: np.ndarray, i2: np.ndarray) -> np.ndarray:
    """E min(h1 - i1, h2 - i2): the part of the specificity that the image leaves open."""
    h1, h2 = _surprisal(surprisal, i1)
    return np.minimum(h1 - i1, h2 - i2).mean(0)


def pid(
    table: NodeTable,
    first: str,
    second: str,
    *,
    context: bool = False,
    measure: Measure = "mmi",
    form: Form | None = None,
    columns: tuple[str, str, str, str] | None = None,
    surprisal: tuple[np.ndarray, np.ndarray] | None = None,
    targets: Sequence[Any] | np.ndarray | None = None,
) -> Decomposition:
    """Decompose what two words say about the images.

    Args:
        table: has empty, word:first, word:second and pair:first+second, or with ``context`` the captions without them.
        first, second: roles, in the order of ``caption_columns``.
        context: condition on the rest of the caption.
        measure: of redundancy.
        form: "orthogonal" for mmi and "standard" for the others if None.
        columns: names of (base, first, second, both) instead, for anything that is no word of a caption.
        surprisal, targets: see ``atoms``.

    Raises:
        InvalidRequest: no such column, or a pointwise measure of the orthogonal form.

    Warns:
        TruncatedWindow: see ``information``.
    """
    form = form or ("orthogonal" if measure == "mmi" else "standard")
    if measure != "mmi" and form == "orthogonal":
        raise InvalidRequest(
            f"pid: {measure} needs the information of single images, which only the standard form is; leave out form."
        )
    if columns is None and context:
        columns = (without(first, second), without(second), without(first), CAPTION)
    base, one, two, joint = columns or (EMPTY, word(first), word(second), pair(first, second))
    parts = [information(table, c, given=base, form=form) for c in (one, two, joint)]
    i1, i2, i12 = (p.pointwise for p in parts)
    whole = atoms(i1, i2, i12, measure=measure, surprisal=surprisal, targets=targets)
    pixels = atoms(*(p.pixels for p in parts), measure=measure, surprisal=surprisal, targets=targets)
    finn = measure == "finn_lizier"
    return Decomposition(
        measure,
        whole,
        pixels,
        parts[0],
        parts[1],
        parts[2],
        surprisal,
        float(specificity(surprisal, i1)) if finn else None,
        float(ambiguity(surprisal, i1, i2)) if finn else None,
    )


def _surprisal(given: tuple[np.ndarray, np.ndarray] | None, like: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if given is None or any(h.shape != like.shape[:1] for h in given):
        raise InvalidRequest(
            f"pid: finn_lizier needs surprisal=(h1, h2), -log P of each image's words in nats, ({len(like)},) each."
        )
    h1, h2 = (h.reshape(-1, *(1,) * (like.ndim - 1)) for h in given)
    return h1, h2


def _i_min(i1: np.ndarray, i2: np.ndarray, targets: Sequence[Any] | np.ndarray | None) -> np.ndarray:
    if targets is None:
        return np.minimum(i1, i2).mean(0)
    if len(targets) != len(i1):
        raise InvalidRequest(f"pid: {len(targets)} targets for {len(i1)} images.")
    _, group, count = np.unique(np.asarray(targets), return_inverse=True, return_counts=True)
    total = np.zeros(i1.shape[1:])
    for k, n in enumerate(count):
        total = total + n * np.minimum(i1[group == k].mean(0), i2[group == k].mean(0))
    return total / len(i1)
