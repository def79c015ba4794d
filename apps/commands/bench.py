"""``denoscope bench``: quality of the product's parts, as measurement files."""

from __future__ import annotations

import argparse
from pathlib import Path

from apps.commands import bench_unlearn, bench_unlearn_many
from apps.commands._options import Commands, add_command, load_model, new_file, positive

_EXAMPLE = """
denoscope bench canvas --n 1000 --out canvas.json --sheet canvas.png
denoscope bench canvas --quick --out quick.json
denoscope bench sae --out sae.json --work runs/bench-sae
denoscope bench sae --quick --out quick.json
denoscope bench directions --out directions.json --work runs/bench-directions
denoscope bench unlearn --out unlearn.json --workers 2 --retain-seeds 1
denoscope bench unlearn --out part.json --targets star neon --methods saeuron uce --dry-run
denoscope bench unlearn-many --out many.json --work runs/bench-unlearn --counts 1 2 4 8 --retain-seeds 1
denoscope bench information --out information.json --work runs/bench-information
denoscope bench lenses --out lenses.json --work runs/bench-lenses
"""
QUICK_N = 96


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "bench",
        run,
        summary="measure quality and write a measurement file",
        about="canvas: does the embedded model draw what it is asked for? Prompts are drawn and read back by the "
        "judge, whose own ceilings on real renders and on autoencoder reconstructions stand beside every score. "
        "sae: what do dictionaries of canvas know? Trained on renders whose factors and object masks are exact, they "
        "are compared with PCA, random directions and neurons: concepts found, overlap with the object, false "
        "discoveries, stability over seeds, and what the model draws with a dictionary in place. "
        "directions: every direction finder is asked for four concepts of canvas: how well its vectors read them, what "
        "adding them does to images, false discoveries with shuffled labels and random directions, and the cost. "
        "unlearn: what does each method forget, what does it break, what does it cost, and does the concept come back "
        "under attack? Every object and style in turn, settings chosen on images apart from those that are scored. "
        "unlearn-many: several concepts at once, in one edit or in one after another. "
        "information: what do words tell about images? Maps of the object's word beside the true mask, labels read off "
        "the errors beside their entropy, words that say the same, and words left out beside what they tell. "
        "lenses: attention maps and segments beside true masks, matched points beside true ones, what layers of the "
        "text encoder know, probes, tracing, drift and inversion, each beside chance.",
        example=_EXAMPLE,
        resumable=True,
    )
    parser.add_argument(
        "what",
        choices=("canvas", "sae", "directions", "unlearn", "unlearn-many", "information", "lenses"),
        help="what to measure",
    )
    parser.add_argument("--n", type=positive, default=1000, help="canvas: prompts; half as many for the held-out pairs")
    parser.add_argument("--quick", action="store_true", help="a small version, within two minutes on two slow cores")
    parser.add_argument(
        "--seed", type=int, default=5_000_000, help="canvas: seed of the first image; the others count up"
    )
    parser.add_argument("--batch-size", type=positive, default=16, help="images at a time")
    parser.add_argument("--device", default="cpu", help="where the model runs: cpu, cuda, cuda:1, mps")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument(
        "--sheet", type=Path, help="canvas: also draw every object in every style, beside renders, as a PNG"
    )
    parser.add_argument(
        "--work",
        type=Path,
        help="all but canvas: run folder for what is done already (default: OUT without its .json)",
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    bench_unlearn.add_options(parser)
    bench_unlearn_many.add_options(parser)


def run(options: argparse.Namespace) -> None:
    """Measure and write."""
    parts = {"canvas": _canvas, "sae": _sae, "directions": _directions, "information": _information, "lenses": _lenses}
    parts |= {"unlearn": bench_unlearn.run, "unlearn-many": bench_unlearn_many.run}
    parts[options.what](options)


def _canvas(options: argparse.Namespace) -> None:
    from apps.bench.canvas import bench_canvas, canvas_table, contact_sheet
    from apps.images import save_png
    from apps.judging import shipped_judge
    from apps.progress import Clock

    out = new_file(options.out, force=options.force)
    sheet = options.sheet and new_file(options.sheet, force=options.force)
    judge = shipped_judge()
    options.model = "canvas"
    pipe = load_model(options)
    clock = Clock()
    n = min(options.n, QUICK_N) if options.quick else options.n
    measured = bench_canvas(pipe, judge, n, seed=options.seed, batch_size=options.batch_size, device=options.device)
    measured.write(out)
    print(canvas_table(measured))
    if sheet:
        save_png(sheet, contact_sheet(pipe, options.seed, batch_size=options.batch_size))
        print(f"\n{sheet}")
    print(f"\n{out} ({clock})")


def _sae(options: argparse.Namespace) -> None:
    from apps.bench.sae import QUICK, BenchConfig, bench_sae, recovery_table
    from apps.judging import shipped_judge
    from apps.progress import Clock

    out = new_file(options.out, force=options.force)
    judge = shipped_judge()
    options.model = "canvas"
    pipe = load_model(options)
    clock = Clock()
    work = options.work or out.with_suffix("")
    measured = bench_sae(pipe, judge, QUICK if options.quick else BenchConfig(), work, print, device=options.device)
    measured.write(out)
    print(recovery_table(measured.rows))
    print(f"\n{out} ({clock})")


def _directions(options: argparse.Namespace) -> None:
    from apps.bench.directions import QUICK, DirectionsConfig, bench_directions, directions_table
    from apps.judging import shipped_judge
    from apps.progress import Clock

    out = new_file(options.out, force=options.force)
    judge = shipped_judge()
    options.model = "canvas"
    pipe = load_model(options)
    clock = Clock()
    work = options.work or out.with_suffix("")
    config = QUICK if options.quick else DirectionsConfig()
    measured = bench_directions(pipe, judge, config, work, print, device=options.device)
    measured.write(out)
    print(directions_table(measured.rows))
    print(f"\n{out} ({clock})")


def _information(options: argparse.Namespace) -> None:
    from apps.bench.information import QUICK, BenchConfig, bench_information, information_tables
    from apps.progress import Clock
    from probe.model import PipelineEps

    out = new_file(options.out, force=options.force)
    options.model = "canvas"
    model = PipelineEps(load_model(options))
    clock = Clock()
    work = options.work or out.with_suffix("")
    measured = bench_information(model, QUICK if options.quick else BenchConfig(), work, print, device=options.device)
    measured.write(out)
    print(information_tables(measured.rows))
    print(f"\n{out} ({clock})")


def _lenses(options: argparse.Namespace) -> None:
    from apps.bench.lenses import QUICK, LensesConfig, bench_lenses, lenses_table
    from apps.judging import shipped_judge
    from apps.progress import Clock

    out = new_file(options.out, force=options.force)
    judge = shipped_judge()
    options.model = "canvas"
    pipe = load_model(options)
    clock = Clock()
    work = options.work or out.with_suffix("")
    config = QUICK if options.quick else LensesConfig()
    measured = bench_lenses(pipe, judge, config, work, print, device=options.device)
    measured.write(out)
    print(lenses_table(measured.rows))
    print(f"\n{out} ({clock})")
