"""The samples of an ``ImagePlan``: real images, noised or inverted, with one recorded denoiser call at each level.

Where a call's output is not needed, the model is stopped after its deepest recorded site: at every level in ``noise``
mode, at the last one in ``invert`` mode, whose walk needs the other outputs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from activations_store.format.pictures import save_picture
from activations_store.storage.objects import Place
from probe.capture.image_files import load_image, load_mask, png_bytes
from probe.capture.image_plan import ImagePlan
from probe.capture.inversion import inversion_path, invert, to_eps
from probe.capture.noising import Conditioned, add_noise, condition, encode, image_size, noise
from probe.capture.recorder import CallClock, Receive, Recorder
from probe.capture.shapes import Observed, observe_sites
from probe.capture.sites import Site, resolve_sites
from probe.capture.source import Trial
from probe.model.pipeline import Pipeline
from probe.model.schedule import NoiseLevel, noise_levels

MASKS = "masks"


class RealImages:
    """Samples of an ``ImagePlan``. Made with one denoiser call on the first image.

    Args:
        pipe: the plan's model.
        plan: what to record.
        images: overrides ``plan.images``: whether the cropped and scaled images are saved.

    Raises:
        UnknownSite, UnsupportedSite, InvalidPlan: the plan does not fit the pipeline.
        UnsupportedPipeline: real images cannot be brought to this pipeline.
        ImageFileError: the first image cannot be read.
    """

    def __init__(self, pipe: Pipeline, plan: ImagePlan, *, images: bool | None = None) -> None:
        self.pipe, self._plan = pipe, plan
        self.images = plan.images if images is None else images
        self.n_extra_files = sum(1 for mask in plan.masks if mask)
        self._sites = resolve_sites(pipe, plan.sites)
        self._levels = noise_levels(pipe.scheduler, plan.log_snr)  # as the plan: most noise first
        inverted = plan.mode == "invert"
        self._path = inversion_path(pipe.scheduler, plan.inversion_steps, self._levels) if inverted else []
        first = condition(pipe, plan.prompts[:1], plan.guidance)
        self.size = image_size(pipe, first.sample_shape)
        x0 = encode(pipe, self._load(range(1)), first.sample_shape)

        def run(receive: Receive) -> None:
            clock = CallClock(first.branches, step=0)
            # Not stopped early: a site that fires twice has to be noticed.
            with torch.no_grad(), Recorder(pipe, self._sites, receive, clock=clock):
                first(x0, self._levels[0].t)

        shapes, branches = observe_sites(self._sites, run)
        timesteps = tuple(level.t for level in self._levels)
        self.observed = Observed(shapes, branches, timesteps, tuple(level.log_snr for level in self._levels))

    @property
    def plan(self) -> ImagePlan:
        return self._plan

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(range(len(self._levels)))

    def run(self, receive: Receive, batch: range) -> np.ndarray | None:
        pixels = self._load(batch)
        model = condition(self.pipe, self.plan.prompts[batch.start : batch.stop], self.plan.guidance)
        x0 = encode(self.pipe, pixels, model.sample_shape)
        with torch.no_grad():
            if self.plan.mode == "noise":
                self._noised(receive, model, x0, self.plan.seeds[batch.start : batch.stop])
            else:
                self._inverted(receive, model, x0)
        return pixels if self.images else None

    def save_extras(self, out: Place, batch: range) -> None:
        for sample in batch:
            mask = self.plan.masks[sample]
            if mask:
                save_picture(out, MASKS, sample, png_bytes(load_mask(self.plan.folder, mask, self.size)))

    def trial(self, n: int) -> Trial:
        """Time the first n images, all levels."""
        layouts = self.observed.layouts(self.plan)

        def receive(
            site: Site, step: int, branches: tuple[str, ...], rows: torch.Tensor, grid: tuple[int, int] | None
        ) -> None:
            layouts[site].reduce(rows).to("cpu", torch.float16)

        start = time.perf_counter()
        images = self.run(receive, range(min(n, self.plan.n_samples)))
        return Trial(time.perf_counter() - start, images, self._mask_bytes(n))

    def _mask_bytes(self, n: int) -> float:
        """Mean size of a mask file over all samples, from the first n that have one."""
        named = [mask for mask in self.plan.masks if mask]
        sizes = [len(png_bytes(load_mask(self.plan.folder, mask, self.size))) for mask in named[:n]]
        return float(np.mean(sizes)) * len(named) / self.plan.n_samples if sizes else 0.0

    def _load(self, batch: range) -> np.ndarray:
        plan = self.plan
        return np.stack([load_image(plan.folder, plan.files[i], plan.sha256[i], self.size) for i in batch])

    def _noised(self, receive: Receive, model: Conditioned, x0: torch.Tensor, seeds: Sequence[int]) -> None:
        n = noise(seeds, model.sample_shape, x0.device)
        for step, level in enumerate(self._levels):
            clock = CallClock(model.branches, step=step)
            with Recorder(self.pipe, self._sites, receive, clock=clock, stop_steps=(step,)):
                model(add_noise(x0, n, level), level.t)

    def _inverted(self, receive: Receive, model: Conditioned, x0: torch.Tensor) -> None:
        numbers = {level: step for step, level in enumerate(self._levels)}
        clock = CallClock(model.branches)
        on_the_path = False
        cond = model.branches.index("cond")

        def predict(z: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
            # The first call is made at the clean image, which is not at its level.
            clock.step = numbers.get(level, -1) if on_the_path else -1
            clock.calls += 1
            output = model(z, level.t).chunk(len(model.branches))[cond]
            return to_eps(self.pipe.scheduler, output, z, level)

        with Recorder(self.pipe, self._sites, receive, clock=clock, stop_steps=(0,)):
            level, z = self._path[0], x0
            for level, z in invert(x0, self._path, predict):  # noqa: B007
                on_the_path = True
            predict(z, level)  # the path ends at the noisiest level, which the walk itself does not call
