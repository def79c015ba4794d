"""``denoscope unlearn``: remove objects or styles from what canvas draws, and score it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from apps.commands._options import Commands, add_command, add_model, load_model, new_file, positive, steps_range

_EXAMPLE = """
denoscope unlearn --run runs/x --object star --style neon
denoscope unlearn --run runs/x --object star --n-features 1 2 5 --multiplier -1 -5 -20
denoscope unlearn --run runs/x --object star --method uce
denoscope unlearn --run runs/x --all --out unlearning.json
"""


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "unlearn",
        run,
        summary="unlearn objects and styles, and score it",
        about="Push the features of a concept down while canvas generates (SAeUron), or edit by another method, draw "
        "every object in every style with the same seeds as the unedited model, and print what was forgotten (UA), "
        "what survived (IRA, CRA), the share of wrecked images and the change elsewhere. Several settings are compared "
        "on validation prompts and seeds first.",
        example=_EXAMPLE,
        resumable=True,
    )
    parser.add_argument(
        "--run", dest="run_folder", type=Path, required=True, help="run folder with store, dictionary, bundle"
    )
    add_model(parser)
    parser.add_argument(
        "--object", dest="objects", action="append", default=[], help="object to unlearn; may be repeated"
    )
    parser.add_argument("--style", dest="styles", action="append", default=[], help="style to unlearn; may be repeated")
    parser.add_argument("--all", action="store_true", help="every object and every style in turn")
    parser.add_argument(
        "--method",
        default="saeuron",
        help="unlearning method, as in denoscope bench unlearn; some need no dictionary",
    )
    parser.add_argument("--sae", help="dictionary to use (default: the run's only one)")
    parser.add_argument(
        "--n-features", type=positive, nargs="+", help="features pushed at each step (default: 1; objects 10)"
    )
    parser.add_argument("--multiplier", type=float, nargs="+", help="gamma (default: -1; objects -20)")
    parser.add_argument(
        "--plain", action="store_true", help="gamma is the multiplier itself, not times the feature's mean"
    )
    parser.add_argument(
        "--branch", default="both", choices=("both", "cond", "uncond"), help="guidance branches to edit"
    )
    parser.add_argument("--edit-steps", type=steps_range, help="steps to edit, such as 0-9 (default: all)")
    parser.add_argument("--seeds", type=positive, default=3, help="seeds of each object in each style")
    parser.add_argument("--batch-size", type=positive, default=16, help="images at a time")
    parser.add_argument("--out", type=Path, help="JSON file (default: RUN/unlearn.json)")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


def run(options: argparse.Namespace) -> None:
    """Edit, generate, judge, tell."""
    from apps.errors import InvalidOption
    from apps.judging import shipped_judge
    from apps.locks import only_command
    from apps.measurement import Measurement
    from apps.progress import Clock
    from apps.runs import Run
    from apps.unlearning.run import needs_dictionary, unlearn_targets
    from probe.model import model_name

    targets = chosen_targets(options)
    target_run = Run.open(options.run_folder)
    if needs_dictionary(options.method):
        target_run.sae(options.sae)
    out = new_file(options.out or target_run.folder / "unlearn.json", force=options.force or options.out is None)
    judge = shipped_judge()
    pipe = load_model(options)
    if model_name(pipe) != "canvas":
        raise InvalidOption(
            f"unlearn: the judge knows images of canvas only, not of {model_name(pipe)!r}. Use --model canvas, or "
            "score other models with probe.unlearning.evaluate and a judge of your own."
        )
    clock = Clock()
    with only_command(target_run.folder, "unlearn"):
        rows, ratios = unlearn_targets(options, target_run, targets, pipe, judge)
    Measurement("unlearn.canvas", rows, ratios, device=options.device, config=_config(options)).write(out)
    print(scores_table(rows))
    print(f"\n{out} ({clock}); recipes in {target_run.folder / 'recipes'}")


def chosen_targets(options: argparse.Namespace) -> list[tuple[str, str]]:
    """(factor, label) of every target asked for; unknown names are refused."""
    from apps.errors import InvalidOption
    from probe.canvas import OBJECTS, STYLES
    from probe.errors import UnknownConcept

    if options.all:
        return [("object", name) for name in OBJECTS] + [("style", name) for name in STYLES]
    for factor, given, known in (("object", options.objects, OBJECTS), ("style", options.styles, STYLES)):
        for name in given:
            if name not in known:
                raise UnknownConcept(f"unlearn: canvas has no {factor} {name!r}; it has {', '.join(known)}.")
    targets = [("object", name) for name in options.objects] + [("style", name) for name in options.styles]
    if not targets:
        raise InvalidOption("unlearn: nothing to unlearn; give --object NAME, --style NAME or --all.")
    return list(dict.fromkeys(targets))


def scores_table(rows: list[dict[str, Any]]) -> str:
    """The scores for people, in percent with intervals."""
    from apps.progress import percent, table

    metrics = ("ua", "ira", "cra", "artifacts", "artifacts_retain", "change_retain")
    header = ["target", "UA", "IRA", "CRA", "artifacts", "elsewhere", "change"]
    body = [
        [
            f"{row['factor']} {row['target']}" + ("" if row["edit"] else ", unedited"),
            *(percent(row, m) for m in metrics),
        ]
        for row in rows
    ]
    return table(header, body)


def _config(options: argparse.Namespace) -> dict[str, Any]:
    return {key: value for key, value in vars(options).items() if key not in ("run", "resumable", "debug")}
