"""``denoscope bench unlearn``: every method on every concept."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.commands._options import Commands, add_command, positive

if TYPE_CHECKING:
    from apps.bench.unlearn.config import UnlearnBench
    from apps.bench.unlearn.prepare import Bench
    from apps.unlearning.place import Place


_EXAMPLE = """
denoscope bench unlearn --out unlearn.json --workers 2 --retain-seeds 1
denoscope bench unlearn --out part.json --targets star neon --methods saeuron uce --dry-run
denoscope bench unlearn --out sd.json --world unlearncanvas --model sd --classifiers vit --data images --device cuda
"""


def add_parser(parts: Commands) -> argparse.ArgumentParser:
    """Declare the part."""
    parser = add_command(
        parts,
        "unlearn",
        run,
        summary="what does each method forget, and what does it break?",
        about="Every object and style is unlearned in turn by every method, with settings chosen on images apart from "
        "those that are scored: what is forgotten, what survives, what is wrecked, what it costs, and whether the "
        "concept comes back under attack (docs/unlearning.md).",
        example=_EXAMPLE,
        resumable=True,
    )
    add_options(parser)
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="methods to measure (default: all)")
    parser.add_argument("--workers", type=positive, default=1, help="processes, one thread each; as many as cores")
    parser.add_argument("--attacks", nargs="*", metavar="NAME", help="attacks on every edit (default: all; none after)")
    parser.add_argument("--attack-images", type=positive, default=10, help="images of each attack on each target")
    parser.add_argument("--audit", action="store_true", help="also look for the target inside every edited model")
    return parser


def add_options(group: argparse.ArgumentParser) -> None:
    """Declare the options of both benchmarks of unlearning."""
    group.add_argument(
        "--world",
        choices=("canvas", "unlearncanvas"),
        default="canvas",
        help="unlearncanvas: Stable Diffusion, data set and classifiers from folders (docs/unlearncanvas.md)",
    )
    group.add_argument("--model", default="canvas", help="pipeline folder")
    group.add_argument("--classifiers", type=Path, help="folder with object.safetensors and style.safetensors")
    group.add_argument("--data", type=Path, help="folder of the data set: STYLE/OBJECT/N.jpg")
    group.add_argument("--steps", type=positive, help="denoising steps (default: the world's)")
    group.add_argument("--guidance", type=float, help="guidance scale (default: the world's)")
    group.add_argument("--prompts", type=positive, help="labelled prompts that are recorded (default: the world's)")
    group.add_argument(
        "--targets", nargs="+", metavar="NAME", default=[], help="concepts to unlearn, such as star (default: all)"
    )
    group.add_argument("--seeds", type=positive, default=5, help="seeds of each object in each style")
    group.add_argument(
        "--retain-seeds",
        type=positive,
        help="of these, how many are drawn for prompts that do not ask for the target: the same means, wider intervals "
        "(default: all, the protocol)",
    )
    group.add_argument("--dry-run", action="store_true", help="say how much there is to do, and end")
    group.add_argument("--batch-size", type=positive, default=16, help="images at a time")


def run(options: argparse.Namespace) -> None:
    """Estimate, measure, write the JSON file with a table and a figure beside it."""
    from apps.bench.unlearn.bench import bench_unlearn
    from apps.bench.unlearn.estimate import estimate
    from apps.bench.unlearn.figure import frontier_svg
    from apps.bench.unlearn.prepare import Bench
    from apps.bench.unlearn.tables import markdown_table, scores_table
    from apps.commands._options import new_file
    from apps.progress import Clock

    out = new_file(options.out, force=options.force)
    config = config_of(options)
    bench = Bench(config)
    print(estimate(bench).text(_seconds_each(bench), options.workers))
    if options.dry_run:
        return
    clock = Clock()
    measured = bench_unlearn(config, workers=options.workers)
    measured.write(out)
    out.with_suffix(".svg").write_text(frontier_svg(measured.rows), encoding="utf-8")
    out.with_suffix(".md").write_text(markdown_table(measured.rows), encoding="utf-8")
    print(scores_table(measured.rows))
    print(f"\n{out}, with .md and .svg beside it ({clock})")


def config_of(options: argparse.Namespace) -> UnlearnBench:
    """The benchmark that the options ask for.

    Raises:
        apps.errors.UnknownName, probe.errors.UnknownConcept: a method, an attack or a target is not known.
    """
    from apps.bench.unlearn.bench import QUICK, QUICK_ATTACKS, QUICK_METHODS, QUICK_TARGETS
    from apps.bench.unlearn.config import UnlearnBench
    from apps.bench.unlearn.prepare import Bench
    from apps.bench.unlearn.world import chosen_targets
    from apps.errors import InvalidOption
    from apps.unlearning.methods import METHODS
    from probe.unlearning.attacks import ATTACKS

    quick: bool = options.quick
    place = place_of(options)
    if place.world != "canvas" and quick:
        raise InvalidOption(f"bench unlearn: --quick is a part of canvas; leave it out with --world {place.world}.")
    known = (QUICK_ATTACKS if quick else tuple(ATTACKS)) if place.world == "canvas" else ()
    attacks = known if options.attacks is None else options.attacks
    given: dict[str, Any] = {
        "work": options.work or Path(options.out).with_suffix(""),
        "methods": tuple(options.methods or (QUICK_METHODS if quick else METHODS)),
        "n_seeds": options.seeds,
        "retain_seeds": options.retain_seeds or options.seeds,
        "attacks": tuple(attacks),
        "attack_images": options.attack_images,
        "audit": options.audit,
        "batch_size": options.batch_size,
        "place": place,
        "n_recorded": options.prompts or place.constants.N_PROMPTS,
        "validation": (place.constants.VALIDATION_TARGET, place.constants.VALIDATION_RETAIN),
    }
    given |= QUICK if quick else {}
    world = Bench(UnlearnBench(**given, targets=(("object", "star"),))).world
    named = options.targets or (QUICK_TARGETS if quick else ())
    return UnlearnBench(**given, targets=tuple(chosen_targets(world, named)))


def place_of(options: argparse.Namespace) -> Place:
    """The world that the options name, with its files."""
    from apps.unlearning.place import Place

    return Place(
        options.world,
        options.model,
        options.classifiers,
        options.data,
        options.device,
        options.steps,
        options.guidance,
    )


def _seconds_each(bench: Bench) -> float:
    """CPU seconds of an image on one thread, from a batch of them."""
    import time

    import torch

    from probe.model import generate

    test, sampling = bench.world.test, bench.world.sampling
    rows = test.select(range(min(8, len(test))))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        settings = {"steps": sampling.steps, "guidance": sampling.guidance, "batch_size": sampling.batch_size}
        generate(bench.pipe, rows.prompts[:1], rows.seeds[:1], **settings)  # the first call of a process is slow
        start = time.process_time()
        generate(bench.pipe, rows.prompts, rows.seeds, **settings)
        return (time.process_time() - start) / len(rows)
    finally:
        torch.set_num_threads(threads)
