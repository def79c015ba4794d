"""Run a plan: bring its samples through the model, record every site at every step, write whole shards.

A shard of samples is run in the batches that the plan fixes, its images are saved, and then its activations are
written and committed in the background while the next shard is run. A shard whose commit record exists is complete,
images included, so a run that was killed at any moment and is started again runs only the shards without one, and
ends with the same bytes as a run that was never killed.

Sites can be added to a store later: the same samples are run again and the new sites recorded into a group of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from activations_store import ActivationStore, AsyncShardWriter, StoreSpec, StoreWriter
from activations_store.errors import StoreExists
from activations_store.format.pictures import save_picture
from activations_store.storage.objects import Place, place
from probe.capture.generation import Generation
from probe.capture.image_files import png_bytes
from probe.capture.image_plan import ImagePlan
from probe.capture.plan import CapturePlan
from probe.capture.real_images import MASKS, RealImages
from probe.capture.recording import Recording
from probe.capture.size import SHARDS_HELD, check_fits, disk_use, sample_table
from probe.capture.source import Source, buffers_of, spec_of, store_record
from probe.errors import InvalidPlan, ModelMismatch
from probe.model.fingerprint import fingerprint, model_name
from probe.model.generate import Progress, model_label
from probe.model.pipeline import Pipeline

STORE_FILE = "store.json"
IMAGES = "images"


def collect(
    pipe: Pipeline,
    plan: CapturePlan | ImagePlan,
    out: str | Place,
    *,
    progress: Progress | None = None,
    resume: bool = True,
    save_images: bool | None = None,
    group: str | None = None,
) -> ActivationStore:
    """Record a plan's activations into a store.

    Args:
        pipe: the plan's model.
        plan: what to run.
        out: folder of the store, or ``s3://bucket/key`` (activations_store/storage/objects.py); images go to
            ``<out>/images/000000.png`` and so on, masks of real images to ``<out>/masks``.
        progress: called with (done, total) samples, those of an earlier run included.
        resume: continue a store of the same plan and model; if False an existing store is an error.
        save_images: overrides ``plan.images``.
        group: add the plan's sites to the store in ``out``, as the group of this name. The plan must have the store's
            samples, steps and branches. A group has no images of its own.

    Returns:
        The complete store; with ``group``, the one in ``out``.

    Raises:
        ModelMismatch, UnknownSite, UnsupportedSite, InvalidPlan, NotEnoughSpace, NotEnoughMemory: before anything
            is run.
        activations_store.errors.StoreExists, PlanMismatch, SpecMismatch, FingerprintMismatch: the folder
            holds another store, or one that the group does not fit.
        activations_store.errors.NonFiniteActivations: activations are not finite, or overflow the stored dtype, and
            the plan does not flag them.
    """
    out = place(out)
    source = open_source(pipe, plan, images=save_images if group is None else False)
    target = store_place(out, group)
    started = (target / STORE_FILE).exists()
    if not resume and started:
        raise StoreExists(f"collect: there is a store in {str(target)!r} already. Choose another folder, or resume it.")
    spec, use = spec_of(source), disk_use(source)
    if not started:
        check_fits(source, use, out)  # before there is a folder
    with _open_writer(source, spec, out, group) as writer:
        pending = writer.pending()
        if started:
            check_fits(source, use, out, share=len(pending) / spec.n_shards)
        beside = None if group is not None else out
        if beside is not None:
            for folder in (IMAGES,) * source.images + (MASKS,) * bool(source.n_extra_files):
                (beside / folder).mkdir(exist_ok=True)
        _fill(source, spec, writer, pending, beside, progress)
    return ActivationStore.open(out)


def store_place(out: Place, group: str | None) -> Place:
    """Where a collection's store is: ``out``, or a group in it.

    Raises:
        activations_store.errors.NotInObjectStore: a group, and ``out`` is no folder of this machine.
        activations_store.errors.InvalidSpec: the name cannot name a group.
        activations_store.errors.NotAStore: there is no store that a group could be added to.
    """
    return out if group is None else ActivationStore.open(out).group_path(group)


def _fill(
    source: Source,
    spec: StoreSpec,
    writer: StoreWriter,
    pending: list[int],
    beside: Place | None,
    progress: Progress | None,
) -> None:
    """Run and write the pending shards, and pictures in a folder if there is one for them."""
    done = spec.n_samples - sum(len(spec.shard_samples(shard)) for shard in pending)
    with AsyncShardWriter(writer, max_pending=SHARDS_HELD - 2) as background:
        for shard in pending:
            buffers = buffers_of(source, spec, shard)
            for batch in source.plan.batches(spec.shard_samples(shard)):
                buffers.begin(batch)
                pixels = source.run(buffers.receive, batch)
                buffers.end()
                if beside is not None:
                    if pixels is not None:
                        for sample, image in zip(batch, pixels, strict=True):
                            save_picture(beside, IMAGES, sample, png_bytes(image))
                    source.save_extras(beside, batch)
                done += len(batch)
                if progress is not None:
                    progress(done, spec.n_samples)
            background.submit(shard, buffers.arrays)


def open_source(pipe: Pipeline, plan: CapturePlan | ImagePlan, *, images: bool | None = None) -> Source:
    """The samples of a plan, ready to run. Costs one denoiser call on one sample.

    Raises:
        ModelMismatch: the plan is for another model.
        UnknownSite, UnsupportedSite, InvalidPlan: it does not fit this one.
    """
    if model_name(plan.model) != model_name(pipe):
        raise ModelMismatch(
            f"collect: the plan is for model {plan.model!r}, but the pipeline is {model_label(pipe)}. "
            f"Load the plan's model, or make a new plan with {type(plan).__name__}.for_pipeline."
        )
    if isinstance(plan, ImagePlan):
        return RealImages(pipe, plan, images=images)
    return Generation(pipe, plan, images=images)


@dataclass(frozen=True)
class NonFinite:
    """Values of a site that are not finite, by recorded step: int64 arrays (n_steps,).

    Attributes:
        nan: not a number.
        inf: infinite, those by overflow included.
        overflow: finite in the model, infinite in the stored dtype.
    """

    nan: np.ndarray
    inf: np.ndarray
    overflow: np.ndarray

    @property
    def total(self) -> int:
        """All of them."""
        return int(self.nan.sum() + self.inf.sum())


def nonfinite(store: ActivationStore) -> dict[str, NonFinite]:
    """Counts of values that are not finite in a store's committed shards, for each site that has any."""
    found = {}
    for site in store.sites:
        holder = store.holding(site)
        entries = [holder.record(shard).sites[site] for shard in holder.committed]
        counts = [np.sum([e[i] for e in ((x.nan, x.inf, x.overflow) for x in entries)], axis=0) for i in range(3)]
        if entries and (counts[0].any() or counts[1].any()):
            found[site] = NonFinite(*(c.astype(np.int64) for c in counts))
    return found


def _open_writer(source: Source, spec: StoreSpec, out: Place, group: str | None) -> StoreWriter:
    model, record, flag = fingerprint(source.pipe), store_record(source), source.plan.on_nonfinite == "flag"
    if group is not None:
        _check_same_samples(ActivationStore.open(out), source.plan)
        return StoreWriter.extend(out, group, spec, fingerprint=model, plan=record, allow_nonfinite=flag)
    if (out / STORE_FILE).exists():
        return StoreWriter.resume(out, spec=spec, fingerprint=model, plan=record, allow_nonfinite=flag)
    table = sample_table(source.plan)
    return StoreWriter.create(out, spec, table, fingerprint=model, plan=record, allow_nonfinite=flag)


def _check_same_samples(store: ActivationStore, plan: Recording) -> None:
    """Raise ``InvalidPlan`` unless a plan's samples are the store's, in its order."""
    there, here = store.samples, sample_table(plan)
    for name in here.column_names:
        if name not in there.column_names or there.column(name).to_pylist() != here.column(name).to_pylist():
            raise InvalidPlan(
                f"collect: a group holds other sites of the same samples, but column {name!r} of the sample table is "
                f"another in {str(store.place)!r}. Give the prompts, seeds and labels of that collection."
            )
