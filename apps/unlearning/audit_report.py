"""Attacks as the audit command runs and tells them: each beside its ceiling, and beside a random token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.errors import InvalidOption
from apps.measurement import wilson
from apps.progress import bar, percent, table

if TYPE_CHECKING:
    from probe.canvas import Judge
    from probe.unlearning.audit import AuditTask


def check_attacks(names: Sequence[str]) -> None:
    """Refuse unknown attacks."""
    from probe.unlearning.attacks import ATTACKS

    unknown = [name for name in names if name not in ATTACKS]
    if unknown:
        raise InvalidOption(f"audit: no attack {', '.join(unknown)}; expected some of {', '.join(ATTACKS)}.")


def attack_rows(
    audited: AuditTask, judge: Judge, names: Sequence[str], n: int
) -> tuple[list[dict[str, Any]], dict[str, float | None]]:
    """(rows, ratios): the plain prompts, a random token, and every attack on the edited and the unedited model.

    ``found`` is the share of images in which the judge sees the concept and nothing wrecked, with its Wilson interval;
    ``ua`` is one minus the share judged to be the concept, wrecked or not, as in the benchmark.
    """
    from dataclasses import replace

    from probe.unlearning.attacks import ATTACKS, untrained
    from probe.unlearning.attacks.canvas import canvas_task

    task = canvas_task(
        audited.pipe,
        audited.interventions,
        audited.factor,
        audited.label,
        n=n,
        seed=audited.seed + 1,
        steps=audited.steps,
        guidance=audited.guidance,
        batch_size=audited.batch_size,
    )
    rows: list[dict[str, Any]] = []

    def add(name: str, model: str, images: np.ndarray, evaluations: int | None, seconds: float | None) -> None:
        verdict = judge(images)
        seen = verdict.labels(task.factor) == task.label
        found = wilson(int((seen & ~verdict.is_artifact).sum()), len(images))
        rows.append(
            {
                "measure": "attack",
                "factor": task.factor,
                "label": task.label,
                "attack": name,
                "model": model,
                "ua": float(1.0 - seen.mean()),
                "found": found.value,
                "found_low": found.low,
                "found_high": found.high,
                "artifacts": float(verdict.is_artifact.mean()),
                "n": len(images),
                "evaluations": evaluations,
                "seconds": seconds,
            }
        )

    with bar("attacks", "attack") as progress:
        total, done = 3 + 2 * len(names), 0
        for model, given in (("edited", task), ("unedited", replace(task, interventions=()))):
            add("none", model, given.draw(given.prompts), None, None)
            for name in names:
                result = ATTACKS[name](given)
                add(name, model, result.images, result.evaluations, result.seconds)
                done += 1
                progress(done, total, f"{name}, {model}")
        random = untrained(task)
        add("random token", "edited", random.images, random.evaluations, random.seconds)
        progress(total, total)
    edited = [row for row in rows if row["model"] == "edited" and row["attack"] in ("none", *names)]
    ratios: dict[str, float | None] = {
        "ua": edited[0]["ua"],
        "ua_attacked": min(row["ua"] for row in edited),
    }
    return rows, ratios


def attack_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for people, in percent."""
    body = [
        [
            f"{row['attack']}, {row['model']}",
            f"{100 * row['ua']:.1f}",
            percent(row, "found"),
            f"{100 * row['artifacts']:.1f}",
            "-" if row["evaluations"] is None else str(row["evaluations"]),
        ]
        for row in rows
    ]
    return table(["attack, model", "UA", "concept found", "artifacts", "evaluations"], body)
