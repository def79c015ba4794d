"""The unlearning part of ``results.json`` as tables and as rows of a chart.

A row of the file has ``factor``, ``target``, ``edit`` (False for the unedited model), ``n_images``, and for
each metric a value with ``_low`` and ``_high``, all shares in [0, 1]. Rows of other measurements in the
same file are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

METRICS = {
    "ua": "UA",
    "ira": "IRA",
    "cra": "CRA",
    "artifacts": "Artifacts",
    "change_retain": "Change, others",
}
"""Metric in the file -> column. What they mean is in ``MEANINGS``."""

MEANINGS = {
    "ua": "share of the target's images in which the judge no longer finds it; higher is better",
    "ira": "accuracy on the other labels of the target's factor; higher is better",
    "cra": "accuracy on the other factor; higher is better",
    "artifacts": "share of the target's images that show none of the known things; lower is better",
    "change_retain": "mean change of pixels in images that do not ask for the target, same seeds; lower is better",
}


@dataclass(frozen=True)
class Score:
    """One target, edited or not.

    Attributes:
        factor: the target's factor.
        target: its label.
        edited: False for the unedited model on the same prompts.
        n_images: images that were judged.
        values: metric -> (value, low, high), shares; low and high are None where the file has no interval.
    """

    factor: str
    target: str
    edited: bool
    n_images: int | None
    values: Mapping[str, tuple[float, float | None, float | None]]

    @property
    def name(self) -> str:
        """``style: mosaic``."""
        return f"{self.factor}: {self.target}"


def scores(rows: Sequence[Mapping[str, Any]]) -> list[Score]:
    """The unlearning scores among the rows of a measurement, in file order."""
    found = []
    for row in rows:
        values = {
            m: (v, _share(row.get(f"{m}_low")), _share(row.get(f"{m}_high")))
            for m in METRICS
            if (v := _share(row.get(m))) is not None
        }
        if isinstance(row.get("factor"), str) and isinstance(row.get("target"), str) and "ua" in values:
            n = row.get("n_images")
            found.append(
                Score(
                    row["factor"],
                    row["target"],
                    row.get("edit") is not False,
                    n if isinstance(n, int) else None,
                    values,
                )
            )
    return found


def table(found: Sequence[Score]) -> list[dict[str, str]]:
    """One row a score; each cell ``96.1 % (93.0 to 98.4)``."""
    return [
        {
            "Target": s.name,
            "Model": "edited" if s.edited else "unedited",
            "Images": "" if s.n_images is None else f"{s.n_images:,}",
        }
        | {title: cell(s.values.get(metric)) for metric, title in METRICS.items()}
        for s in found
    ]


def chart_rows(found: Sequence[Score]) -> list[dict[str, Any]]:
    """Rows for ``result_figures.intervals``: the edited models, one group a target."""
    return [
        {
            "group": s.name,
            "name": METRICS[metric],
            "value": v,
            "low": v if low is None else low,
            "high": v if high is None else high,
        }
        for s in found
        if s.edited
        for metric, (v, low, high) in s.values.items()
    ]


def methods(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The means of each method and factor among the rows of ``denoscope bench unlearn``; none of other files."""
    return [row for row in rows if row.get("part") == "average" and "method" in row and "ua" in row]


def method_table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """One row a method and factor; cells as in ``table``."""
    return [
        {"Method": str(row["method"]).replace("_", " "), "Targets": f"{row['factor']}s"}
        | {
            title: cell((share, _share(row.get(f"{m}_low")), _share(row.get(f"{m}_high"))))
            if (share := _share(row.get(m))) is not None
            else "-"
            for m, title in METRICS.items()
        }
        for row in rows
    ]


def frontier(rows: Sequence[Mapping[str, Any]], factor: str) -> list[dict[str, Any]]:
    """Points for ``result_figures.frontier``: each target of a method and its mean; unedited models are left out."""
    return [
        {
            "group": str(row["method"]).replace("_", " "),
            "name": "mean" if row["part"] == "average" else str(row["target"]),
            "x": (row["ira"] + row["cra"]) / 2,
            "y": row["ua"],
            "average": row["part"] == "average",
        }
        for row in rows
        if row.get("part") in ("target", "average")
        and row["factor"] == factor
        and row["method"] != "no_edit"
        and all(_share(row.get(m)) is not None for m in ("ua", "ira", "cra"))
    ]


def cell(value: tuple[float, float | None, float | None] | None) -> str:
    """A share in percent with its interval; a dash where it was not measured."""
    if value is None:
        return "-"
    share, low, high = value
    interval = "" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})"
    return f"{100 * share:.1f} %{interval}"


def _share(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1 else None
