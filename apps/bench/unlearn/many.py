"""``denoscope bench unlearn-many``: one, two, four, eight concepts at once, with the same dictionaries.

The concepts of a factor are taken in one random order, so that each larger set holds the smaller ones. For every number
of concepts K:

    joint        one SAeUron edit at each site with the features of all K, found on the unedited model
    sequential   K edits, one after another; the features of each are found on the model with those before it in place,
                 whose activations are recorded anew
    random       the control, for the largest set: the joint edit's push in random directions of equal norm

The setting is chosen once, on validation images of the joint edit of the largest set, and used for all of them: numbers
of concepts, and ways to edit them, then differ in nothing else. Scores are those of
``probe.unlearning.protocol`` with several targets: UA over the images that ask for any of them, IRA over the labels
that are left, CRA over the other factor. What they do not see: an image that asks for one unlearned concept and shows
another one counts as forgotten, so its share is told beside them (``instead``). Finished conditions are not repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from apps.bench.unlearn.config import ManyBench
from apps.bench.unlearn.many_conditions import CONTROL, METHOD, MODES, Conditions
from apps.bench.unlearn.prepare import Bench, learn
from apps.bench.unlearn.world import dealt_rows
from apps.errors import InvalidOption
from apps.images import save_png
from apps.locks import only_command
from apps.measurement import Measurement
from apps.progress import percent, table
from apps.stages import Say
from apps.unlearning.methods import method

SHOWN = ("ua", "instead", "ira", "cra", "artifacts", "artifacts_retain", "ua_clean", "change_retain")
"""Scores of the table."""
QUOTED = ("ua", "instead", "ira", "cra", "artifacts", "mean")
"""Scores among the ratios."""


def bench_unlearn_many(config: ManyBench, say: Say = print) -> Measurement:
    """Run everything that is not done yet in the work folder.

    Raises:
        InvalidOption: a factor has too few labels to leave one.
    """
    many, most = Conditions(config, Bench(config.bench), say), config.counts[-1]
    for factor in config.factors:
        world = many.bench.world
        if most > len(world.labels[factor]) or most >= len(world.test.targets(factor)):
            raise InvalidOption(f"bench unlearn-many: {most} {factor}s of a world leave no other.")
    with only_command(config.bench.work, "bench unlearn-many"):
        learn(many.bench)
        rows, ratios = _measured(many)
        for factor in config.factors:
            save_png(config.bench.work / f"many-{factor}.png", many.sheet(factor))
    return Measurement("bench.unlearn_many", rows, ratios, config.bench.place.device, config.record())


def _measured(many: Conditions) -> tuple[list[dict[str, Any]], dict[str, float | None]]:
    """(rows, ratios) of all conditions."""
    config = many.config
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float | None] = {}
    for factor in config.factors:
        for count in config.counts:
            labels = many.order(factor)[:count]
            for mode in ("no_edit", *MODES, *([CONTROL] if count == config.counts[-1] else [])):
                scores, instead = many.scores(mode, factor, labels)
                about = {"mode": mode, "count": count, "setting": many.setting(factor).name}
                row = about | scores.row() | {"mean": float(np.mean([scores[m].value for m in ("ua", "ira", "cra")]))}
                row |= {"instead": instead.value, "instead_low": instead.low, "instead_high": instead.high}
                rows.append(row)
                ratios |= {f"{factor}_{mode}_{count}_{name}": row[name] for name in QUOTED}
    return rows, ratios


def n_images(config: ManyBench) -> int:
    """Images of a whole run, recordings included."""
    world = Bench(config.bench).world
    test = len(dealt_rows(world.test, config.bench.retain_seeds))
    conditions = len(config.counts) * len(MODES) + 1 - (1 if config.counts[0] == 1 else 0)
    found = config.bench.n_recorded + test
    for factor in config.factors:
        n_settings = len(config.bench.settings(method(METHOD), factor, world.labels[factor][0]))
        found += conditions * test + (config.counts[-1] - 1) * config.n_rescored
        found += n_settings * sum(config.bench.validation) if n_settings > 1 else 0
    return found


def many_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The scores for people, in percent with intervals."""
    body = [
        [f"{row['count']} {row['factor']}{'s' if row['count'] > 1 else ''}, {row['mode']}"]
        + [percent(row, name) for name in SHOWN]
        + [f"{100 * row['mean']:.1f}"]
        for row in rows
    ]
    return table(["concepts", *(name.replace("_", " ") for name in SHOWN), "mean"], body)
