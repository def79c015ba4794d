"""A sweep from start to end: draw, judge, measure, and write what was found.

    OUT/steer.json     rows: one a push, group of prompts and strength; ratios: what the command prints
    OUT/grid.png       same prompts and seeds at every strength, the control below
    OUT/page.html      dose-response curves, images, numbers, and how to read them
    OUT/recipe_up/     the push at the strength from which more does not help, if there is one; recipe_down likewise
    OUT/images/        every image (steer_sweep)

The rows and ratios are made in numbers.py, from what response.py measures.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.errors import InvalidOption, NoJudge
from apps.images import save_png
from apps.measurement import Measurement
from apps.progress import Clock, bar, table
from apps.report import write_page
from apps.steering import report as steer_report
from apps.steering.numbers import SIDES, groups_of, response_rows, shown_rows, summary
from apps.steering.response import Unedited, columns
from apps.steering.sweep import PUSH, RANDOM, UNEDITED, Sweep, drawn, missing, open_folder

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from apps.steering.response import Columns
    from probe.canvas import Judge, Verdict

NO_JUDGE = "No judge knows this model's images: the change of pixels is told, not what they show."


def target_of(
    asked: tuple[str, str] | None, inferred: tuple[str, str] | None, judge: Judge | None
) -> tuple[str, str] | None:
    """The concept whose response is measured: the one asked for, or the one that a direction was fitted for.

    Raises:
        NoJudge: a concept was asked for, but no judge knows the model. InvalidOption: the judge knows no such concept.
    """
    from probe.canvas import FACTORS

    if judge is None:
        if asked is not None:
            raise NoJudge(f"steer: --concept {'='.join(asked)} needs a judge. {NO_JUDGE} Leave --concept out.")
        return None
    if asked is not None and asked[1] not in FACTORS.get(asked[0], ()):
        known = ", ".join(FACTORS.get(asked[0], FACTORS))
        raise InvalidOption(f"steer: the judge knows no {'='.join(asked)}; it knows {known}.")
    if asked is None and inferred is not None and inferred[1] in FACTORS.get(inferred[0], ()):
        return inferred
    return asked


def steer(
    sweep: Sweep,
    pipe: DiffusionPipeline,
    judge: Judge | None,
    target: tuple[str, str] | None,
    out: Path,
    *,
    dry_run: bool = False,
    force: bool = False,
    n_shown: int = 3,
    side: int = 96,
) -> Measurement | None:
    """Run a sweep and write its folder.

    Args:
        sweep: what is drawn.
        pipe: the model.
        judge: of its images; None for no reading.
        target: (factor, label) that is steered.
        out: folder; a sweep that was interrupted there goes on.
        dry_run: stop after the unedited images, which time the rest.
        force: replace another sweep in the folder.
        n_shown: prompts of each group in the sheet.
        side: pixels of an image in the sheet.

    Returns:
        What was written to steer.json; None after a dry run.
    """
    from probe.model import fingerprint
    from probe.model.fingerprint import fingerprint_hash

    open_folder(out, sweep.key(fingerprint_hash(fingerprint(pipe))), force=force)
    groups = groups_of(sweep.prompts, target)
    shown = shown_rows(sweep.prompts, groups, n_shown)
    n, n_conditions = len(sweep.prompts), len(sweep.conditions)
    print(f"{sweep.push.name}: {n} prompts and seeds x {n_conditions} conditions = {sweep.n_images} images")
    if judge is None:
        print(NO_JUDGE)
    measured: dict[tuple[str, float], Columns] = {}
    pictures: dict[tuple[str, float], np.ndarray] = {}
    texts: dict[tuple[str, float], list[str]] = {}
    clock, before = Clock(), None
    todo = missing(sweep, out)
    with bar("steer") as progress:
        for condition, images in zip(sweep.conditions, drawn(sweep, pipe, out, progress=progress), strict=True):
            verdict = judge(images) if judge is not None else None
            if before is None:
                before = Unedited(images, verdict)
                left = missing(sweep, out)
                if todo > left or dry_run:
                    print(_estimate(left, clock.seconds / n if todo > left else None), flush=True)
                if dry_run:
                    return None
            key = condition.kind, condition.strength
            measured[key] = columns(images, verdict, before, target)
            pictures[key] = images[shown]
            texts[key] = _read(verdict, shown, target)
    strengths = sorted({0.0, *sweep.strengths})
    rows = response_rows(measured, sweep, groups, strengths)
    ratios = summary(rows, measured, groups, strengths, target)
    result = Measurement("steer", rows, ratios, device=str(pipe.device), config=_config(sweep, target))
    result.write(out / "steer.json")
    _save_recipes(out, sweep, pipe, ratios)
    _show(out, sweep, rows, ratios, groups, shown, strengths, pictures, texts, target, side)
    print(_told(rows, ratios, sweep.push.unit))
    print(f"\n{out / 'page.html'} ({clock})")
    return result


def _read(verdict: Verdict | None, shown: Sequence[int], target: tuple[str, str] | None) -> list[str]:
    from apps.judging import read_outs
    from probe.canvas import FACTORS

    if verdict is None:
        return []
    texts = read_outs(verdict)
    if target is not None:
        factor, label = target
        found = verdict.probs[factor][:, FACTORS[factor].index(label)]
        texts = [f"{text}\n{label} {probability:.0%}" for text, probability in zip(texts, found, strict=True)]
    return [texts[i] for i in shown]


def _estimate(left: int, seconds: float | None) -> str:
    if seconds is None:
        return f"{left} images are left to draw"
    minutes = left * seconds / 60
    return f"{left} images are left to draw, about {minutes:.1f} minutes at {seconds:.2f} s an image"


def _save_recipes(out: Path, sweep: Sweep, pipe: DiffusionPipeline, ratios: Mapping[str, float | None]) -> None:
    from probe.interventions import Recipe

    for _, name in SIDES.values():
        folder = out / f"recipe_{name}"
        shutil.rmtree(folder, ignore_errors=True)
        enough = ratios.get(f"{name}_saturation")
        if enough is not None:
            edit = sweep.push.edit(enough, branch=sweep.branch, steps=sweep.edit_steps)
            Recipe.of(pipe, [edit], {"push": sweep.push.record(), "strength": enough}).save(folder)


def _config(sweep: Sweep, target: tuple[str, str] | None) -> dict[str, Any]:
    return {
        "push": sweep.push.record(),
        "concept": None if target is None else "=".join(target),
        "branch": sweep.branch,
        "edit_steps": sweep.edit_steps,
        "steps": sweep.steps,
        "guidance": sweep.guidance,
        "batch_size": sweep.batch_size,
        "prompts": list(dict.fromkeys(sweep.prompts)),
        "seeds": list(dict.fromkeys(sweep.seeds)),
    }


def _show(
    out: Path,
    sweep: Sweep,
    rows: Sequence[Mapping[str, Any]],
    ratios: Mapping[str, float | None],
    groups: Mapping[str, np.ndarray],
    shown: Sequence[int],
    strengths: Sequence[float],
    pictures: Mapping[tuple[str, float], np.ndarray],
    texts: Mapping[tuple[str, float], list[str]],
    target: tuple[str, str] | None,
    side: int,
) -> None:
    """The sheet and the page."""
    unit = sweep.push.unit
    names = [f"{s:+g} {unit}" if s else "unedited" for s in strengths]
    cells = []
    for number, i in enumerate(shown):
        images, read = {}, {}
        for kind in (PUSH, RANDOM):
            keys = [(kind, s) if s else (UNEDITED, 0.0) for s in strengths]
            images[kind] = np.stack([pictures[key][number] for key in keys])
            read[kind] = [texts[key][number] for key in keys if texts[key]]
        cells.append((f"{sweep.prompts[i]}, seed {sweep.seeds[i]}", images, read))
    title = sweep.push.name + (f", steering {' '.join(target)}" if target else "")
    save_png(out / "grid.png", steer_report.sheet(cells, names, title=title, side=side))
    charts = {}
    for group in groups:
        _, name = SIDES.get(group, (0, ""))
        marks = [(ratios.get(f"{name}_saturation"), "saturation"), (ratios.get(f"{name}_artifact_limit"), "artifacts")]
        charts[group] = steer_report.curves(rows, group, unit, [(s, text) for s, text in marks if s is not None])
    lead = f"Strengths {strengths[0]:+g} to {strengths[-1]:+g} {unit}, branch {sweep.branch}."
    about = [("sites", sweep.push.site), ("prompts and seeds", str(len(sweep.prompts))), ("steps", str(sweep.steps))]
    about += [("edited steps", "all" if sweep.edit_steps is None else ", ".join(map(str, sweep.edit_steps)))]
    if target is None and "artifacts" not in rows[0]:
        lead += " " + NO_JUDGE
    write_page(out / "page.html", steer_report.page(title, lead, rows, charts, cells, names, about))


def _told(rows: Sequence[Mapping[str, Any]], ratios: Mapping[str, float | None], unit: str) -> str:
    """The result for a terminal."""
    lines = [table(*steer_report.table_of(rows)), "", "percent, 95 % intervals"]
    if ratios:
        lines.append(
            f"trend of the target with the strength: rho {ratios['push_trend']:.2f} (p {ratios['push_trend_p']:.4f}), "
            f"random {ratios['random_trend']:.2f} (p {ratios['random_trend_p']:.4f})"
        )
    for _, name in SIDES.values():
        if f"{name}_saturation" in ratios:
            enough, limit = ratios[f"{name}_saturation"], ratios[f"{name}_artifact_limit"]
            lines.append(
                f"{name}: "
                + (f"saturation at {enough:+g} {unit}" if enough is not None else "no response")
                + (f", artifacts from {limit:+g} {unit}" if limit is not None else ", no more artifacts than unedited")
            )
    return "\n".join(lines)
