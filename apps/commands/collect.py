"""``denoscope collect``: record what a model computes into an activation store."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from apps.commands._options import Commands, add_command, add_model, add_sampling, load_model

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from probe.capture import CapturePlan

_EXAMPLE = """
denoscope collect --model canvas --sites mid_block up_blocks.1 --prompts canvas:200 --steps 20 --out runs/x
denoscope collect --sites 'up_blocks.*.attentions.*' --prompts prompts.csv --out runs/y --dry-run
"""


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "collect",
        run,
        summary="record activations into a store",
        about="Generate images and record what the model computes at some sites, at every step, into OUT/store. "
        "Size and "
        "expected time are printed first. A run that was stopped goes on when the same command is given again.",
        example=_EXAMPLE,
        resumable=True,
    )
    add_model(parser)
    parser.add_argument(
        "--sites", nargs="+", required=True, metavar="SITE", help="such as mid_block, up_blocks.1:delta"
    )
    parser.add_argument(
        "--prompts", default="canvas:200", help="canvas:N for N balanced captions, or a .txt, .csv, .jsonl file"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first image; the others count up")
    add_sampling(parser)
    parser.add_argument(
        "--branches", nargs="+", choices=("uncond", "cond"), help="guidance branches to keep (default: all)"
    )
    parser.add_argument(
        "--dtype", default="float16", choices=("float16", "float32", "bfloat16"), help="stored number format"
    )
    parser.add_argument("--compression", choices=("zstd",), help="compress the store (default: not)")
    parser.add_argument("--no-images", action="store_true", help="do not save the generated images")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--dry-run", action="store_true", help="print size and time, write nothing")


def run(options: argparse.Namespace) -> None:
    """Plan, estimate, collect."""
    from apps.errors import InvalidOption
    from apps.progress import Clock, bar
    from apps.prompts import counts, prompts_from
    from apps.runs import STORE_MARK, Run
    from probe.capture import CapturePlan, collect, estimate
    from probe.capture.estimate import human_bytes

    if options.seed < 0:
        raise InvalidOption(f"--seed {options.seed}: expected a whole number from 0.")
    prompts = prompts_from(options.prompts)  # before the model: a wrong file should not cost its loading
    pipe = load_model(options)
    plan = CapturePlan.for_pipeline(
        pipe,
        options.sites,
        prompts.prompts,
        seeds=prompts.seeds,
        first_seed=options.seed,
        labels=prompts.labels,
        steps=options.steps,
        guidance=options.guidance,
        branches=options.branches,
        dtype=options.dtype,
        batch_size=options.batch_size,
        compression=options.compression,
        images=not options.no_images,
    )
    target = Run(options.out)
    print(f"model {plan.model}, {plan.steps} steps, guidance {plan.guidance:g}, sites {', '.join(plan.sites)}")
    if plan.labels:
        print(f"labels: {counts(plan.labels)}")
    started = (target.store / STORE_MARK).is_file()
    if started:
        check_same_plan(pipe, plan, target.store)
    if not started or options.dry_run:
        print(estimate(pipe, plan))
    if options.dry_run:
        return
    clock = Clock()
    with bar("collect") as progress:
        store = collect(pipe, plan, target.store, progress=progress)
    size = human_bytes(store.spec.n_bytes)
    print(f"{store.n_committed_samples} samples, {size} in {target.store} ({clock})")
    print(f"next: denoscope train {target.store} --site {store.sites[0]}")


def check_same_plan(pipe: DiffusionPipeline, plan: CapturePlan, store_path: Path) -> None:
    """Say how far an earlier run of this plan came.

    Raises:
        activations_store.errors.StoreExists: the folder holds a store of another plan or model.
    """
    from activations_store import ActivationStore
    from activations_store.errors import StoreExists
    from probe.model import fingerprint
    from probe.model.fingerprint import differences

    store = ActivationStore.open(store_path)
    found, wanted = store.plan, plan.record()
    lines = [
        f"{k}: there {found.get(k)!r}, here {wanted[k]!r}"
        for k in wanted
        if k != "plan_hash" and found.get(k) != wanted[k]
    ]
    lines += differences(dict(store.fingerprint), fingerprint(pipe))
    if lines:
        raise StoreExists(
            f"collect: {str(store_path)!r} holds another collection ({'; '.join(lines[:3])}). "
            "Choose another --out, or give the options of that collection to resume it."
        )
    print(f"resuming: {store.n_committed_samples} of {store.spec.n_samples} samples are there already")
