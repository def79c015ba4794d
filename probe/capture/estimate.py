"""Size and time of a collection, known before it starts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from probe.capture.plan import CapturePlan
from probe.capture.shapes import store_spec
from probe.model.generate import run_batch
from probe.model.pipeline import Pipeline

_FEW, _MORE = 2, 4  # steps of the two timed batches: their difference is the cost of a step


@dataclass(frozen=True)
class Estimate:
    """What a collection will take.

    Attributes:
        bytes_by_site: bytes of shards for each site.
        total_bytes: bytes of the whole store, without the images.
        seconds: expected wall time on this machine, if nothing else slows it.
        n_samples, n_steps, n_branches: size of the collection.
        n_shards, n_files: files that will be written for the activations.
        shard_bytes: bytes in memory for one shard; up to four are held at a time.
    """

    bytes_by_site: Mapping[str, int]
    total_bytes: int
    seconds: float
    n_samples: int
    n_steps: int
    n_branches: int
    n_shards: int
    n_files: int
    shard_bytes: int

    def __str__(self) -> str:
        width = max(len(site) for site in self.bytes_by_site)
        lines = [
            f"{self.n_samples} samples x {self.n_steps} steps x {self.n_branches} branches: "
            f"{human_bytes(self.total_bytes)} in {self.n_files} files, about {human_seconds(self.seconds)}"
        ]
        lines += [f"  {site:<{width}}  {human_bytes(size)}" for site, size in self.bytes_by_site.items()]
        return "\n".join(lines)


def estimate(pipe: Pipeline, plan: CapturePlan) -> Estimate:
    """Size and time of a collection, from one denoiser call and two short timed batches.

    Raises:
        UnknownSite, UnsupportedSite, InvalidPlan: as ``collect`` would.
    """
    spec = store_spec(pipe, plan)
    first = min(plan.batch_size, spec.samples_per_shard, len(plan.prompts))
    few, more = (_timed(pipe, plan, first, steps) for steps in (_FEW, _MORE))
    a_step = max(more - few, 0.0) / (_MORE - _FEW)
    a_batch = max(few - _FEW * a_step, 0.0) + plan.steps * a_step
    return Estimate(
        bytes_by_site=spec.bytes_by_site(),
        total_bytes=spec.n_bytes,
        seconds=a_batch * len(plan.prompts) / first,
        n_samples=spec.n_samples,
        n_steps=spec.n_steps,
        n_branches=len(spec.branches),
        n_shards=spec.n_shards,
        n_files=spec.n_files,
        shard_bytes=spec.shard_bytes(),
    )


def _timed(pipe: Pipeline, plan: CapturePlan, n: int, steps: int) -> float:
    start = time.perf_counter()
    run_batch(pipe, plan.prompts[:n], plan.seeds[:n], steps=steps, guidance=plan.guidance)
    return time.perf_counter() - start


def human_bytes(n: float) -> str:
    """Such as ``"1.25 GB"`` (decimal units)."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.4g} TB"


def human_seconds(seconds: float) -> str:
    """Such as ``"3 min"``."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
