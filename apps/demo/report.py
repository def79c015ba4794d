"""The demo's report: what was done to canvas, what it looks like, how well it worked, how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from apps import report as html
from apps.demo.config import DemoConfig
from apps.demo.report_feature import feature_section, steering_section
from apps.demo.report_how import how_section
from apps.images import labelled_grid, read_image, save_png
from apps.runs import Run, site_name
from apps.unlearning.edits import shown_image

if TYPE_CHECKING:
    from probe.unlearning import PromptGrid
    from sae import FeatureBundle

_METRICS = ("ua", "ira", "cra", "artifacts", "artifacts_retain", "change_retain")
_COLUMNS = ("UA", "IRA", "CRA", "artifacts", "artifacts elsewhere", "change elsewhere")
_GOOD = {"ua": (0.9, True), "ira": (0.9, True), "cra": (0.9, True), "artifacts": (0.1, False)}
OVERVIEW = "overview.png"


def write_report(
    run: Run,
    config: DemoConfig,
    measured: Mapping[str, Any],
    grid: PromptGrid,
    records: Sequence[Mapping[str, Any]],
    baseline: Mapping[str, Any],
    steered: Mapping[str, Any],
) -> None:
    """Write ``report.html`` of a demo, and its first figure as ``overview.png``.

    Args:
        run: the run folder, with images, bundles and recipes in it.
        config: what was done.
        measured: the content of ``results.json``.
        grid: the scored prompts.
        records: of the object and of the style (``unlearning.run_edit``).
        baseline: what the judge saw in the unedited images.
        steered: of the steering stage.
    """
    from sae import FeatureBundle

    bundles = {name: FeatureBundle.open(run.bundle(name)) for name in run.bundles()}
    pictures = _Pictures(run, grid, baseline)
    parts = [
        html.heading(
            f"Unlearning {config.object} and {config.style}",
            "A sparse autoencoder was trained on what the canvas model computes while it draws. A few of its features "
            "carry an object or a style; pushing them down removes that and leaves the rest. All pictures in a column "
            "share their prompt and seed.",
        ),
        html.section("In one picture", _headline(pictures, records), _tiles(measured)),
        _results(measured),
    ]
    for record in records:
        parts.append(_target(record, pictures, bundles[site_name(record["site"])]))
    parts.append(steering_section(run, steered, bundles[steered["name"]]))
    parts.append(how_section(run, config, measured, records))
    save_png(run.folder / OVERVIEW, _overview(pictures, records))
    html.write_page(run.report, html.page(f"denoscope: unlearning {config.object} and {config.style}", parts))


class _Pictures:
    """Images of the grid before and after, with what the judge saw."""

    def __init__(self, run: Run, grid: PromptGrid, baseline: Mapping[str, Any]) -> None:
        self._run, self.grid, self._baseline = run, grid, baseline

    def before(self, record: Mapping[str, Any], row: int) -> html.Picture:
        """The unedited image of a row of the grid that the edit's images show too."""
        return self._picture(f"{record['factor']}-{record['label']}/unedited", row, self._baseline, "unedited")

    def after(self, record: Mapping[str, Any], row: int) -> html.Picture:
        """The edited image; framed where the prompt asks for the target."""
        asked = self.grid.labels[record["factor"]][row] == record["label"]
        name = f"{record['factor']}-{record['label']}"
        return self._picture(name, row, record, f"without {record['label']}", marked=asked)

    def prompt(self, row: int) -> str:
        """Object and style that a row asks for."""
        return f"{self.grid.labels['object'][row]}, {self.grid.labels['style'][row]}"

    def _picture(
        self, name: str, row: int, judged: Mapping[str, Any], how: str, *, marked: bool = False
    ) -> html.Picture:
        seen = f"{judged['judged']['object'][row]}, {judged['judged']['style'][row]}"
        seen = ("artifact: " if judged["artifact"][row] else "") + seen
        image = read_image(shown_image(self._run.folder / "unlearn" / name, row))
        alt = f"{how}, prompt: {self.grid.prompts[row]}; the judge sees {seen}"
        return html.Picture(image, alt, f"judge: {seen}", marked)


def _headline_rows(grid: PromptGrid, records: Sequence[Mapping[str, Any]]) -> list[int]:
    """A few prompts that ask for the object, for the style, and for neither."""
    rows = [i for i in records[0]["shown"] if i in records[1]["shown"]]
    asks = [[grid.labels[r["factor"]][i] == r["label"] for r in records] for i in rows]
    groups = [
        [i for i, a in zip(rows, asks, strict=True) if a == wanted][:n]
        for wanted, n in (([True, False], 3), ([False, True], 3), ([False, False], 3))
    ]
    return [i for group in groups for i in group]


