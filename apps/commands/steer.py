"""``denoscope steer``: one feature up and down, the same seeds, one sheet."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.commands._options import Commands, add_command, add_sampling, load_model, new_file, positive, steps_range

if TYPE_CHECKING:
    import numpy as np

    from sae import Dictionary

_EXAMPLE = """
denoscope steer --sae runs/x/sae/up_blocks.1 --feature 12 --strengths -8 -4 0 4 8 \\
    --prompt "a red star on dark background in neon style" --out feature12.png
"""


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "steer",
        run,
        summary="push one feature up and down",
        about="Add a feature's direction while the model generates, at several strengths with the same seeds, "
        "into one sheet "
        "with the unedited images. With the canvas model the judge's reading stands under every image.",
        example=_EXAMPLE,
    )
    parser.add_argument("--sae", type=Path, required=True, help="folder of the dictionary")
    parser.add_argument("--feature", type=int, required=True, help="number of the feature")
    parser.add_argument(
        "--strengths", type=float, nargs="+", default=[-4.0, -2.0, 0.0, 2.0, 4.0], help="0 is the unedited model"
    )
    parser.add_argument(
        "--unit",
        default="p99",
        choices=("p99", "raw"),
        help="what strength 1 is: the feature's 99th percentile (from the bundle), or a code of 1",
    )
    parser.add_argument("--prompt", action="append", default=[], help="a prompt; may be given several times")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds of each prompt")
    parser.add_argument(
        "--branch", default="both", choices=("both", "cond", "uncond", "opposite"), help="guidance branches"
    )
    parser.add_argument("--edit-steps", type=steps_range, help="steps to edit, such as 0-9 (default: all)")
    parser.add_argument(
        "--control", action="store_true", help="also a random direction of equal length, below each row"
    )
    parser.add_argument("--model", help="the model (default: the one that the dictionary was trained on)")
    parser.add_argument("--device", default="cpu", help="where the model runs: cpu, cuda, cuda:1, mps")
    add_sampling(parser)
    parser.add_argument("--side", type=positive, default=128, help="pixels of an image in the sheet")
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


def run(options: argparse.Namespace) -> None:
    """Generate every cell and lay the sheet out."""
    from apps.checks import check_model, fingerprint_of, model_of
    from apps.errors import InvalidOption
    from apps.images import labelled_grid, save_png
    from apps.judging import judge_of, read_outs
    from sae import load_sae
    from sae.errors import UnknownConcept

    out = new_file(options.out, force=options.force)
    if not options.prompt:
        raise InvalidOption("steer: there is no prompt; give --prompt TEXT.")
    sae = load_sae(options.sae)
    if not 0 <= options.feature < sae.d_sae:
        raise UnknownConcept(f"steer: {str(options.sae)!r} has features 0 to {sae.d_sae - 1}, not {options.feature}.")
    unit = feature_unit(options.sae, options.feature) if options.unit == "p99" else None
    options.model = options.model or model_of(sae) or "canvas"
    pipe = load_model(options)
    made_with = fingerprint_of(sae)
    if made_with is not None:
        check_model(pipe, made_with, options.sae)
    strengths = sorted({*options.strengths, 0.0})
    judge = judge_of(pipe)
    rows, labels, captions = [], [], []
    for prompt in options.prompt:
        for seed in options.seeds:
            for control in (False, True) if options.control else (False,):
                images = steer_images(pipe, sae, options, prompt, seed, strengths, unit, control=control)
                rows.append(list(images))
                labels.append(f"{'random direction' if control else prompt}, seed {seed}")
                captions.append(read_outs(judge(images)) if judge is not None else [])
    columns = [f"{s:+g} {options.unit}" if s else "unedited" for s in strengths]
    title = f"feature {options.feature} at {sae.config.site}, branch {options.branch}"
    sheet = labelled_grid(
        rows, row_labels=labels, column_labels=columns, captions=captions, side=options.side, title=title
    )
    save_png(out, sheet)
    size = f", 1 p99 = {unit:.4g}" if unit is not None else ""
    print(f"{sum(map(len, rows))} images in {out} ({title}{size})")


def feature_unit(folder: Path, feature: int) -> float:
    """The feature's 99th percentile, from the bundle of its run.

    Raises:
        apps.errors.UnknownName: there is no bundle. apps.errors.InvalidOption: the feature was never on.
    """
    from apps.errors import InvalidOption
    from apps.runs import run_of
    from sae import FeatureBundle

    owner, name = run_of(folder)
    p99 = float(FeatureBundle.open(owner.bundle(name)).stats(feature)["p99"])
    if not p99 > 0:
        raise InvalidOption(f"steer: feature {feature} was never on in the store, so it has no p99; use --unit raw.")
    return p99


def steer_images(
    pipe: Any,
    sae: Dictionary,
    options: argparse.Namespace,
    prompt: str,
    seed: int,
    strengths: list[float],
    unit: float | None,
    *,
    control: bool,
) -> np.ndarray:
    """One row of the sheet: the same prompt and seed at every strength, uint8 (n, H, W, 3)."""
    import numpy as np

    from apps.steering import direction_op
    from probe.interventions import Intervention
    from probe.model import generate

    op = direction_op(sae, options.feature, unit, control=control)
    cells = []
    for strength in strengths:
        edit = Intervention(sae.config.site, op, steps=options.edit_steps, branch=options.branch, strength=strength)
        cells.append(
            generate(
                pipe,
                [prompt],
                [seed],
                steps=options.steps,
                guidance=options.guidance,
                interventions=[edit] if strength else (),
            )[0]
        )
    return np.stack(cells)
