"""Run a plan: generate, record every site at every step, write whole shards.

A shard of samples is generated in the batches that the plan fixes, its images are saved, and then its
activations are written and committed in the background while the next shard is generated. A shard whose
commit record exists is complete, images included, so a run that was killed at any moment and is started again
generates only the shards without one, and ends with the same bytes as a run that was never killed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from activations_store import ActivationStore, AsyncShardWriter, StoreSpec, StoreWriter
from activations_store.errors import StoreExists
from probe.capture.estimate import human_bytes
from probe.capture.plan import CapturePlan
from probe.capture.recorder import Recorder
from probe.capture.shapes import store_spec
from probe.capture.sites import Site, resolve_sites
from probe.errors import ModelMismatch, NotEnoughSpace, UnsupportedSite
from probe.model.fingerprint import fingerprint, model_name
from probe.model.generate import Progress, model_label, run_batch
from probe.model.pipeline import Pipeline

STORE_FILE = "store.json"
IMAGES = "images"


def collect(
    pipe: Pipeline,
    plan: CapturePlan,
    out: str | Path,
    *,
    progress: Progress | None = None,
    resume: bool = True,
    save_images: bool | None = None,
) -> ActivationStore:
    """Record a plan's activations into a store.

    Args:
        pipe: the plan's model.
        plan: what to run (see ``CapturePlan``).
        out: folder of the store; images go to ``<out>/images/000000.png`` and so on.
        progress: called with (done, total) samples, those of an earlier run included.
        resume: continue a store of the same plan and model; if False an existing store is an error.
        save_images: overrides ``plan.images``.

    Returns:
        The complete store.

    Raises:
        ModelMismatch, UnknownSite, UnsupportedSite, InvalidPlan, NotEnoughSpace: before anything is
            generated.
        activations_store.errors.StoreExists, PlanMismatch, SpecMismatch, FingerprintMismatch: the folder
        holds another store. activations_store.errors.NonFiniteActivations: activations are not finite, or
        overflow the stored dtype.
    """
    out = Path(out)
    images = plan.images if save_images is None else save_images
    if model_name(plan.model) != model_name(pipe):
        raise ModelMismatch(
            f"collect: the plan is for model {plan.model!r}, but the pipeline is {model_label(pipe)}. "
            "Load the plan's model, or make a new plan with CapturePlan.for_pipeline."
        )
    if not resume and (out / STORE_FILE).exists():
        raise StoreExists(f"collect: there is a store in {str(out)!r} already. Choose another folder, or resume it.")
    sites = resolve_sites(pipe, plan.sites)
    spec = store_spec(pipe, plan)
    writer = _open_writer(pipe, plan, spec, out, images)
    pending = writer.pending()
    _check_space(spec, out, len(pending))
    if images:
        (out / IMAGES).mkdir(exist_ok=True)
        for leftover in (out / IMAGES).glob("*.tmp"):
            leftover.unlink()
    done = spec.n_samples - sum(len(spec.shard_samples(shard)) for shard in pending)
    with AsyncShardWriter(writer, max_pending=2) as background:
        for shard in pending:
            samples = spec.shard_samples(shard)
            buffers = _Buffers(spec, shard, sites)
            for batch in plan.batches(samples):
                pixels = _run(pipe, plan, buffers, batch)
                if images:
                    for sample, image in zip(batch, pixels, strict=True):
                        _save_png(out / IMAGES / f"{sample:06d}.png", image)
                done += len(batch)
                if progress is not None:
                    progress(done, spec.n_samples)
            background.submit(shard, buffers.arrays)
    return ActivationStore.open(out)


def sample_table(plan: CapturePlan) -> pa.Table:
    """The plan's samples as the store keeps them: sample, prompt, seed and ``label_<factor>`` columns."""
    columns: dict[str, pa.Array] = {
        "sample": pa.array(range(len(plan.prompts)), pa.int64()),
        "prompt": pa.array(plan.prompts, pa.string()),
        "seed": pa.array(plan.seeds, pa.int64()),
    }
    columns |= {f"label_{factor}": pa.array(values, pa.string()) for factor, values in plan.labels.items()}
    return pa.table(columns)