def _headline(pictures: _Pictures, records: Sequence[Mapping[str, Any]]) -> str:
    """The same prompts and seeds drawn by three models."""
    chosen = _headline_rows(pictures.grid, records)
    table = [("unedited", [pictures.before(records[0], i) for i in chosen])]
    table += [(f"without {record['label']}", [pictures.after(record, i) for i in chosen]) for record in records]
    note = "Framed: the prompt asks for what was unlearned. Below each image: what the judge sees in it."
    return html.picture_grid(table, [pictures.prompt(i) for i in chosen]) + html.text(note)


def _overview(pictures: _Pictures, records: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The headline as one picture, for documents that cannot hold a page."""
    chosen = _headline_rows(pictures.grid, records)
    rows = [[pictures.before(records[0], i) for i in chosen]]
    rows += [[pictures.after(record, i) for i in chosen] for record in records]
    return labelled_grid(
        [[picture.image for picture in row] for row in rows],
        row_labels=["unedited", *(f"without {record['label']}" for record in records)],
        column_labels=[pictures.prompt(i) for i in chosen],
        captions=[[picture.caption.removeprefix("judge: ") for picture in row] for row in rows],
        side=112,
        title="Same prompts, same noise. Above: what is asked for; below each image: what the judge sees in it.",
    )


def _tiles(measured: Mapping[str, Any]) -> str:
    names = {
        "ua": "forgotten (UA)",
        "ira": "kept, same kind (IRA)",
        "cra": "kept, other kind (CRA)",
        "artifacts": "wrecked",
    }
    items = []
    for factor in ("object", "style"):
        for metric, label in names.items():
            value = measured["ratios"].get(f"{factor}_{metric}")
            limit, above = _GOOD[metric]
            good = None if value is None else (value >= limit if above else value <= limit)
            items.append((_percent(value), f"{factor}: {label}", good))
    return html.tiles(items)


def _results(measured: Mapping[str, Any]) -> str:
    rows = []
    for row in measured["rows"]:
        if "ua" not in row:
            continue
        about = f"without {row['target']}" if row["edit"] else f"unedited, on {row['target']}"
        rows.append([f"{about}\n{row.get('setting', '')}".rstrip("\n"), *(_with_interval(row, m) for m in _METRICS)])
    note = (
        "UA: share of the images that ask for the target in which the judge no longer sees it. IRA: accuracy on the "
        "other labels of the same kind. CRA: accuracy on the other kind. Artifacts: images that show none of the known "
        "things, among those that ask for the target and elsewhere. Change: mean absolute difference of pixels to the "
        "unedited image of the same seed, where the target was not asked for. Percent, with 95 % bootstrap intervals "
        "over prompts and seeds; protocol of UnlearnCanvas (Zhang et al. 2024)."
    )
    return html.section("Results", html.data_table(["", *_COLUMNS], rows, note))


def _target(record: Mapping[str, Any], pictures: _Pictures, bundle: FeatureBundle) -> str:
    """Before and after of one target, its settings and its strongest feature."""
    factor, label = record["factor"], record["label"]
    grid = pictures.grid
    own = [i for i in record["shown"] if grid.labels[factor][i] == label]
    rest = [i for i in record["shown"] if grid.labels[factor][i] != label]
    parts = [
        html.text(
            f"Edit at {record['site']}: {record['setting']}. Where a feature of {label} is more active than it is on "
            "average, its code is multiplied; what the dictionary does not explain stays as it was."
        ),
        html.sub(f"Prompts that ask for {label}"),
        _before_after(record, own, pictures),
        html.sub("Prompts that do not"),
        _before_after(record, rest, pictures),
    ]
    best = bundle.find(factor, label, 1)[0][0]
    parts.append(feature_section(bundle, best, f"{factor} {label}"))
    if record["tried"]:
        rows = [
            [
                str(t["setting"]),
                *(_percent(t[m]) for m in ("ua_clean", "ira", "cra", "artifacts")),
                f"{t['objective']:.3f}",
            ]
            for t in record["tried"]
        ]
        header = ["setting", "clean UA", "IRA", "CRA", "artifacts", "mean of the first three"]
        note = "On validation prompts and seeds that are not among those scored above; the first was taken."
        parts.append(html.folded("Settings that were tried", html.data_table(header, rows, note)))
    return html.section(f"Without {label}", *parts)


def _before_after(record: Mapping[str, Any], rows: Sequence[int], pictures: _Pictures) -> str:
    if not rows:
        return html.text("None of the scored prompts.")
    table = [
        ("unedited", [pictures.before(record, i) for i in rows]),
        (f"without {record['label']}", [pictures.after(record, i) for i in rows]),
    ]
    return html.picture_grid(table, [pictures.prompt(i) for i in rows])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _with_interval(row: Mapping[str, Any], metric: str) -> str:
    value, low, high = (row.get(f"{metric}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    return _percent(value) + ("" if low is None or high is None else f"\n{100 * low:.1f} to {100 * high:.1f}")
