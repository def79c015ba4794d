"""``denoscope audit``: what edited models still hold of concepts that they were made to forget."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.commands._options import Commands, add_command, add_model, add_sampling, load_model, new_file, positive

if TYPE_CHECKING:
    from probe.interventions import Recipe
    from probe.unlearning.audit import AuditTask

_EXAMPLE = """
denoscope audit --recipe runs/x/recipes/object-star
denoscope audit --recipe runs/x/recipes/style-neon --sites mid_block up_blocks.1 --out neon.json
denoscope audit --recipe runs/x/recipes/object-star --attacks embedding token_search
denoscope audit --recipe runs/x/recipes/saeuron-object-star runs/x/recipes/uce-object-star --out star.json
"""
_NOT_KEPT = ("run", "resumable", "debug", "out", "force")


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "audit",
        run,
        summary="forgotten or hidden? look for a concept inside an edited model",
        about="Apply a recipe that unlearns a concept, and look for the concept inside the model: linear probes by "
        "site and step, classification of its images by denoising error, the edited features, each with its null. With "
        "--attacks, also try to bring it back, and let the judge count. Writes JSON, and a heat map beside it for each "
        "recipe. What the numbers mean: docs/robustness.md.",
        example=_EXAMPLE,
    )
    add_model(parser)
    parser.add_argument(
        "--recipe",
        type=Path,
        nargs="+",
        required=True,
        help="folders of recipes, or their recipe.json; one after another",
    )
    concept = parser.add_mutually_exclusive_group()
    concept.add_argument("--object", help="the object that was unlearned (default: what the recipe says)")
    concept.add_argument("--style", help="the style that was unlearned (default: what the recipe says)")
    parser.add_argument("--sites", nargs="+", help="sites to read (default: middle block and the first two up blocks)")
    add_sampling(parser)
    parser.add_argument("--prompts", type=positive, default=40, help="prompts of each kind; 3 of 5 train the probes")
    parser.add_argument("--images", type=positive, default=16, help="renders of each kind to classify")
    parser.add_argument("--attacks", nargs="*", default=[], help="attacks to run too, see docs/robustness.md")
    parser.add_argument("--attack-prompts", type=positive, default=16, help="prompts of each attack")
    parser.add_argument("--seed", type=int, default=0, help="of prompts, images and nulls")
    parser.add_argument("--out", type=Path, help="JSON file (default: audit.json beside the one recipe)")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


def run(options: argparse.Namespace) -> None:
    """Measure, tell, draw; what is done is written after each recipe."""
    from apps.errors import InvalidOption
    from apps.images import save_png
    from apps.judging import judge_of
    from apps.measurement import Measurement
    from apps.progress import Clock, bar
    from apps.unlearning.audit_figure import heat_map
    from apps.unlearning.audit_report import attack_rows, attack_table, check_attacks
    from probe.interventions import Recipe
    from probe.unlearning.audit import audit

    check_attacks(options.attacks)
    folders = [path.parent if path.suffix == ".json" else path for path in options.recipe]
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) != len(names):
        raise InvalidOption(f"audit: the recipes' folders share a name: {', '.join(names)}.")
    if options.out is None and len(folders) > 1:
        raise InvalidOption("audit: several recipes go into one file; name it with --out FILE.json.")
    out = new_file(options.out or folders[0] / "audit.json", force=options.force)
    pipe = load_model(options)
    judge = judge_of(pipe)
    if judge is None:
        raise InvalidOption(
            "audit: prompts, renders and judge are canvas's. For other models call probe.unlearning.audit with prompts "
            "and images of your own."
        )
    recipes = [Recipe.load(folder, pipe) for folder in folders]
    tasks = [_task(options, pipe, folder, recipe) for folder, recipe in zip(folders, recipes, strict=True)]
    kept = {key: value for key, value in vars(options).items() if key not in _NOT_KEPT}
    config = kept | {"recipe": names}  # a measurement does not say where on a machine it was made
    clock, rows, ratios = Clock(), [], {}
    for name, recipe, task in zip(names, recipes, tasks, strict=True):
        with bar(f"audit {name}", "unit") as shown:
            result = audit(task, progress=lambda part, done, total, shown=shown: shown(done, total, part))
        about: dict[str, Any] = {"recipe": name, "method": recipe.about.get("method")}
        summary = {"measure": "mean", "factor": task.factor, "label": task.label, **result.means()}
        rows += [about | row for row in (summary, *result.to_rows())]
        print(f"{name}\n{result.text()}")
        if options.attacks:
            found, attacked = attack_rows(task, judge, options.attacks, options.attack_prompts)
            rows += [about | row for row in found]
            ratios |= attacked if len(names) == 1 else {f"{name}_{key}": value for key, value in attacked.items()}
            print("\n" + attack_table(found))
        picture = out.with_suffix(".png") if len(names) == 1 else out.with_name(f"{out.stem}-{name}.png")
        save_png(picture, heat_map(result))
        Measurement("audit.canvas", rows, ratios, device=options.device, config=config).write(out)
        print(f"\n{out}, {picture} ({clock})")


def _task(options: argparse.Namespace, pipe: Any, folder: Path, recipe: Recipe) -> AuditTask:
    """What is looked for, and where."""
    from probe.unlearning.audit import SITES
    from probe.unlearning.audit_canvas import canvas_audit

    factor, label = _concept(options, folder, recipe.about)
    return canvas_audit(
        pipe,
        recipe.interventions,
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


def _concept(options: argparse.Namespace, folder: Path, about: Mapping[str, Any]) -> tuple[str, str]:
    """(factor, label) of the options, else what the recipe says it unlearns."""
    from apps.errors import InvalidOption

    if options.object or options.style:
        return ("object", options.object) if options.object else ("style", options.style)
    match about.get("target"):
        case [str(factor), str(label)]:
            return factor, label
    raise InvalidOption(
        f"audit: recipe {str(folder)!r} does not say what it unlearns; name it with --object NAME or --style NAME."
    )
