"""``denoscope generate``: images for prompts and seeds, with or without a saved recipe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from apps.commands._options import (
    Commands,
    add_command,
    add_model,
    add_sampling,
    load_model,
    model_of_artefact,
    new_file,
    positive,
)

if TYPE_CHECKING:
    from probe.interventions import Intervention

_EXAMPLE = """
denoscope generate --prompt "a red star on dark background in neon style" --seeds 0 1 2 3 --out stars.png
denoscope generate --prompts prompts.txt --recipe runs/demo/recipes/object-star --out without-stars.png
"""


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "generate",
        run,
        summary="generate images, with or without a recipe",
        about="Generate every prompt with every seed into one sheet of images, through the pipeline's own call. With "
        "--recipe the saved interventions are applied, and the unedited images stand above the edited ones.",
        example=_EXAMPLE,
    )
    add_model(parser, default=None, of="the recipe's, else canvas")
    parser.add_argument("--prompt", action="append", default=[], help="a prompt; may be given several times")
    parser.add_argument("--prompts", help="or: canvas:N, or a .txt, .csv or .jsonl file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of each prompt")
    parser.add_argument("--recipe", type=Path, help="folder of a recipe to apply")
    add_sampling(parser)
    parser.add_argument("--side", type=positive, default=128, help="pixels of an image in the sheet")
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


def run(options: argparse.Namespace) -> None:
    """Generate and lay out."""
    from apps.errors import InvalidOption
    from apps.images import labelled_grid, save_png
    from apps.progress import bar
    from apps.prompts import prompts_from
    from apps.recipes import model_of_recipe, open_recipe
    from probe.model import generate

    out = new_file(options.out, force=options.force)
    prompts = list(options.prompt)
    if options.prompts:
        prompts += prompts_from(options.prompts).prompts
    if not prompts:
        raise InvalidOption("generate: there is no prompt; give --prompt TEXT or --prompts FILE.")
    if min(options.seeds) < 0:
        raise InvalidOption(f"generate: seeds are whole numbers from 0, got {min(options.seeds)}.")
    options.model = model_of_artefact(options.model, model_of_recipe(options.recipe), options.recipe or "generate")
    pipe = load_model(options)
    interventions: tuple[Intervention, ...] = ()
    if options.recipe:
        interventions, changed = open_recipe(options.recipe, pipe)
        if changed:
            print(f"as the recipe was made: {', '.join(changed)}")
    grid = [(prompt, seed) for prompt in prompts for seed in options.seeds]
    sheets = []
    for edits in ((), interventions) if interventions else ((),):
        with bar("generate edited" if edits else "generate") as progress:
            images = generate(
                pipe,
                [prompt for prompt, _ in grid],
                [seed for _, seed in grid],
                steps=options.steps,
                guidance=options.guidance,
                batch_size=options.batch_size,
                interventions=edits,
                progress=progress,
            )
        sheets.append(images.reshape(len(prompts), len(options.seeds), *images.shape[1:]))
    rows, labels = [], []
    for i, prompt in enumerate(prompts):
        for name, sheet in zip(("", "edited: "), sheets, strict=False):
            rows.append(list(sheet[i]))
            labels.append(name + prompt)
    columns = [f"seed {seed}" for seed in options.seeds]
    save_png(out, labelled_grid(rows, row_labels=labels, column_labels=columns, side=options.side))
    print(f"{len(grid) * len(sheets)} images in {out}")
