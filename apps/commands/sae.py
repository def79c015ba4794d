"""``denoscope sae``: measure, compare and convert dictionaries, this package's and other libraries'."""

from __future__ import annotations

import argparse
from pathlib import Path

from apps.commands._options import Commands, add_command, add_group, new_file, positive, steps_range

_EXAMPLES = """
denoscope sae eval runs/x
denoscope sae compare runs/x/sae/mid_block runs/x/sae/mid_block-again
denoscope sae convert checkpoints/unet.up_blocks.1.attentions.1 runs/x/sae/theirs --site up_blocks.1.attentions.1
"""
_EVAL = """
denoscope sae eval runs/x
denoscope sae eval runs/x --sae mid_block --grid --substitute 64
denoscope sae eval checkpoints/theirs --store runs/x --site up_blocks.1.attentions.1 --out theirs.json
denoscope sae eval runs/x --dry-run
"""
_COMPARE = """
denoscope sae compare runs/x/sae/mid_block runs/x/sae/mid_block-again
denoscope sae compare a b --store runs/x --site mid_block --out stability.json
"""
_CONVERT = """
denoscope sae convert checkpoints/unet.up_blocks.1.attentions.1 runs/x/sae/theirs --site up_blocks.1.attentions.1
denoscope sae convert unbox/final runs/y/sae/theirs --site down_blocks.2.attentions.1:delta
"""
PART_FOLDER = ".parts"


def add_parser(commands: Commands) -> None:
    """Declare the command and its actions."""
    actions = add_group(
        commands,
        "sae",
        "actions",
        "ACTION",
        summary="measure, compare and convert dictionaries",
        about="Measure, compare and convert dictionaries: those of a run, and folders of sae-lens, eai-sparsify, "
        "SAeUron, sdxl-unbox and OpenAI.",
        example=_EXAMPLES,
    )
    _add_eval(actions)
    compare = add_command(
        actions,
        "compare",
        run_compare,
        summary="do two dictionaries share their features?",
        about="Pair the features of two dictionaries of one site, by decoder cosine and by activation, beside what an "
        "untrained dictionary gives.",
        example=_COMPARE,
    )
    compare.add_argument("first", type=Path, metavar="A", help="dictionary folder")
    compare.add_argument("second", type=Path, metavar="B", help="dictionary folder")
    _add_store(compare)
    compare.add_argument("--out", type=Path, help="also write the numbers to a JSON file")
    compare.add_argument("--force", action="store_true", help="replace OUT if it exists")
    convert = add_command(
        actions,
        "convert",
        run_convert,
        summary="write another library's dictionary as this package and sae-lens read it",
        about="Read a folder of eai-sparsify, SAeUron, sdxl-unbox, OpenAI's TopK or sae-lens and write cfg.json and "
        "sae_weights.safetensors. Pickled weights are not opened; the message says how to convert them.",
        example=_CONVERT,
    )
    convert.add_argument("source", type=Path, metavar="FOLDER", help="folder, or safetensors file")
    convert.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    convert.add_argument("--site", help="the site whose rows it reads, as --sites of collect takes it")
    convert.add_argument("--k", type=positive, help="features kept for a row, where the folder does not say")


