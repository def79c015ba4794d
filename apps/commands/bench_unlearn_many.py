"""Work of ``denoscope bench unlearn-many``; its options are those of ``bench unlearn``, and ``--counts``."""

from __future__ import annotations

import argparse
from dataclasses import replace

from apps.commands._options import positive


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the option that only this benchmark has."""
    group = parser.add_argument_group("unlearn-many")
    group.add_argument("--counts", type=positive, nargs="+", default=[1, 2, 4, 8], help="concepts unlearned at once")


def run(options: argparse.Namespace) -> None:
    """Estimate, measure, write the JSON file."""
    from apps.bench.unlearn.many import METHOD, ManyBench, bench_unlearn_many, many_table, n_images
    from apps.commands import bench_unlearn
    from apps.commands._options import new_file
    from apps.errors import InvalidOption
    from apps.progress import Clock

    out = new_file(options.out, force=options.force)
    if options.methods not in (None, [METHOD]):
        raise InvalidOption(f"bench unlearn-many: it measures {METHOD}; leave --methods out.")
    options.methods, options.attacks = [METHOD], []
    bench = replace(bench_unlearn.config_of(options), attacks=(), audit=False)
    config = ManyBench(bench, tuple(options.counts))
    if options.quick:
        config = replace(config, counts=(1, 2), n_rescored=64)
    print(f"{', '.join(map(str, config.counts))} of {' and '.join(config.factors)}: {n_images(config):,} images")
    if options.dry_run:
        return
    clock = Clock()
    measured = bench_unlearn_many(config)
    measured.write(out)
    print(many_table(list(measured.rows)))
    print(f"\n{out} ({clock})")
