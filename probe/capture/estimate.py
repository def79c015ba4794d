"""Size, memory and time of a collection, known before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from activations_store.storage.objects import Place, place
from probe.capture.collect import open_source
from probe.capture.image_files import png_bytes
from probe.capture.image_plan import ImagePlan
from probe.capture.memory import current_memory, peak_memory
from probe.capture.plan import CapturePlan
from probe.capture.size import (
    Cheaper,
    DiskUse,
    buffer_bytes,
    cheaper_settings,
    check_fits,
    disk_use,
    human_bytes,
    human_seconds,
)
from probe.capture.source import Source, spec_of
from probe.errors import NotEnoughMemory
from probe.model.pipeline import Pipeline
from probe.model.steps import denoiser


@dataclass(frozen=True)
class Estimate:
    """What a collection will take.

    Attributes:
        bytes_by_site: bytes of shard files for each site.
        disk: all files of the store by kind (see ``DiskUse``).
        total_bytes: their sum, images and masks included.
        seconds: expected wall time on this machine, if nothing else slows it and the disk keeps up.
        host_peak_bytes: memory of this process at most, the model included; None where the system does not say.
        device_peak_bytes: memory of the accelerator at most; None on a CPU.
        n_samples, n_steps, n_branches: size of the collection.
        n_shards: shards of each site.
        n_files: files of the store, images and masks included.
        shard_bytes: bytes on disk of one shard of all sites.
        cheaper: settings that would take less disk, each alone.
    """

    bytes_by_site: Mapping[str, int]
    disk: DiskUse
    total_bytes: int
    seconds: float
    host_peak_bytes: int | None
    device_peak_bytes: int | None
    n_samples: int
    n_steps: int
    n_branches: int
    n_shards: int
    n_files: int
    shard_bytes: int
    cheaper: tuple[Cheaper, ...]

    def __str__(self) -> str:
        images = "without the images" if self.disk.images is None else f"images {human_bytes(self.disk.images)}"
        rate = self.total_bytes / max(self.seconds, 1e-9)
        rows = list(self.bytes_by_site.items())
        rows.append(("records, metadata, samples", self.disk.records + self.disk.metadata + self.disk.samples))
        width = max(len(name) for name, _ in rows)
        host = "unknown" if self.host_peak_bytes is None else human_bytes(self.host_peak_bytes)
        device = "" if self.device_peak_bytes is None else f", of the device {human_bytes(self.device_peak_bytes)}"
        lines = [
            f"{self.n_samples} samples x {self.n_steps} steps x {self.n_branches} branches: "
            f"{human_bytes(self.total_bytes)} in {self.n_files} files ({images}), about {human_seconds(self.seconds)}",
            *(f"  {name:<{width}}  {human_bytes(size)}" for name, size in rows),
            f"memory at most {host}{device}; the disk takes {human_bytes(rate)} a second",
        ]
        if self.cheaper:
            options = "; ".join(f"{c.setting} {human_bytes(c.total_bytes)}" for c in self.cheaper)
            lines.append(f"cheaper, each alone: {options}")
        return "\n".join(lines)


def estimate(pipe: Pipeline, plan: CapturePlan | ImagePlan, out: str | Place | None = None) -> Estimate:
    """Size, memory and time of a collection, from a trial batch; nothing is written.

    Args:
        pipe: the plan's model.
        plan: what would be collected.
        out: where the store would lie. If given, a collection that does not fit its disk, or the memory, is refused.

    Raises:
        UnknownSite, UnsupportedSite, InvalidPlan: as ``collect`` would.
        NotEnoughSpace: the store does not fit the disk of ``out``; cheaper settings are named with their sizes.
        NotEnoughMemory: shards or the trial batch do not fit the memory.
    """
    source = open_source(pipe, plan)
    if out is not None:
        check_fits(source, disk_use(source), place(out))  # before the trial, which takes its time
    batch = min(plan.batch_size, spec_of(source).samples_per_shard, plan.n_samples)
    before, peak_before = current_memory(), peak_memory()
    device = _device(source)
    if device is not None:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        trial = source.trial(batch)
    except torch.OutOfMemoryError as error:
        raise NotEnoughMemory(
            f"estimate: a batch of {batch} samples does not fit the memory of {device}; choose "
            f"batch_size={max(1, batch // 2)}."
        ) from error
    images = 0.0 if trial.images is None else float(np.mean([len(png_bytes(image)) for image in trial.images]))
    per_sample = images + trial.other_bytes
    n_image_files = plan.n_samples * (trial.images is not None) + source.n_extra_files
    use = disk_use(source, image_bytes=per_sample, n_image_files=n_image_files)
    spec = spec_of(source)
    if out is not None:
        check_fits(source, use, place(out))
    host = None
    if before is not None and peak_before is not None:
        # What the batch needs is seen as a new peak, or lies below an earlier one, which then bounds it.
        host = max(peak_memory() or 0, before) + buffer_bytes(spec, plan)
    return Estimate(
        bytes_by_site=use.by_site,
        disk=use,
        total_bytes=use.total,
        seconds=trial.seconds * plan.n_samples / batch,
        host_peak_bytes=host,
        device_peak_bytes=None if device is None else torch.cuda.max_memory_allocated(device),
        n_samples=spec.n_samples,
        n_steps=spec.n_steps,
        n_branches=len(spec.branches),
        n_shards=spec.n_shards,
        n_files=use.n_files,
        shard_bytes=spec.shard_bytes(),
        cheaper=tuple(cheaper_settings(source, use.total - spec.n_bytes)),
    )


def _device(source: Source) -> torch.device | None:
    device = next(denoiser(source.pipe)[1].parameters()).device
    return device if device.type == "cuda" else None
