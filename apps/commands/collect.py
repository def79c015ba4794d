"""``denoscope collect``: record what a model computes into an activation store."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from apps.commands._options import (
    Commands,
    add_command,
    add_model,
    add_sampling,
    as_typed,
    load_model,
    positive,
    steps_range,
)

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from activations_store.storage.objects import Place
    from probe.capture import CapturePlan, ImagePlan

_EXAMPLE = """
denoscope collect --model canvas --sites mid_block up_blocks.1 --prompts canvas:200 --steps 20 --out runs/x
denoscope collect --sites 'up_blocks.*.attentions.*' --prompts prompts.csv --tokens 64 --out runs/y --dry-run
denoscope collect --sites mid_block --images photos --log-snr -4 -1 2 --out runs/z
denoscope collect --sites up_blocks.0 --prompts canvas:200 --steps 20 --out runs/x --group up
"""


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "collect",
        run,
        summary="record activations into a store",
        about="Generate images, or take real ones, and record what the model computes at some sites into OUT/store. "
        "Size, memory and expected time are printed first, and what does not fit is refused. A run that was stopped "
        "goes on when the same command is given again.",
        example=_EXAMPLE,
        resumable=True,
    )
    add_model(parser)
    parser.add_argument(
        "--sites", nargs="+", required=True, metavar="SITE", help="such as mid_block, up_blocks.1:delta"
    )
    parser.add_argument(
        "--prompts", help="canvas:N for N balanced captions, or a .txt, .csv, .jsonl file (default: canvas:200)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first image's noise; the others count up")
    add_sampling(parser)
    parser.add_argument("--out", required=True, help="run folder; or s3://BUCKET/KEY for the store itself")
    parser.add_argument("--group", metavar="NAME", help="add the sites, of the same samples, to the store in OUT")
    parser.add_argument("--dry-run", action="store_true", help="print size, memory and time, write nothing")

    kept = parser.add_argument_group("what is kept")
    kept.add_argument("--record-steps", type=steps_range, metavar="STEPS", help="such as 0-4,10 (default: all)")
    kept.add_argument(
        "--branches",
        nargs="+",
        choices=("uncond", "cond"),
        help="guidance branches (default: all that the model computes)",
    )
    kept.add_argument("--tokens", type=positive, metavar="N", help="the same N tokens of every map (default: all)")
    kept.add_argument("--token-seed", type=int, default=0, help="decides which tokens --tokens keeps")
    kept.add_argument("--pool", choices=("mean", "max"), help="one row a map, pooled over its tokens")
    kept.add_argument(
        "--dtype", default="float16", choices=("float16", "float32", "bfloat16", "int8"), help="stored number format"
    )
    kept.add_argument("--compression", choices=("zstd",), help="compress the store (default: not)")
    kept.add_argument("--no-images", action="store_true", help="do not save the images")
    kept.add_argument(
        "--on-nonfinite", choices=("refuse", "flag"), default="refuse", help="NaN, infinity, overflow of the dtype"
    )

    real = parser.add_argument_group("real images instead of prompts")
    real.add_argument("--images", type=Path, metavar="FOLDER", help="images, with or without a metadata.csv")
    real.add_argument("--log-snr", type=float, nargs="+", metavar="L", help="noise levels: log(signal^2 / noise^2)")
    real.add_argument("--invert", type=positive, metavar="N", help="DDIM inversion in N steps, instead of added noise")
    real.add_argument("--max-images", type=positive, metavar="N", help="the first N images only")


def run(options: argparse.Namespace) -> None:
    """Plan, estimate, collect."""
    from activations_store.storage.objects import SCHEME, place
    from apps.errors import InvalidOption
    from apps.progress import Clock, bar
    from apps.prompts import counts
    from apps.runs import STORE_MARK, Run
    from probe.capture import ImagePlan, collect, estimate, nonfinite
    from probe.capture.collect import store_place
    from probe.capture.size import human_bytes

    if options.seed < 0:
        raise InvalidOption(f"--seed {options.seed}: expected a whole number from 0.")
    plan, pipe = _plan(options)
    out = place(options.out) if options.out.startswith(SCHEME) else Run(Path(options.out)).store
    target = store_place(out, options.group)
    what = (
        f"log-SNR {', '.join(f'{level:g}' for level in plan.log_snr)}"
        if isinstance(plan, ImagePlan)
        else (f"{plan.steps} steps, guidance {plan.guidance:g}")
    )
    print(f"model {plan.model}, {what}, branches {'+'.join(plan.branches)}, sites {', '.join(plan.sites)}")
    if plan.labels:
        print(f"labels: {counts(plan.labels)}")
    started = (target / STORE_MARK).exists()
    if started:
        check_same_plan(pipe, plan, target)
    if not started or options.dry_run:
        print(as_typed(str(estimate(pipe, plan, None if started else out)), options))
    if options.dry_run:
        return
    clock = Clock()
    with bar("collect") as progress:
        whole = collect(pipe, plan, out, progress=progress, group=options.group)
    store = whole if options.group is None else whole.groups[options.group]
    size = human_bytes(store.spec.n_bytes)
    print(f"{store.n_committed_samples} samples, {size} in {target} ({clock})")
    for site, found in nonfinite(store).items():
        print(
            f"flagged at {site}: {found.nan.sum()} NaN, {found.inf.sum()} infinite, of which {found.overflow.sum()} "
            f"too large for {plan.dtype}; at steps {', '.join(map(str, (found.nan + found.inf).nonzero()[0]))}"
        )
    print(f"next: denoscope train {out} --site {store.sites[0]}")


def _plan(options: argparse.Namespace) -> tuple[CapturePlan | ImagePlan, DiffusionPipeline]:
    """The plan that the options mean, and its model. Files are read before the model is loaded."""
    from apps.errors import InvalidOption
    from apps.prompts import prompts_from
    from probe.capture import CapturePlan, ImagePlan, read_images

    kept = {name: getattr(options, name) for name in ("dtype", "compression", "tokens", "token_seed", "pool")}
    images = not options.no_images and options.group is None  # a group has the images of its store
    kept |= {"batch_size": options.batch_size, "images": images, "on_nonfinite": options.on_nonfinite}
    if options.images is None:
        given = [o for o in ("log_snr", "invert", "max_images") if getattr(options, o) is not None]
        if given:
            raise InvalidOption(f"--{given[0].replace('_', '-')} is for real images; give --images FOLDER too.")
        prompts = prompts_from(options.prompts or "canvas:200")
        pipe = load_model(options)
        return CapturePlan.for_pipeline(
            pipe,
            options.sites,
            prompts.prompts,
            seeds=prompts.seeds,
            first_seed=options.seed,
            labels=prompts.labels,
            steps=options.steps,
            guidance=options.guidance,
            branches=options.branches,
            record_steps=options.record_steps,
            **kept,
        ), pipe
    for name in ("prompts", "steps", "guidance", "record_steps"):
        if getattr(options, name) is not None:
            raise InvalidOption(
                f"--{name.replace('_', '-')} is for generated images; with --images, prompts come from the folder's "
                "metadata.csv and steps are the levels of --log-snr."
            )
    if not options.log_snr:
        raise InvalidOption("--images needs --log-snr: the noise levels to record at, such as --log-snr -4 -1 2.")
    images = read_images(options.images, limit=options.max_images)
    pipe = load_model(options)
    if options.invert is not None:
        kept |= {"mode": "invert", "inversion_steps": options.invert}
    branches = tuple(options.branches or ("cond",))
    return ImagePlan.for_pipeline(
        pipe, options.sites, images, options.log_snr, first_seed=options.seed, branches=branches, **kept
    ), pipe


def check_same_plan(pipe: DiffusionPipeline, plan: CapturePlan | ImagePlan, store_path: Place) -> None:
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
