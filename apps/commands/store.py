"""``denoscope store``: look at, check, mend, clean, join, cut, copy and export activation stores."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.commands._options import Commands, add_command, add_group, steps_range

if TYPE_CHECKING:
    from activations_store import ActivationStore

DAMAGED = 1
"""Exit status of ``verify`` when something is damaged."""

_EXAMPLES = """
denoscope store info runs/x
denoscope store verify runs/x --repair
denoscope store subset runs/x --label object=cup --steps 5-14 --out runs/cups/store
"""
_INFO = """
denoscope store info runs/x
denoscope store info runs/x/store --json
"""
_VERIFY = """
denoscope store verify runs/x
denoscope store verify runs/x --fast
denoscope store verify runs/x --repair
denoscope store verify runs/photos --repair --images photos
"""
_GC = """
denoscope store gc runs/x
denoscope store gc runs/x --older-than 1
"""
_MERGE = """
denoscope store merge runs/a runs/b --out runs/both/store
"""
_SUBSET = """
denoscope store subset runs/x --samples 0-99 --out runs/first/store
denoscope store subset runs/x --label object=cup --label style=neon,flat --steps 5-14 --out runs/cups/store
denoscope store subset runs/x --sites unet.mid_block:out --branches cond --out runs/mid/store
"""
_COPY = """
denoscope store copy runs/x s3://bucket/runs/x
denoscope store copy s3://bucket/runs/x runs/x/store
"""
_EXPORT = """
denoscope store export runs/x --out runs/x-npy
denoscope store export runs/x --format safetensors --sites unet.mid_block:out --out runs/x-rows
"""


def add_parser(commands: Commands) -> None:
    """Declare the command and its actions."""
    actions = add_group(
        commands,
        "store",
        "actions",
        "ACTION",
        summary="inspect, verify, repair, merge, cut, copy and export stores",
        about="Look at, check, mend, clean, join, cut, copy and export activation stores. STORE is a store or a run "
        "folder; for info, verify and copy it may be s3://BUCKET/KEY too.",
        example=_EXAMPLES,
    )
    info = add_command(
        actions, "info", run_info, summary="what a store holds", about="Print what a store holds.", example=_INFO
    )
    info.add_argument("store", type=_place, metavar="STORE")
    info.add_argument("--json", action="store_true", help="print JSON")
    verify = add_command(
        actions,
        "verify",
        run_verify,
        summary="find damage and say what to run again",
        about="Compare every byte of a store with its commit records, name what is damaged and what to run again. "
        f"The exit status is {DAMAGED} when something is damaged.",
        example=_VERIFY,
    )
    verify.add_argument("store", type=_place, metavar="STORE")
    verify.add_argument("--fast", action="store_true", help="metadata, records, file types and sizes only")
    verify.add_argument("--repair", action="store_true", help="collect damaged shards again with the store's own plan")
    verify.add_argument("--model", help="where the plan's model lies now (default: the name in the plan)")
    verify.add_argument("--images", type=Path, metavar="FOLDER", help="the real images that the store was made from")
    verify.add_argument("--device", default="cpu", help="where the model runs: cpu, cuda, cuda:1, mps")
    gc = add_command(
        actions,
        "gc",
        run_gc,
        summary="remove leftovers of killed runs",
        about="Remove temporary files of killed writers and shard files that were never committed, nothing else.",
        example=_GC,
    )
    gc.add_argument("store", type=Path, metavar="STORE")
    gc.add_argument(
        "--older-than",
        type=float,
        default=24.0,
        metavar="HOURS",
        help="age at which a file of another machine, or of a store in use, counts as left",
    )
    merge = add_command(
        actions,
        "merge",
        run_merge,
        summary="join stores of one model",
        about="Join the committed samples of stores with equal sites, steps, branches and model into a new store.",
        example=_MERGE,
        resumable=True,
    )
    merge.add_argument("stores", type=Path, nargs="+", metavar="STORE")
    merge.add_argument("--out", type=Path, required=True, help="folder of the new store")
    subset = add_command(
        actions,
        "subset",
        run_subset,
        summary="a part of a store as a store",
        about="Copy chosen samples, sites, steps and branches, bit for bit, into a new store.",
        example=_SUBSET,
        resumable=True,
    )
    copy = add_command(
        actions,
        "copy",
        run_copy,
        summary="to or from an object store",
        about="Copy a store byte for byte, checked by its hashes, to another folder or to or from an S3-compatible "
        "object store. Region, credentials and endpoint are those of the environment (AWS_REGION, AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL). Nothing in an object store is overwritten.",
        example=_COPY,
        resumable=True,
    )
    copy.add_argument("store", type=_place, metavar="STORE")
    copy.add_argument("out", type=_place, metavar="OUT", help="folder of the copy, or s3://BUCKET/KEY")
    export = add_command(
        actions,
        "export",
        run_export,
        summary="plain npy or safetensors files",
        about="Write a store's numbers as files for programs that know no store.",
        example=_EXPORT,
    )
    for part in (subset, export):
        part.add_argument("store", type=Path, metavar="STORE")
        part.add_argument("--samples", type=steps_range, metavar="RANGE", help="such as 0-99 or 3,7-9 (default: all)")
        part.add_argument(
            "--label",
            action="append",
            default=[],
            metavar="FACTOR=A[,B]",
            help="keep samples with one of these labels; may be given several times",
        )
        part.add_argument("--sites", nargs="+", metavar="SITE", help="full names (default: all)")
        part.add_argument("--steps", type=steps_range, metavar="RANGE", help="such as 5-14 (default: all)")
        part.add_argument("--branches", nargs="+", metavar="BRANCH", help="such as cond (default: all)")
        part.add_argument("--out", type=Path, required=True, help="folder to make")
    export.add_argument("--format", choices=("npy", "safetensors"), default="npy", help="kind of files")


def run_info(options: argparse.Namespace) -> None:
    """Print what a store holds."""
    from apps.store_info import as_text, describe

    store = _open(options.store)
    print(json.dumps(describe(store), indent=1) if options.json else as_text(store))


def run_verify(options: argparse.Namespace) -> int:
    """Check, and mend when asked to."""
    store = _open(options.store)
    problems = store.verify(full=not options.fast)
    damage = [problem for problem in problems if problem.is_damage]
    for problem in problems:
        print(f"{'DAMAGED' if problem.is_damage else problem.kind}: {problem.path}: {problem.message}")
    if not damage:
        how = "sizes and records agree" if options.fast else "every byte is what was committed"
        print(f"{store.place}: sound, {how} ({store.n_committed_samples} of {store.spec.n_samples} samples)")
        return 0
    from apps.store_repair import repair, what_to_run

    if not options.repair:
        for line in what_to_run(store, damage):
            print(line)
        return DAMAGED
    for line in repair(store, damage, model=options.model, device=options.device, images=options.images):
        print(line)
    left = [problem for problem in store.verify(full=not options.fast) if problem.is_damage]
    print(f"{store.place}: {'sound' if not left else f'{len(left)} problems are left'}")
    return DAMAGED if left else 0


def run_gc(options: argparse.Namespace) -> None:
    """Remove leftovers."""
    from activations_store import gc
    from apps.runs import store_folder

    removed = gc(store_folder(options.store), older_than_hours=options.older_than)
    for path in removed:
        print(f"removed {path}")
    print(f"{len(removed)} leftovers removed")


def run_merge(options: argparse.Namespace) -> None:
    """Join."""
    from activations_store import merge
    from apps.progress import bar

    with bar("merge", "sample") as progress:
        store = merge([_open(path) for path in options.stores], options.out, progress=progress)
    print(f"{store.spec.n_samples} samples in {options.out}")


def run_subset(options: argparse.Namespace) -> None:
    """Cut."""
    from activations_store import subset
    from apps.progress import bar

    store = _open(options.store)
    with bar("subset", "sample") as progress:
        made = subset(store, options.out, sites=options.sites, progress=progress, **_selection(store, options))
    print(f"{made.spec.n_samples} samples in {options.out}")


def run_copy(options: argparse.Namespace) -> None:
    """Copy."""
    from activations_store import copy
    from apps.progress import bar

    store = _open(options.store)
    with bar("copy", "shard") as progress:
        out = copy(store.place, options.out, progress=progress)
    print(f"{store.n_committed_samples} of {store.spec.n_samples} samples in {out}")


def run_export(options: argparse.Namespace) -> None:
    """Write plain files."""
    from activations_store import export
    from apps.progress import bar

    store = _open(options.store)
    with bar("export", "map") as progress:
        out = export(
            store,
            options.out,
            file_format=options.format,
            sites=options.sites,
            progress=progress,
            **_selection(store, options),
        )
    print(f"{sum(1 for _ in out.iterdir())} files in {out}")


def _place(text: str) -> str | Path:
    """A folder, or a place in an object store, which is no path of this machine."""
    return text if text.startswith("s3://") else Path(text)


def _open(path: str | Path) -> ActivationStore:
    from activations_store import ActivationStore
    from apps.runs import store_folder

    return ActivationStore.open(path if isinstance(path, str) else store_folder(path))


def _selection(store: ActivationStore, options: argparse.Namespace) -> dict[str, Any]:
    from apps.errors import InvalidOption

    samples = None if options.samples is None else list(options.samples)
    labels: dict[str, list[str]] = {}
    for text in options.label:
        factor, sign, values = text.partition("=")
        if not (factor and sign and values):
            raise InvalidOption(f"--label {text}: expected FACTOR=LABEL, such as object=cup or style=neon,flat.")
        labels[factor] = labels.get(factor, []) + values.split(",")
    if labels:
        chosen = set(store.where(**labels).tolist())
        kept = chosen if samples is None else chosen & set(samples)
        if not kept:
            raise InvalidOption(f"--label {' '.join(options.label)}: no chosen sample has these labels.")
        samples = sorted(kept)
    steps = None if options.steps is None else list(options.steps)
    return {"samples": samples, "steps": steps, "branches": options.branches}
