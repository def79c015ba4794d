"""``denoscope audit``: what an edited model still holds of a concept that it was made to forget."""

from __future__ import annotations

import argparse
from pathlib import Path

from apps.commands._options import Commands, add_command, add_model, add_sampling, load_model, new_file, positive

_EXAMPLE = """
denoscope audit --recipe runs/x/recipes/object-star --object star
denoscope audit --recipe runs/x/recipes/style-neon --style neon --sites mid_block up_blocks.1 --out neon.json
denoscope audit --recipe runs/x/recipes/object-star --object star --attacks embedding token_search
"""


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "audit",
        run,
        summary="forgotten or hidden? look for a concept inside an edited model",
        about="Apply a recipe that unlearns a concept, and look for the concept inside the model: linear probes by "
        "site and step, classification of its images by denoising error, the edited features, each with its null. With "
        "--attacks, also try to bring it back, and let the judge count. Writes JSON, and a heat map beside it. What "
        "the numbers mean: docs/robustness.md.",
        example=_EXAMPLE,
    )
    add_model(parser)
    parser.add_argument("--recipe", type=Path, required=True, help="folder of the recipe, or its recipe.json")
    concept = parser.add_mutually_exclusive_group(required=True)
    concept.add_argument("--object", help="the object that was unlearned")
    concept.add_argument("--style", help="the style that was unlearned")
    parser.add_argument("--sites", nargs="+", help="sites to read (default: middle block and the first two up blocks)")
    add_sampling(parser)
    parser.add_argument("--prompts", type=positive, default=40, help="prompts of each kind; 3 of 5 train the probes")
    parser.add_argument("--images", type=positive, default=16, help="renders of each kind to classify")
    parser.add_argument("--attacks", nargs="*", default=[], help="attacks to run too, see docs/robustness.md")
    parser.add_argument("--attack-prompts", type=positive, default=16, help="prompts of each attack")
    parser.add_argument("--seed", type=int, default=0, help="of prompts, images and nulls")
    parser.add_argument("--out", type=Path, help="JSON file (default: audit.json beside the recipe)")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


def run(options: argparse.Namespace) -> None:
    """Measure, tell, draw."""
    from apps.errors import InvalidOption
    from apps.images import save_png
    from apps.judging import judge_of
    from apps.measurement import Measurement
    from apps.progress import Clock, bar
    from apps.unlearning.audit_figure import heat_map
    from apps.unlearning.audit_report import attack_rows, attack_table, check_attacks
    from probe.interventions import Recipe
    from probe.unlearning.audit import SITES, audit
    from probe.unlearning.audit_canvas import canvas_audit

    factor, label = ("object", options.object) if options.object else ("style", options.style)
    check_attacks(options.attacks)
    folder = options.recipe.parent if options.recipe.suffix == ".json" else options.recipe
    out = new_file(options.out or folder / "audit.json", force=options.force)
    pipe = load_model(options)
    judge = judge_of(pipe)
    if judge is None:
        raise InvalidOption(
            "audit: prompts, renders and judge are canvas's. For other models call probe.unlearning.audit with prompts "
            "and images of your own."
        )
    edits = Recipe.load(folder, pipe).interventions
    clock = Clock()
    task = canvas_audit(
        pipe,
        edits,
        factor,
        label,
        n=options.prompts,
        n_train=3 * options.prompts // 5,
        n_images=options.images,
        steps=options.steps,
        guidance=options.guidance,
        seed=options.seed,
        batch_size=options.batch_size,
        sites=tuple(options.sites or SITES),
    )
    with bar("audit", "unit") as shown:
        result = audit(task, progress=lambda part, done, total: shown(done, total, part))
    rows, ratios = result.to_rows(), {}
    print(result.text())
    if options.attacks:
        found, ratios = attack_rows(task, judge, options.attacks, options.attack_prompts)
        rows += found
        print("\n" + attack_table(found))
    picture = out.with_suffix(".png")
    save_png(picture, heat_map(result))
    config = {key: value for key, value in vars(options).items() if key not in ("run", "resumable", "debug")}
    Measurement("audit.canvas", rows, ratios, device=options.device, config=config).write(out)
    print(f"\n{out}, {picture} ({clock})")
