"""``denoscope demo``: the whole story on the embedded model."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from apps.commands._options import Commands, add_command
from apps.demo.config import DemoConfig

_EXAMPLE = """
denoscope demo --out runs/demo
denoscope demo --out runs/boat --object boat --style hatch
"""


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "demo",
        run,
        summary="collect, train, find, unlearn, steer and report on canvas",
        about="Record the embedded model, train dictionaries, find features, unlearn one object and one style, steer a "
        "feature, judge all of it and write results.json and report.html. About four minutes on two slow cores.",
        example=_EXAMPLE,
        resumable=True,
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder")
    parser.add_argument("--object", default=DemoConfig.object, help="object to unlearn (default: %(default)s)")
    parser.add_argument("--style", default=DemoConfig.style, help="style to unlearn (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a miniature that proves the plumbing and nothing else")


def run(options: argparse.Namespace) -> None:
    """Run the stages and print the results."""
    from dataclasses import replace

    from apps.demo.run import run_demo
    from probe.canvas import FACTORS
    from probe.errors import UnknownConcept

    for factor in ("object", "style"):
        if getattr(options, factor) not in FACTORS[factor]:
            raise UnknownConcept(
                f"demo: canvas has no {factor} {getattr(options, factor)!r}; it has {', '.join(FACTORS[factor])}."
            )
    config = replace(DemoConfig(), object=options.object, style=options.style)
    if options.quick:
        config = DemoConfig.miniature(
            object=options.object,
            style=options.style,
            objects=tuple(dict.fromkeys((options.object, "star", "heart"))),
            styles=tuple(dict.fromkeys((options.style, "flat", "mosaic"))),
        )
    measured = run_demo(config, options.out)
    print("\n" + summary(measured))
    print(f"\nreport     {options.out / 'report.html'}")
    print(f"results    {options.out / 'results.json'}")
    # Through make the environment is not on the path.
    here = os.path.relpath(Path(sys.executable).with_name("denoscope"))
    print(f"dashboard  {'denoscope' if shutil.which('denoscope') else here} app {options.out}")


def summary(measured: dict[str, Any]) -> str:
    """The results for people."""
    from apps.commands.unlearn import scores_table

    rows = measured["rows"]
    unlearned = scores_table([row for row in rows if "ua" in row])
    lines = [unlearned, "", "percent, 95 % intervals over prompts and seeds; all images are judged"]
    for row in rows:
        if row.get("measure") == "dictionary":
            lines.append(
                f"dictionary at {row['site']}: explained variance {row['explained_variance']:.2f}, L0 {row['l0']:.1f}, "
                f"dead {row['dead_fraction']:.1%} of {row['features']}"
            )
    ratios = measured["ratios"]
    steered = next(row for row in rows if row.get("measure") == "steer")
    lines.append(
        f"steering feature {steered['feature']} ({steered['steered']}): the judge sees it with probability "
        f"{ratios['steer_unedited']:.2f} unedited, {ratios['steer_up']:.2f} pushed up "
        f"({ratios['steer_up_artifacts']:.0%} of the pictures wrecked), {ratios['steer_random']:.2f} with a random "
        f"direction of the same length ({ratios['steer_random_artifacts']:.0%} wrecked)"
    )
    return "\n".join(lines)
