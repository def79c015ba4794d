"""The samples of a ``CapturePlan``: images drawn by the pipeline's own ``__call__``."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from activations_store.storage.objects import Place
from probe.capture.plan import CapturePlan
from probe.capture.recorder import Receive, Recorder
from probe.capture.shapes import observe_generation
from probe.capture.sites import Site
from probe.capture.source import Trial
from probe.model.generate import run_batch
from probe.model.pipeline import Pipeline

_FEW, _MORE = 2, 4
"""Steps of the two timed generations."""


class Generation:
    """Samples of a ``CapturePlan``. Made with one denoiser call on one prompt.

    Args:
        pipe: the plan's model.
        plan: what to generate.
        images: overrides ``plan.images``.

    Raises:
        UnknownSite, UnsupportedSite, InvalidPlan: the plan does not fit the pipeline.
    """

    def __init__(self, pipe: Pipeline, plan: CapturePlan, *, images: bool | None = None) -> None:
        self.pipe, self._plan = pipe, plan
        self.observed = observe_generation(pipe, plan)
        self.images = plan.images if images is None else images
        self.n_extra_files = 0

    @property
    def plan(self) -> CapturePlan:
        return self._plan

    @property
    def steps(self) -> tuple[int, ...]:
        return self.plan.kept_of(len(self.observed.timesteps))

    def run(self, receive: Receive, batch: range) -> np.ndarray | None:
        # Without images nothing after the last recorded site of the last recorded step is needed.
        return self._generate(receive, batch, self.plan.steps, stop_steps=() if self.images else self.steps[-1:])

    def save_extras(self, out: Place, batch: range) -> None: ...

    def trial(self, n: int) -> Trial:
        """Time two short generations: their difference is the cost of a step, the rest that of a batch.

        A plan of few steps is run once as it is.
        """
        batch = range(min(n, self.plan.n_samples))
        if self.plan.steps <= _MORE:
            seconds, images = self._timed(batch, self.plan.steps)
            return Trial(seconds, images)
        few, _ = self._timed(batch, _FEW)
        more, images = self._timed(batch, _MORE)
        a_step = max(more - few, 0.0) / (_MORE - _FEW)
        n_steps = self.plan.steps if self.images else self.steps[-1] + 1
        return Trial(max(few - _FEW * a_step, 0.0) + n_steps * a_step, images)

    def _timed(self, batch: range, steps: int) -> tuple[float, np.ndarray | None]:
        layouts = self.observed.layouts(self.plan)

        def receive(
            site: Site, step: int, branches: tuple[str, ...], rows: torch.Tensor, grid: tuple[int, int] | None
        ) -> None:
            layouts[site].reduce(rows).to("cpu", torch.float16)  # what recording costs, without keeping it

        start = time.perf_counter()
        images = self._generate(receive, batch, steps, stop_steps=() if self.images else (steps - 1,))
        return time.perf_counter() - start, images

    def _generate(
        self, receive: Receive, batch: range, steps: int, stop_steps: Sequence[int] = ()
    ) -> np.ndarray | None:
        plan, chosen = self.plan, slice(batch.start, batch.stop)
        with Recorder(
            self.pipe, list(self.observed.shapes), receive, stop_steps=stop_steps, stop_branches=self.observed.branches
        ):
            return run_batch(self.pipe, plan.prompts[chosen], plan.seeds[chosen], steps=steps, guidance=plan.guidance)
        return None  # the recorder stopped the generation