def _add_eval(actions: Commands) -> None:
    parser = add_command(
        actions,
        "eval",
        run_eval,
        summary="measure dictionaries; JSON and an HTML report",
        about="Reconstruction (explained variance about the mean and about zero, L0, dead and dense features, decoder "
        "cosines), concepts found beside PCA, random directions and neurons, and on request class spread and probe "
        "over sites and steps, and generations with the dictionary in place. Definitions: docs/evaluating.md.",
        example=_EVAL,
        resumable=True,
    )
    parser.add_argument("paths", type=Path, nargs="+", metavar="RUN_OR_FOLDER", help="runs, or dictionary folders")
    parser.add_argument("--sae", nargs="+", metavar="NAME", help="dictionaries of the run (default: all)")
    _add_store(parser)
    parser.add_argument("--k", type=positive, help="features kept for a row, where the folder does not say")
    parser.add_argument("--max-rows", type=positive, default=1_000_000, help="rows to measure on, spread over samples")
    parser.add_argument("--no-concepts", action="store_true", help="leave out the concepts")
    parser.add_argument("--factors", nargs="+", help="labelled factors to use (default: all of the store)")
    parser.add_argument("--grid", action="store_true", help="class spread and probe of every site and step")
    parser.add_argument("--substitute", type=positive, metavar="N", help="N generations with the dictionary in place")
    parser.add_argument("--at-steps", type=steps_range, help="steps at which images carry it (default: all)")
    parser.add_argument("--model", help="of --substitute (default: the store's)")
    parser.add_argument("--device", default="cpu", help="where the model runs: cpu, cuda, cuda:1, mps")
    parser.add_argument("--batch-size", type=positive, default=16, help="images at a time")
    parser.add_argument("--out", type=Path, help="JSON file; the report lies beside it (default: RUN/sae_eval.json)")
    parser.add_argument("--no-report", action="store_true", help="write the JSON file alone")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done and for how long, do nothing")


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", type=Path, help="store or run with the rows (default: of the folder's run)")
    parser.add_argument("--site", help="the site that it reads, where the folder does not say")


def run_eval(options: argparse.Namespace) -> None:
    """Measure, part by part; finished parts are kept until the file is written."""
    import shutil

    from apps.dictionaries.report import page_of, summary, write_sae_report
    from apps.dictionaries.targets import estimate_lines, find_targets, measure_all
    from apps.measurement import Measurement
    from apps.progress import Clock
    from apps.runs import Run
    from apps.stages import Stages

    targets = find_targets(options.paths, options.sae, options.store, options.site, options.k)
    out = new_file(options.out or targets[0].owner.folder / "sae_eval.json", force=options.force or options.dry_run)
    for line in estimate_lines(targets, options):
        print(line)
    if options.dry_run:
        return
    clock = Clock()
    parts = out.with_name(out.name + PART_FOLDER)
    rows = measure_all(targets, options, Stages(Run(parts), print, n_stages=0))
    ratios = {
        f"{row['dictionary']}_{key}": row[key]
        for row in rows
        if row["part"] == "reconstruction"
        for key in ("explained_variance", "explained_variance_about_zero", "l0")
    }
    record = Measurement("sae.eval", rows, ratios, device=options.device).write(out)
    print(summary(rows))
    print(f"\n{out} ({clock})")
    if not options.no_report:
        write_sae_report(page_of(out), record)
        print(page_of(out))
    shutil.rmtree(parts)


def run_compare(options: argparse.Namespace) -> None:
    """Compare two dictionaries and print both similarities beside chance."""
    from activations_store import ActivationStore
    from apps.dictionaries.evaluate import stability_rows
    from apps.dictionaries.targets import find_targets
    from apps.measurement import Measurement
    from apps.progress import bar, table

    if options.out:
        new_file(options.out, force=options.force)
    first, second = find_targets([options.first, options.second], None, options.store, options.site, None)
    with bar("compare", "row") as progress:
        (row,) = stability_rows(
            (first.name, second.name), (first.sae, second.sae), ActivationStore.open(first.store), first.site, progress
        )
    body = [
        [what, *(f"{row[f'{what}{null}_{number}']:.3f}" for null in ("", "_null") for number in ("mean", "shared"))]
        for what in ("decoder", "activation")
    ]
    print(table(["matched by", "similarity", "above 0.7", "untrained: similarity", "above 0.7"], body))
    if options.out:
        Measurement("sae.compare", [row], {k: v for k, v in row.items() if isinstance(v, float)}).write(options.out)
        print(f"\n{options.out}")


def run_convert(options: argparse.Namespace) -> None:
    """Convert one dictionary."""
    from apps.errors import OutputExists
    from sae import open_sae, save_sae

    if (options.out / "cfg.json").exists():
        raise OutputExists(f"{str(options.out)!r} holds a dictionary already; choose another OUT.")
    sae = open_sae(options.source, site=site_as_typed(options.site), k=options.k)
    save_sae(sae, options.out)
    print(
        f"{sae.config.d_sae} features of width {sae.config.d_in}, k {sae.config.k}, "
        f"site {sae.config.site or '(not said)'}, in {options.out}"
    )


def site_as_typed(name: str | None) -> str | None:
    """A site with the parts that people leave out: ``mid_block`` is ``unet.mid_block:out``."""
    if name is None:
        return None
    full = name if ":" in name else f"{name}:out"
    known = ("unet.", "transformer.", "text_encoder", "vae.", "prior.")
    return full if full.startswith(known) else f"unet.{full}"