class _Buffers:
    """A shard being filled: for each site an array (samples, steps, branches, tokens, channels)."""

    def __init__(self, spec: StoreSpec, shard: int, sites: list[Site]) -> None:
        self._first = spec.shard_samples(shard).start
        self._branches = {branch: i for i, branch in enumerate(spec.branches)}
        # bfloat16 has no numpy type; float32 holds it exactly, and the store narrows it.
        numpy_type = {"float16": np.float16}.get(spec.sites[0].dtype, np.float32)
        self._torch_type = {"float16": torch.float16}.get(spec.sites[0].dtype, torch.float32)
        self.arrays = {str(site): np.empty(spec.shard_shape(str(site), shard), numpy_type) for site in sites}
        self._steps = spec.n_steps
        self._batch = range(0)
        self._filled: dict[Site, set[int]] = {}

    def begin(self, batch: range) -> None:
        self._batch = range(batch.start - self._first, batch.stop - self._first)
        self._filled = {}

    def receive(
        self,
        site: Site,
        step: int,
        branches: tuple[str, ...],
        rows: torch.Tensor,
        grid: tuple[int, int] | None,
    ) -> None:
        steps = self._filled.setdefault(site, set())
        if step in steps or rows.shape[0] != len(branches) * len(self._batch):
            raise UnsupportedSite(
                f"site {site}: at step {step} it gave {rows.shape[0]} maps"
                + (" for a second time" if step in steps else "")
                + f"; expected {len(branches)} x {len(self._batch)}, once."
            )
        steps.add(step)
        kept = rows.to(self._torch_type).cpu().numpy().reshape(len(branches), len(self._batch), *rows.shape[1:])
        window = slice(self._batch.start, self._batch.stop)
        for i, branch in enumerate(branches):
            if branch in self._branches:
                self.arrays[str(site)][window, step, self._branches[branch]] = kept[i]

    def end(self, sites: list[Site]) -> None:
        for site in sites:
            missing = self._steps - len(self._filled.get(site, ()))
            if missing:
                raise UnsupportedSite(f"site {site}: its module did not run at {missing} of {self._steps} steps.")


def _run(pipe: Pipeline, plan: CapturePlan, buffers: _Buffers, batch: range) -> np.ndarray:
    sites = [Site.parse(name) for name in buffers.arrays]
    buffers.begin(batch)
    chosen = slice(batch.start, batch.stop)
    with Recorder(pipe, sites, buffers.receive):
        images = run_batch(pipe, plan.prompts[chosen], plan.seeds[chosen], steps=plan.steps, guidance=plan.guidance)
    buffers.end(sites)
    return images


def _open_writer(pipe: Pipeline, plan: CapturePlan, spec: StoreSpec, out: Path, images: bool) -> StoreWriter:
    model = fingerprint(pipe)
    record = plan.record() | {"images": images}
    if (out / STORE_FILE).exists():
        return StoreWriter.resume(out, spec=spec, fingerprint=model, plan=record)
    return StoreWriter.create(out, spec, sample_table(plan), fingerprint=model, plan=record)


def _check_space(spec: StoreSpec, out: Path, n_pending: int) -> None:
    if spec.compression is not None or n_pending == 0:
        return
    needed = spec.n_bytes * n_pending / spec.n_shards
    free = shutil.disk_usage(out).free
    if needed > free:
        raise NotEnoughSpace(
            f"collect: {human_bytes(needed)} are still to be written to {str(out)!r}, but only "
            f"{human_bytes(free)} are free. "
            "Record fewer samples, sites or branches, or choose another disk."
        )


def _save_png(path: Path, image: np.ndarray) -> None:
    """Write a PNG so that the final name never holds a part of one."""
    temporary = path.with_name(path.name + ".tmp")
    Image.fromarray(image).save(temporary, format="PNG")
    temporary.replace(path)
