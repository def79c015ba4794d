"""The demo's report: what was done to canvas, what it looks like, how well it worked, how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from apps import report as html
from apps.demo.config import DemoConfig
from apps.images import labelled_grid, overlay, read_image, save_png
from apps.runs import Run, site_name
from apps.unlearning.edits import shown_image

if TYPE_CHECKING:
    from probe.unlearning import PromptGrid
    from sae import FeatureBundle

_METRICS = ("ua", "ira", "cra", "artifacts", "artifacts_retain", "change_retain")
_COLUMNS = ("UA", "IRA", "CRA", "artifacts", "artifacts elsewhere", "change elsewhere")
_GOOD = {"ua": (0.9, True), "ira": (0.9, True), "cra": (0.9, True), "artifacts": (0.1, False)}
_N_EXAMPLES, _N_STEPS = 5, 6
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
            "A sparse autoencoder was trained on what the canvas model computes while it draws. A few of its "
            "features carry an "
            "object or a style; pushing them down removes that and leaves the rest. All pictures in a column "
            "share their prompt "
            "and seed.",
        ),
        html.section("In one picture", _headline(pictures, records), _tiles(measured)),
        _results(measured),
    ]
    for record in records:
        parts.append(_target(record, pictures, bundles[site_name(record["site"])]))
    parts.append(_steering(run, steered, bundles[steered["name"]]))
    parts.append(_how(run, config, measured, records))
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
        "UA: share of the images that ask for the target in which the judge no longer sees it. IRA: accuracy on "
        "the other "
        "labels of the same kind. CRA: accuracy on the other kind. Artifacts: images that show none of the known "
        "things, "
        "among those that ask for the target and elsewhere. Change: mean absolute difference of pixels to the unedited "
        "image of the same seed, where the target was not asked for. Percent, with 95 % bootstrap intervals over "
        "prompts "
        "and seeds; protocol of UnlearnCanvas (Zhang et al. 2024)."
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
            f"Edit at {record['site']}: {record['setting']}. Where a feature of {label} is more active than it is "
            "on average, "
            "its code is multiplied; what the dictionary does not explain stays as it was."
        ),
        html.sub(f"Prompts that ask for {label}"),
        _before_after(record, own, pictures),
        html.sub("Prompts that do not"),
        _before_after(record, rest, pictures),
    ]
    best = bundle.find(factor, label, 1)[0][0]
    parts.append(_feature(bundle, best, f"{factor} {label}"))
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


def _feature(bundle: FeatureBundle, feature: int, concept: str) -> str:
    """Top examples of a feature with its map over steps, and its activation over steps."""
    examples, maps = bundle.examples(feature)[:_N_EXAMPLES], bundle.maps(feature)
    stats = bundle.stats(feature)
    if not examples or bundle.grid is None:
        return html.text(f"Feature {feature} has no maps to show.")
    scale = float(stats["p999"]) or float(stats["max"])
    picked = np.unique(np.linspace(0, len(bundle.steps) - 1, _N_STEPS).round().astype(int)).tolist()
    rows = []
    for example in examples:
        if example.image is None:
            continue
        image = read_image(example.image)
        cells: list[html.Picture | None] = [html.Picture(image, f"final image, prompt: {example.prompt}")]
        for i in picked:
            heat = maps[example.rank, i]
            alt = f"feature {feature} at step {bundle.steps[i]}, largest activation {heat.max():.3g}"
            cells.append(html.Picture(overlay(image, heat, scale=scale), alt))
        rows.append((example.prompt, cells))
    columns = ["image", *(f"step {bundle.steps[i]}" for i in picked)]
    curve = html.line_chart(
        [(f"feature {feature}", [float(v) for v in bundle.mean_by_step[:, feature]])],
        [float(s) for s in bundle.steps],
        x_label="step (0 = most noise)",
        y_label="mean activation",
    )
    return (
        html.sub(f"Feature {feature} of {bundle.info['site']}, the one that tells {concept} best")
        + html.text(
            f"Its strongest examples in the collection. Colour: activation at each cell while the image is drawn, "
            "one scale "
            f"for all. On in {stats['density']:.1%} of rows and {stats['sample_fraction']:.0%} of images."
        )
        + html.picture_grid(rows, columns)
        + html.colour_bar(scale, "activation")
        + curve
    )


def _steering(run: Run, steered: Mapping[str, Any], bundle: FeatureBundle) -> str:
    """One feature up and down, beside a random direction of the same length."""
    from apps.demo.steer import steer_image

    strengths, folder = steered["strengths"], run.new("unlearn", "steer")
    concept = steered["rows"][0]["steered"]
    table: list[tuple[str, list[html.Picture | None]]] = []
    for i, prompt in enumerate(steered["prompts"][:4]):
        for control in (False, True) if i == 0 else (False,):
            what = "random direction" if control else f"feature {steered['feature']}"
            cells: list[html.Picture | None] = []
            for j, strength in enumerate(strengths):
                image = read_image(folder / steer_image(control, j, i))
                cells.append(html.Picture(image, f"{what} at strength {strength:g}, prompt: {prompt}"))
            table.append((f"{prompt} ({what})" if control else prompt, cells))
    columns = [f"{s:+g} p99" if s else "unedited" for s in strengths]
    by_direction = {
        name: [row for row in steered["rows"] if row["direction"] == name] for name in ("feature", "random")
    }
    chart = html.line_chart(
        [(name, [row["probability"] for row in rows]) for name, rows in by_direction.items()],
        [float(s) for s in strengths],
        x_label="strength, in units of the feature's 99th percentile",
        y_label=f"probability of {concept}",
        bands=[
            ([r["probability_low"] for r in rows], [r["probability_high"] for r in rows])
            for rows in by_direction.values()
        ],
        y_max=1.0,
    )
    return html.section(
        f"Feature {steered['feature']} up and down",
        html.text(
            f"The feature of {steered['site']} that tells {concept} best, added at every cell and step to prompts "
            "that do not "
            "ask for it. A random direction of the same length is the control: it shows what any push of that "
            "size does."
        ),
        html.picture_grid(table, columns),
        chart,
        _feature(bundle, int(steered["feature"]), concept),
    )


def _how(run: Run, config: DemoConfig, measured: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """Everything that is needed to do it again."""
    model = measured["config"]["model_fingerprint"]
    machine = measured["machine"]
    git = measured["git"] or {"commit": "not a checkout", "dirty": False}
    dictionaries = [row for row in measured["rows"] if row.get("measure") == "dictionary"]
    items = [
        ("model", f"{model['name']} ({model['model_class']}), weights {model['weights_hash'][:16]}"),
        ("scheduler", f"{model['scheduler']}, configuration {model['scheduler_config_hash'][:16]}"),
        *(
            (
                f"dictionary at {row['site']}",
                f"{row['features']} features, k {row['k']}, {row['rows']:,} rows; explained variance "
                f"{row['explained_variance']:.3f} (first step {row['ev_first_step']:.3f}, last "
                f"{row['ev_last_step']:.3f}), "
                f"L0 {row['l0']:.1f}, dead {row['dead_fraction']:.1%}",
            )
            for row in dictionaries
        ),
        ("configuration", measured["config"]["config_hash"][:16]),
        ("versions", ", ".join(f"{name} {number}" for name, number in measured["versions"].items())),
        ("commit", git["commit"] + (", with local changes" if git["dirty"] else "")),
        (
            "machine",
            f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, model on {measured['device']}",
        ),
    ]
    seconds = [[str(r["stage"]), f"{r['value']:.0f}"] for r in measured["rows"] if r.get("measure") == "seconds"]
    target = run.folder.as_posix() if not run.folder.is_absolute() else f"runs/{run.name}"
    commands = [
        f"denoscope demo --out {target} --object {config.object} --style {config.style}",
        f"denoscope app {target}",
        *(
            f'denoscope generate --prompt "a red {config.object} on white background in flat style" '
            f"--recipe {target}/{record['recipe']} --out edited.png"
            for record in records
        ),
    ]
    fields = [[name, str(value)] for name, value in config.to_dict().items()]
    return html.section(
        "How it was made",
        html.definitions(items),
        html.code("\n".join(commands)),
        html.folded("Time of each stage, seconds", html.data_table(["stage", "seconds"], seconds)),
        html.folded("All settings", html.data_table(["setting", "value"], fields)),
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _with_interval(row: Mapping[str, Any], metric: str) -> str:
    value, low, high = (row.get(f"{metric}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    return _percent(value) + ("" if low is None or high is None else f"\n{100 * low:.1f} to {100 * high:.1f}")
