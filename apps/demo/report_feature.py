"""Of the demo's report: what one feature responds to, and what it does when it is pushed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from apps import report as html
from apps.demo.steer import steer_image
from apps.images import overlay, read_image
from apps.runs import Run

if TYPE_CHECKING:
    from sae import FeatureBundle

_N_EXAMPLES, _N_STEPS = 5, 6


def feature_section(bundle: FeatureBundle, feature: int, concept: str) -> str:
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


def steering_section(run: Run, steered: Mapping[str, Any], bundle: FeatureBundle) -> str:
    """One feature up and down, beside a random direction of the same length."""
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
            f"The feature of {steered['site']} that tells {concept} best, added at every cell and step to prompts that "
            "do not ask for it. A random direction of the same length is the control: it shows what any push of that "
            "size does."
        ),
        html.picture_grid(table, columns),
        chart,
        feature_section(bundle, int(steered["feature"]), concept),
    )
