"""Mending a store: damaged shards are dropped and collected again by the store's own plan.

The plan in a store names the model, the sites and how samples are made; prompts, seeds and labels are in the sample
table; real images are where they were. Together they are the whole plan, which is checked by its hash before anything
is removed. A site group has a plan of its own. A shard that is collected again holds the same bytes on the same kind
of machine; where it does not, that is said.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from apps.commands._options import load_model
from apps.errors import CannotRepair

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from activations_store import ActivationStore, Problem
    from probe.capture import CapturePlan, ImagePlan


def plan_of(store: ActivationStore, images: Path | None = None) -> CapturePlan | ImagePlan:
    """The plan that a store, or a group of one, was collected by.

    Args:
        store: which.
        images: folder of the real images, for a plan of such.

    Raises:
        CannotRepair: it was not made by ``denoscope collect``, its parts do not make its hash, or the images are
            needed and are others or not given.
    """
    from dataclasses import fields

    from probe.capture import CapturePlan, ImagePlan, read_images
    from probe.errors import ProbeError

    record, table = store.plan, store.samples
    kind: type[CapturePlan | ImagePlan] = ImagePlan if "mode" in record else CapturePlan
    given: dict[str, Any] = {
        "prompts": tuple(table.column("prompt").to_pylist()),
        "seeds": tuple(table.column("seed").to_pylist()),
        "labels": {factor: tuple(store.labels(factor).tolist()) for factor in store.factors},
    }
    if kind is ImagePlan:
        if images is None:
            raise CannotRepair(f"{store.place}: it was made from real images. Say where they are: --images FOLDER.")
        found = read_images(images, limit=store.spec.n_samples)
        given |= {"folder": str(found.folder), "files": found.files, "sha256": found.sha256, "masks": found.masks}
    names = {field.name for field in fields(kind)} - set(kind.SAMPLE_FIELDS)
    kept = {name: tuple(v) if isinstance(v, list) else v for name, v in record.items() if name in names}
    # The store says whether images were saved, which a collection may decide otherwise than its plan.
    for saved in (True, False):
        try:
            plan = kind(**{**kept, **given, "images": saved})
        except (ProbeError, TypeError) as error:
            raise CannotRepair(
                f"{store.place}: its plan is none of denoscope collect ({error}). Collect it again the way it was made."
            ) from error
        if plan.content_hash() == record.get("plan_hash"):
            return plan
    where = "store.json and the sample table" if images is None else f"store.json, the sample table and {images}"
    raise CannotRepair(
        f"{store.place}: {where} do not make the plan with hash {record.get('plan_hash')}. "
        "Collect it again the way it was made."
    )


def what_to_run(store: ActivationStore, damage: list[Problem]) -> list[str]:
    """For each kind of damage, what mends it."""
    lines = []
    for group, wanted in _damaged_shards(damage):
        spec = store.spec if group is None else type(store).open(store.place / "groups" / group).spec
        samples = ", ".join(f"{r.start}-{r.stop - 1}" for r in map(spec.shard_samples, wanted))
        of = "" if group is None else f" of group {group}"
        lines.append(f"run again: shards {', '.join(map(str, wanted))}{of} (samples {samples})")
    if lines:
        images = " --images FOLDER" if "mode" in store.plan else ""
        lines.append(f"  denoscope store verify {store.place} --repair{images}")
    if any(p.kind == "statistics" for p in damage):
        lines.append("statistics are computed again when they are next asked for")
    if any(p.kind in ("metadata", "samples") for p in damage):
        lines.append("metadata cannot be computed again: restore the named files from a copy, or collect anew")
    return lines


class _Part(NamedTuple):
    """Damaged shards of the store itself, or of one group."""

    group: str | None
    holder: ActivationStore
    shards: list[int]
    plan: CapturePlan | ImagePlan


def repair(
    store: ActivationStore,
    damage: list[Problem],
    *,
    model: str | None = None,
    device: str = "cpu",
    images: Path | None = None,
) -> Iterator[str]:
    """Mend what can be mended, telling what is done.

    Args:
        store: the damaged store.
        damage: what ``store.verify`` found.
        model: where the plan's model lies; None for the name in the plan.
        device: where it runs.
        images: folder of the real images that the store was made from, if it was.

    In an object store damaged shards are removed and not collected again.

    Raises:
        CannotRepair: metadata are damaged, or a plan cannot be rebuilt; nothing was changed then.
        activations_store.errors.FingerprintMismatch: the model is another one now; nothing was changed.
    """
    beyond = [p.path for p in damage if p.kind in ("metadata", "samples")]
    if beyond:
        raise CannotRepair(
            f"{store.place}: {', '.join(beyond[:3])} cannot be computed again. Restore them from a copy."
        )
    if not isinstance(store.place, Path):
        yield from _drop(store, damage)
        return
    parts = []
    for group, shards in _damaged_shards(damage):
        holder = store if group is None else store.groups[group]
        parts.append(_Part(group, holder, shards, plan_of(holder, images)))
    if parts:
        precision = store.fingerprint.get("dtype", "float32")
        options = argparse.Namespace(model=model or parts[0].plan.model, device=device, precision=precision)
        pipe = load_model(options)
        for part in parts:
            yield from _collect_again(store.path, part, pipe)
    for problem in damage:
        if problem.kind == "statistics":
            (store.path / problem.path).unlink(missing_ok=True)
            yield f"removed {problem.path}: it is computed again when it is next asked for"
    store.close()


def _damaged_shards(damage: list[Problem]) -> Iterator[tuple[str | None, list[int]]]:
    """Damaged shards of the store itself (None) and of each group, in order."""
    for group in sorted({p.group for p in damage if p.shard is not None}, key=lambda name: name or ""):
        yield group, sorted({p.shard for p in damage if p.shard is not None and p.group == group})


def _drop(store: ActivationStore, damage: list[Problem]) -> Iterator[str]:
    """Remove what is damaged from an object store, where nothing is overwritten: sound shards can be copied there."""
    from activations_store import StoreWriter

    for group, shards in _damaged_shards(damage):
        holder = store if group is None else store.groups[group]
        given = {"spec": holder.spec, "fingerprint": holder.fingerprint, "plan": holder.plan}
        with StoreWriter.resume(holder.place, **given) as writer:
            writer.discard(shards)
        yield f"removed shards {', '.join(map(str, shards))}{'' if group is None else f' of group {group}'}"
    store.close()
    yield f"copy them again from a store that has them: denoscope store copy STORE {store.place}"


def _collect_again(path: Path, part: _Part, pipe: DiffusionPipeline) -> Iterator[str]:
    from activations_store import StoreWriter
    from activations_store.errors import StoreError
    from probe.capture import collect
    from probe.model import fingerprint

    holder = part.holder
    before = {}
    for shard in part.shards:
        try:
            before[shard] = holder.record(shard)
        except StoreError:  # the record itself is what is damaged
            continue
    # Refuses another model or plan before a record is removed.
    with StoreWriter.resume(holder.path, spec=holder.spec, fingerprint=fingerprint(pipe), plan=holder.plan) as writer:
        writer.discard(part.shards)
    of = "" if part.group is None else f" of group {part.group}"
    yield f"collecting shards {', '.join(map(str, part.shards))}{of} again"
    collect(pipe, part.plan, path, save_images=bool(holder.plan["images"]), group=part.group)
    holder.close()
    for shard, record in before.items():
        different = holder.record(shard).different_sites(record)
        if different:
            yield (
                f"shard {shard}{of}: the values differ from those that were lost at {', '.join(different)}, as on "
                "another kind of machine or with other versions"
            )
