"""``denoscope info``: what is measured for each question, and the rows, maps and texts that come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.errors import InvalidOption
from apps.information.subject import Subject, class_texts, word_columns

if TYPE_CHECKING:
    from probe.information import Column, NodeTable
    from probe.information.intervals import Interval


@dataclass(frozen=True)
class Request:
    """One question.

    Attributes:
        what: mi, cmi, pid, nll or classify.
        form: of the information that is printed; maps are orthogonal.
        measure: of redundancy, for pid.
        context: pid given the rest of the caption.
        template: for classify.
        seed: of the nulls.
    """

    what: str
    form: str = "standard"
    measure: str = "mmi"
    context: bool = False
    template: str | None = None
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Answer:
    """What came out.

    Attributes:
        rows: flat records, in nats.
        maps: role -> method -> (images, height, width).
        missing: nats that the window leaves out at least, or None where that has no meaning.
    """

    rows: list[dict[str, Any]]
    maps: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    missing: float | None = None


def columns_of(request: Request, subject: Subject, x: Any) -> list[Column]:
    """The columns that a question needs.

    Raises:
        InvalidOption: pid of other than two words, classify of other than one.
    """
    from probe.information import Column, GaussianControl, class_columns

    roles = list(subject.words)
    if request.what == "pid":
        if len(roles) != 2:
            raise InvalidOption(f"info pid: {len(roles)} words ({', '.join(roles)}); choose two with --words.")
        return word_columns(subject, [(roles[0], roles[1])], seed=request.seed)
    if request.what == "nll":
        if len(x) < 2:
            raise InvalidOption("info nll: one image has no moments for the Gaussian control; give at least two.")
        captions = Column("caption", subject.captions)
        return [Column("empty"), captions, Column("control", model=GaussianControl.fit(x))]
    if request.what == "classify":
        if len(roles) != 1:
            raise InvalidOption(f"info classify: {len(roles)} words ({', '.join(roles)}); choose one with --words.")
        return class_columns(len(x), class_texts(subject, roles[0], request.template))
    return word_columns(subject, seed=request.seed)


def answer(request: Request, subject: Subject, table: NodeTable, x: Any, lenses: Mapping[str, Any]) -> Answer:
    """Reduce a table.

    Args:
        request, subject: what was asked.
        table: with the columns of ``columns_of``.
        x: the clean samples.
        lenses: role -> (attention, gradient x attention) maps, or empty.
    """
    from probe.information import word_maps

    if request.what == "nll":
        return _nll(table, x)
    if request.what == "classify":
        return _classify(table, next(iter(subject.words.values())))
    roles = list(subject.words)
    maps = {}
    for k, role in enumerate(roles):
        attention, gradient = lenses.get(role, (None, None))
        other = roles[1 - k] if request.what == "pid" else None
        maps[role] = word_maps(table, role, other=other, attention=attention, gradient=gradient)
    if request.what == "pid":
        return _pid(request, table, roles, maps)
    return _words(request, table, roles, maps)


def _words(request: Request, table: NodeTable, roles: Sequence[str], maps: Any) -> Answer:
    from probe.information import information, word_information

    form: Any = request.form
    found = {"caption": information(table, "caption", form=form)}
    if request.what == "mi":
        found |= {role: information(table, f"word:{role}", form=form) for role in roles}
    else:
        found = {role: word_information(table, role, form=form) for role in roles}
    rows = []
    for name, part in found.items():
        row = {"of": name, "given": part.given, "form": form, **_interval(part.interval()), "n": table.n_images}
        null = part.null if part.null is None else part.null.interval()
        row |= {"null": null and null.value, "null_low": null and null.low, "null_high": null and null.high}
        rows.append(row | {"missing": part.window.missing})
    return Answer(rows, maps, max(part.window.missing for part in found.values()))


def _pid(request: Request, table: NodeTable, roles: Sequence[str], maps: Any) -> Answer:
    from probe.information import pid

    measure: Any = request.measure
    found = pid(table, *roles, context=request.context, measure=measure)
    rows = [
        {"of": name, **_interval(part.interval()), "n": table.n_images}
        for name, part in zip((*roles, "both"), (found.first, found.second, found.both), strict=True)
    ]
    names = {"unique_first": f"unique {roles[0]}", "unique_second": f"unique {roles[1]}"}
    for atom, value in found.image._asdict().items():
        row: dict[str, Any] = {"of": names.get(atom, atom), "value": float(value), "n": table.n_images}
        rows.append(row if request.measure == "i_min" else row | _interval(found.interval(atom)))
    return Answer(rows, maps, found.both.window.missing)


def _nll(table: NodeTable, x: Any) -> Answer:
    from probe.information import GaussianControl, likelihood

    control = GaussianControl.fit(x)
    rows = []
    for column in ("empty", "caption"):
        found = likelihood(table, column, control=control)
        bits = float(found.bits_per_dimension.mean())
        row = {"of": column, **_interval(found.interval()), "bits_per_dimension": bits, "n": table.n_images}
        rows.append(row)
    return Answer(rows)


def _classify(table: NodeTable, labels: Sequence[str]) -> Answer:
    from apps.measurement import bootstrap_mean, wilson
    from probe.information import classify

    found = classify(table, table.columns)
    hits = sum(found.classes[k] == label for k, label in zip(found.best, labels, strict=True))
    share, told = wilson(hits, len(labels)), bootstrap_mean(found.prior_entropy - found.entropy)
    chance = {"of": "accuracy", "null": 1.0 / len(found.classes)}
    rows: list[dict[str, Any]] = [chance | share._asdict() | {"n": len(labels)}]
    rows.append({"of": "information", "entropy": found.prior_entropy} | told._asdict() | {"n": len(labels)})
    for i, label in enumerate(labels):
        best = found.classes[found.best[i]]
        value = float(found.posterior[i, found.classes.index(label)])
        rows.append({"of": f"image {i}", "label": label, "best": best, "value": value})
    return Answer(rows)


def _interval(found: Interval) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}
