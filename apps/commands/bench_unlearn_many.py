"""``denoscope bench unlearn-many``: its options are those of ``bench unlearn``, and ``--counts``."""

from __future__ import annotations

import argparse
from dataclasses import replace

from apps.commands import bench_unlearn
from apps.commands._options import Commands, add_command, positive

_EXAMPLE = """
denoscope bench unlearn-many --out many.json --work runs/bench-unlearn --counts 1 2 4 8 --retain-seeds 1
"""


def add_parser(parts: Commands) -> argparse.ArgumentParser:
    """Declare the part."""
    parser = add_command(
        parts,
        "unlearn-many",
        run,
        summary="several concepts at once, in one edit or in one after another",
        about="Several concepts are unlearned at once: jointly, one after another, and with random pushes of the same "
        "size (docs/unlearning-many.md).",
        example=_EXAMPLE,
        resumable=True,
    )
    bench_unlearn.add_options(parser)
    parser.add_argument("--counts", type=positive, nargs="+", default=[1, 2, 4, 8], help="concepts unlearned at once")
    parser.add_argument(
        "--rescored",
        type=positive,
        default=192,
        help="prompts that are recorded from an edited model to find the next concept's features",
    )
    return parser


def run(options: argparse.Namespace) -> None:
    """Estimate, measure, write the JSON file with a figure."""
    from apps.bench.unlearn.config import ManyBench
    from apps.bench.unlearn.many import bench_unlearn_many, many_table, n_images
    from apps.bench.unlearn.many_conditions import METHOD
    from apps.bench.unlearn.many_figure import many_svg
    from apps.commands._options import new_file
    from apps.progress import Clock

    out = new_file(options.out, force=options.force)
    # What only bench unlearn has options for.
    options.methods, options.attacks, options.attack_images, options.audit = [METHOD], [], 1, False
    config = ManyBench(bench_unlearn.config_of(options), tuple(options.counts), options.rescored)
    if options.quick:
        config = replace(config, counts=(1, 2), n_rescored=64)
    print(f"{', '.join(map(str, config.counts))} of {' and '.join(config.factors)}: {n_images(config):,} images")
    if options.dry_run:
        return
    clock = Clock()
    measured = bench_unlearn_many(config)
    measured.write(out)
    out.with_suffix(".svg").write_text(many_svg(measured.rows), encoding="utf-8")
    print(many_table(list(measured.rows)))
    print(f"\n{out}, with .svg beside it; pictures in {config.bench.work} ({clock})")
