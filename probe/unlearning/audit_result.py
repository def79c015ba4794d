"""The rows of an audit, as tables, JSON and text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class AuditRow:
    """One number with its null.

    Attributes:
        measure: ``probe``, ``denoising`` or ``activity``.
        place: site, or ""; with the features' numbers for ``activity``.
        step: of the sampler; -1 for a measure over all steps.
        trained: for probes, ``unedited`` or ``edited``; "" for the others.
        tested: the model that was measured, ``unedited`` or ``edited``.
        value: balanced accuracy of a probe; share of the concept's images that are explained best by its word; mean
            code of the features on the concept's prompts.
        low, high: 95 % interval by resampling samples.
        null: what the same number is without the concept: probes on shuffled labels; the share of other images that
            the concept's word explains best; the mean code on other prompts.
        null_high: upper end of the null's 95 % range.
        meaningless: for ``edited`` probes, what a probe reads of a random embedding in the concept's place; else NaN.
        auc, recall: of probes; else NaN.
        n: samples behind the value.
    """

    measure: str
    place: str
    step: int
    trained: str
    tested: str
    value: float
    low: float
    high: float
    null: float
    null_high: float
    meaningless: float = float("nan")
    auc: float = float("nan")
    recall: float = float("nan")
    n: int = 0


@dataclass(frozen=True, eq=False)
class AuditResult:
    """All rows of an audit.

    Attributes:
        factor, label: the concept.
        rows: see ``AuditRow``.
        images: uint8 (n, height, width, 3), the edited model's images of the concept's prompts.
        chance: of ``denoising``, 1 / number of words.
    """

    factor: str
    label: str
    rows: Sequence[AuditRow]
    images: np.ndarray = field(repr=False)
    chance: float = float("nan")

    def select(self, measure: str, trained: str | None = None, tested: str | None = None) -> list[AuditRow]:
        """Rows of a measure, in order of place and step."""
        return [
            row
            for row in self.rows
            if row.measure == measure and trained in (None, row.trained) and tested in (None, row.tested)
        ]

    def table(self, trained: str, tested: str) -> tuple[list[str], list[int], np.ndarray]:
        """Sites, steps, and balanced accuracies (sites, steps) of one kind of probe."""
        rows = self.select("probe", trained, tested)
        sites, steps = list(dict.fromkeys(r.place for r in rows)), sorted({r.step for r in rows})
        values = np.full((len(sites), len(steps)), np.nan)
        for row in rows:
            values[sites.index(row.place), steps.index(row.step)] = row.value
        return sites, steps, values

    def means(self) -> dict[str, float | None]:
        """Means over places and steps, None where nothing was measured.

        ``probe_unedited``, ``probe_moved`` and ``probe_inside`` are the accuracies from unedited to unedited, unedited
        to edited, and edited to edited; ``probe_meaningless`` and ``probe_null`` belong to the last.
        """
        inside = self.select("probe", "edited", "edited")
        edited = self.select("denoising", tested="edited")
        found = {
            "probe_unedited": [row.value for row in self.select("probe", "unedited", "unedited")],
            "probe_moved": [row.value for row in self.select("probe", "unedited", "edited")],
            "probe_inside": [row.value for row in inside],
            "probe_meaningless": [row.meaningless for row in inside],
            "probe_null": [row.null for row in inside],
            "denoising_unedited": [row.value for row in self.select("denoising", tested="unedited")],
            "denoising": [row.value for row in edited],
            "denoising_null": [row.null for row in edited],
        }
        return {name: float(np.mean(values)) if values else None for name, values in found.items()}

    def to_rows(self) -> list[dict[str, Any]]:
        """JSON records."""
        return [{"factor": self.factor, "label": self.label} | asdict(row) for row in self.rows]

    def text(self) -> str:
        """The numbers in a few lines."""
        lines = [f"{self.factor} {self.label}"]
        for trained, tested in (("unedited", "unedited"), ("unedited", "edited"), ("edited", "edited")):
            rows = self.select("probe", trained, tested)
            if not rows:
                continue
            above = sum(row.low > row.null_high for row in rows)
            line = (
                f"probe, {trained} -> {tested}: mean accuracy {np.mean([r.value for r in rows]):.2f} over {len(rows)} "
                f"places, null {np.mean([r.null for r in rows]):.2f}; above the null at {above}"
            )
            extra = [row.meaningless for row in rows if row.meaningless == row.meaningless]
            lines.append(line + (f"; a meaningless word is read with {np.mean(extra):.2f}" if extra else ""))
        for row in self.select("denoising"):
            lines.append(
                f"denoising, {row.tested}: {row.value:.0%} ({row.low:.0%} to {row.high:.0%}) of {row.n} images of the "
                f"concept are explained best by its word; {row.null:.0%} of other images; chance {self.chance:.0%}"
            )
        for place in dict.fromkeys(row.place for row in self.select("activity")):
            pair = [[r for r in self.select("activity", tested=m) if r.place == place] for m in ("unedited", "edited")]
            before, after = (float(np.mean([r.value for r in rows])) for rows in pair)
            rest = float(np.mean([r.null for r in pair[1]]))
            lines.append(
                f"activity at {place}: {after:.3g} after the edit, {before:.3g} before; other prompts {rest:.3g}"
            )
        return "\n".join(lines)
