"""``denoscope bench``: quality of the product's parts, as measurement files."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apps.commands import bench_unlearn, bench_unlearn_many
from apps.commands._options import Commands, add_command, add_group, load_model, new_file, positive

_EXAMPLE = """
denoscope bench canvas --n 1000 --out canvas.json --sheet canvas.png
denoscope bench sae --quick --out quick.json
denoscope bench unlearn --out unlearn.json --workers 2 --retain-seeds 1
"""
_PARTS = {
    "canvas": (
        "does the embedded model draw what it is asked for?",
        "Prompts are drawn and read back by the judge, whose own ceilings on real renders and on autoencoder "
        "reconstructions stand beside every score.",
        "denoscope bench canvas --n 1000 --out canvas.json --sheet canvas.png",
    ),
    "sae": (
        "what do dictionaries of canvas know?",
        "Trained on renders whose factors and object masks are exact, dictionaries are compared with PCA, random "
        "directions and neurons: concepts found, overlap with the object, false discoveries, stability over seeds, and "
        "what the model draws with a dictionary in place.",
        "denoscope bench sae --out sae.json --work runs/bench-sae",
    ),
    "directions": (
        "every direction finder side by side",
        "Every finder is asked for four concepts of canvas: how well its vectors read them, what adding them does to "
        "images, false discoveries with shuffled labels and random directions, and the cost.",
        "denoscope bench directions --out directions.json --work runs/bench-directions\n"
        "denoscope bench directions --out directions.json --dry-run",
    ),
    "information": (
        "what do words tell about images?",
        "Maps of the object's word beside the true mask, labels read off the errors beside their entropy, words that "
        "say the same, and words left out beside what they tell.",
        "denoscope bench information --out information.json --work runs/bench-information",
    ),
    "lenses": (
        "how well do lenses see what is there?",
        "Attention maps and segments beside true masks, matched points beside true ones, what layers of the text "
        "encoder know, probes, tracing, drift and inversion, each beside chance.",
        "denoscope bench lenses --out lenses.json --work runs/bench-lenses",
    ),
}
QUICK_N = 96


def add_parser(commands: Commands) -> None:
    """Declare the command and its parts."""
    parts = add_group(
        commands,
        "bench",
        "parts",
        "PART",
        summary="measure quality and write a measurement file",
        about="Measure how good a part of the product is, on canvas, where the truth is known.",
        example=_EXAMPLE,
    )
    runs = {"sae": _sae, "directions": _directions, "information": _information, "lenses": _lenses}
    canvas = _add_part(parts, "canvas", _canvas)
    canvas.add_argument("--n", type=positive, default=1000, help="prompts; half as many for the held-out pairs")
    canvas.add_argument("--seed", type=int, default=5_000_000, help="seed of the first image; the others count up")
    canvas.add_argument("--batch-size", type=positive, default=16, help="images at a time")
    canvas.add_argument("--sheet", type=Path, help="also draw every object in every style, beside renders, as a PNG")
    for name, run in runs.items():
        part = _add_part(parts, name, run)
        _add_work(part)
        if name == "directions":
            part.add_argument("--dry-run", action="store_true", help="say how much there is to do, and end")
    for module in (bench_unlearn, bench_unlearn_many):
        part = module.add_parser(parts)
        _add_common(part)
        _add_work(part)


def _add_part(parts: Commands, name: str, run: Callable[[argparse.Namespace], int | None]) -> argparse.ArgumentParser:
    summary, about, example = _PARTS[name]
    part = add_command(parts, name, run, summary=summary, about=about, example=example, resumable=name != "canvas")
    _add_common(part)
    return part


def _add_common(part: argparse.ArgumentParser) -> None:
    part.add_argument("--out", type=Path, required=True, help="JSON file to write")
    part.add_argument("--quick", action="store_true", help="a small version, within two minutes on two slow cores")
    part.add_argument("--device", default="cpu", help="where the model runs: cpu, cuda, cuda:1, mps")
    part.add_argument("--force", action="store_true", help="replace OUT if it exists")


def _add_work(part: argparse.ArgumentParser) -> None:
    part.add_argument("--work", type=Path, help="run folder for what is done already (default: OUT without its .json)")


def _canvas(options: argparse.Namespace) -> None:
    from apps.bench.canvas import bench_canvas, canvas_table, contact_sheet
    from apps.images import save_png
    from apps.judging import shipped_judge
    from apps.progress import Clock

    out = new_file(options.out, force=options.force)
    sheet = options.sheet and new_file(options.sheet, force=options.force)
    judge = shipped_judge()
    pipe = _canvas_model(options)
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

    _judged(options, bench_sae, QUICK if options.quick else BenchConfig(), recovery_table)


def _directions(options: argparse.Namespace) -> None:
    from apps.bench.directions import QUICK, DirectionsConfig, bench_directions, directions_table

    config = QUICK if options.quick else DirectionsConfig()
    if options.dry_run:
        from apps.bench.directions_cost import foretold

        print(foretold(_canvas_model(options), config, _work(options)))
        return
    _judged(options, bench_directions, config, directions_table)


def _lenses(options: argparse.Namespace) -> None:
    from apps.bench.lenses import QUICK, LensesConfig, bench_lenses, lenses_table

    _judged(options, bench_lenses, QUICK if options.quick else LensesConfig(), lenses_table)


def _information(options: argparse.Namespace) -> None:
    from apps.bench.information import QUICK, BenchConfig, bench_information, information_tables
    from probe.model import PipelineEps

    config = QUICK if options.quick else BenchConfig()
    _measure(
        options,
        lambda work: bench_information(PipelineEps(_canvas_model(options)), config, work, print, device=options.device),
        information_tables,
    )


def _judged(options: argparse.Namespace, bench: Any, config: Any, table: Callable[[Any], str]) -> None:
    """A benchmark whose images the judge reads."""
    from apps.judging import shipped_judge

    _measure(
        options,
        lambda work: bench(_canvas_model(options), shipped_judge(), config, work, print, device=options.device),
        table,
    )


def _measure(options: argparse.Namespace, bench: Callable[[Path], Any], table: Callable[[Any], str]) -> None:
    """Run in the work folder, write the measurement, show its table."""
    from apps.progress import Clock

    out = new_file(options.out, force=options.force)
    clock = Clock()
    measured = bench(_work(options))
    measured.write(out)
    print(table(measured.rows))
    print(f"\n{out} ({clock})")


def _work(options: argparse.Namespace) -> Path:
    return options.work or options.out.with_suffix("")


def _canvas_model(options: argparse.Namespace) -> Any:
    options.model = "canvas"
    return load_model(options)
