"""``denoscope steer``: features or a direction up and down, beside the unedited model and a random control."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from apps.commands._options import (
    Commands,
    add_command,
    add_sampling,
    load_model,
    model_of_artefact,
    positive,
    steps_range,
)

if TYPE_CHECKING:
    from apps.steering.push import Push

_EXAMPLE = """
denoscope steer --sae runs/demo/sae/up_blocks.1 --concept colour=red --out runs/steer-red
denoscope steer --sae runs/demo/sae/up_blocks.1 --feature 12 --prompt "a red star in neon style" --out runs/steer-12
denoscope steer --direction runs/demo/directions/lda-style-mosaic --strengths -4 -2 2 4 8 --out runs/steer-mosaic
"""


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "steer",
        run,
        summary="push features or a direction up and down, and measure what it does",
        about="Add a feature's or a direction's vector while the model generates, at several strengths with the same "
        "seeds, always beside the unedited images and a random push of equal norm. OUT holds a sheet (grid.png), a "
        "page with dose-response curves (page.html), the numbers (steer.json), all images, and a recipe at the "
        "strength from which more does not help. What canvas draws is read by its judge; of other models the change "
        "of pixels is told. How to choose feature, steps and strength: docs/steering.md.",
        example=_EXAMPLE,
        resumable=True,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--sae", type=Path, help="folder of a dictionary, or of a run that holds one")
    what.add_argument("--direction", type=Path, help="or: folder of a direction, as denoscope directions saves it")
    parser.add_argument(
        "--feature", type=int, nargs="+", help="features that are pushed together (default: the concept's best one)"
    )
    parser.add_argument("--component", type=int, default=0, help="which vector of the direction")
    parser.add_argument("--concept", type=concept, help="FACTOR=LABEL that is steered, such as colour=red")
    parser.add_argument(
        "--strengths", type=float, nargs="+", default=[-4.0, -2.0, -1.0, 1.0, 2.0, 4.0], help="in units; 0 is implied"
    )
    parser.add_argument(
        "--unit",
        choices=("p99", "std", "raw"),
        help="what strength 1 is: a feature's 99th percentile (features' default), the site's standard deviation along "
        "a direction (directions' default), or the vector as it is",
    )
    parser.add_argument("--prompt", action="append", default=[], help="a prompt; may be given several times")
    parser.add_argument("--prompts", help="or: canvas:N, or a .txt, .csv or .jsonl file")
    parser.add_argument(
        "--n-prompts", type=positive, default=8, help="without prompts: captions of canvas with and without the concept"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[3_000_000, 3_000_001], help="seeds of each prompt")
    parser.add_argument(
        "--branch", default="both", choices=("both", "cond", "uncond", "opposite"), help="guidance branches"
    )
    parser.add_argument("--edit-steps", type=steps_range, help="steps to edit, such as 0-9 (default: all)")
    parser.add_argument("--model", help="the model (default: the one that what is pushed came from, else canvas)")
    parser.add_argument("--device", default="cpu", help="where the model runs: cpu, cuda, cuda:1, mps")
    add_sampling(parser)
    parser.add_argument("--n-shown", type=positive, default=3, help="prompts of each kind in the sheet")
    parser.add_argument("--side", type=positive, default=96, help="pixels of an image in the sheet")
    parser.add_argument(
        "--dry-run", action="store_true", help="draw the unedited images only, and say how long the rest takes"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; a sweep in it goes on")
    parser.add_argument("--force", action="store_true", help="replace another sweep in OUT")


def run(options: argparse.Namespace) -> None:
    """Draw the sweep, judge it, write what was found."""
    from apps.checks import check_model
    from apps.judging import judge_of
    from apps.steering.results import steer, target_of
    from apps.steering.sweep import Sweep
    from probe.model import generation_defaults

    push, inferred, made_with, model = asked_of(options)
    options.model = model_of_artefact(options.model, model, options.sae or options.direction)
    options.precision = (made_with or {}).get("dtype", "float32")  # rounded weights are another model
    pipe = load_model(options)
    if made_with is not None:
        check_model(pipe, made_with, options.sae or options.direction)
    judge = judge_of(pipe)
    target = target_of(options.concept, inferred, judge)
    prompts = prompts_of(options, target)
    grid = [(prompt, seed) for prompt in prompts for seed in options.seeds]
    defaults = generation_defaults(pipe)
    sweep = Sweep(
        push,
        tuple(prompt for prompt, _ in grid),
        tuple(seed for _, seed in grid),
        tuple(sorted({*options.strengths} - {0.0})),
        branch=options.branch,
        edit_steps=options.edit_steps,
        steps=defaults.steps if options.steps is None else options.steps,
        guidance=defaults.guidance if options.guidance is None else options.guidance,
        batch_size=options.batch_size,
    )
    steer(
        sweep,
        pipe,
        judge,
        target,
        options.out,
        dry_run=options.dry_run,
        force=options.force,
        n_shown=options.n_shown,
        side=options.side,
    )


def concept(text: str) -> tuple[str, str]:
    """``colour=red`` as (factor, label)."""
    factor, equals, label = text.partition("=")
    if not (factor and equals and label):
        raise argparse.ArgumentTypeError(f"{text!r} is not FACTOR=LABEL, such as colour=red")
    return factor, label


class Asked(NamedTuple):
    """What the options ask for.

    Attributes:
        push: what is pushed.
        concept: (factor, label) that a direction was fitted for; None if it does not say.
        made_with: fingerprint of the model that the dictionary or direction came from; None if it does not say.
        model: the model's name; None if it does not say.
    """

    push: Push
    concept: tuple[str, str] | None = None
    made_with: dict[str, Any] | None = None
    model: str | None = None


def asked_of(options: argparse.Namespace) -> Asked:
    """Read the dictionary or the direction.

    Raises:
        InvalidOption: options that do not fit together.
    """
    from apps.errors import InvalidOption
    from apps.steering.push import best_feature, direction_push, feature_push, feature_units

    if options.direction is not None:
        from probe.directions import load_direction

        if options.feature or options.unit == "p99":
            raise InvalidOption("steer: --feature and --unit p99 belong to --sae; a direction has --component and std.")
        found = load_direction(options.direction)
        about = found.provenance.get("parameters", {})
        known = about.get("factor") and about.get("positive")
        push = direction_push(found, options.component, options.unit or "std")
        made_with = found.provenance.get("model") or None
        concept = (about["factor"], about["positive"]) if known else None
        return Asked(push, concept, made_with, (made_with or {}).get("name"))
    from apps.checks import fingerprint_of, model_of
    from apps.runs import sae_folder
    from sae import load_sae

    if options.unit == "std":
        raise InvalidOption("steer: --unit std belongs to --direction; features have p99 and raw.")
    options.sae = sae_folder(options.sae)
    sae = load_sae(options.sae)
    features = options.feature
    if not features:
        if options.concept is None:
            raise InvalidOption("steer: say what is pushed: --feature N, or --concept FACTOR=LABEL for its best one.")
        features = [best_feature(options.sae, *options.concept)]
    units = None if options.unit == "raw" else feature_units(options.sae, features)
    return Asked(feature_push(sae, features, units), made_with=fingerprint_of(sae), model=model_of(sae))


def prompts_of(options: argparse.Namespace, target: tuple[str, str] | None) -> list[str]:
    """The prompts: those given, or captions of canvas, half of which ask for the concept.

    Raises:
        InvalidOption: there are none, and no concept of canvas to make them for.
    """
    from apps.errors import InvalidOption
    from apps.prompts import balanced, prompts_from

    prompts = list(options.prompt)
    if options.prompts:
        prompts += prompts_from(options.prompts).prompts
    if prompts:
        return list(dict.fromkeys(prompts))
    if target is None:
        raise InvalidOption("steer: there is no prompt; give --prompt TEXT or --prompts FILE.")
    from probe.canvas import FACTORS

    factor, label = target
    others = tuple(value for value in FACTORS[factor] if value != label)
    n = options.n_prompts
    without = balanced(n, seed=2, within={factor: others})
    return [*without.prompts, *balanced(n, seed=3, within={factor: (label,)}).prompts]
