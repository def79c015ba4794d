"""Where a running pipeline is, as edits need to know it.

``part`` says which edits are on: the pipeline's own denoiser call is the one whose output goes into the x0 term, so
edits injected into ``x0`` and into ``both`` are on; a second call, made for the direction term, has those injected
into ``direction`` and ``both``; and calls of our own on the unedited model (``guide``) have none.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from probe.errors import InvalidIntervention, UnsupportedPipeline
from probe.interventions.intervention import Intervention
from probe.interventions.ops import Moment
from probe.model.override import override
from probe.model.pipeline import Pipeline
from probe.model.schedule import schedule_of
from probe.model.steps import StepClock

NO_STEP = Moment(-1, float("nan"))


class EditClock:
    """Moment, branches and part of a running pipeline; ``on_call`` runs before every denoiser call."""

    def __init__(self, pipe: Pipeline) -> None:
        self.part = "x0"
        self.on_call: list[Callable[[], None]] = []
        self._pipe = pipe
        self._steps = StepClock(pipe, self._called)
        self._timesteps: torch.Tensor | None = None
        self._log_snr: tuple[float, ...] = ()

    def __enter__(self) -> EditClock:
        self._steps.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._steps.__exit__()

    @property
    def branches(self) -> tuple[str, ...]:
        """Guidance branches along the denoiser's batch."""
        return self._steps.branches

    @property
    def all_branches(self) -> tuple[str, ...]:
        """Guidance branches of the generation; more than ``branches`` where each has a call of its own."""
        return self._steps.all_branches

    @property
    def moment(self) -> Moment:
        """Step, timestep and log-SNR."""
        step = self._steps.step
        return Moment(step, self._steps.t, self._log_snr[step] if self._log_snr else float("nan"))

    def strength(self, item: Intervention) -> float:
        """Strength of an edit now; 0 where it does not apply."""
        on = self.part != "none" and item.inject in ("both", self.part)
        return item.strength_at(self.moment) if on else 0.0

    @contextmanager
    def in_part(self, part: str) -> Iterator[None]:
        """Denoiser calls inside belong to another part."""
        before, self.part = self.part, part
        self._steps.paused = part != "x0"
        try:
            for notify in self.on_call:
                notify()
            yield
        finally:
            self.part, self._steps.paused = before, before != "x0"
            for notify in self.on_call:
                notify()

    def _called(self) -> None:
        scheduler: Any = self._pipe.scheduler
        if self._timesteps is not scheduler.timesteps:
            self._timesteps = scheduler.timesteps
            try:
                self._log_snr = schedule_of(scheduler)[1]
            except UnsupportedPipeline:
                self._log_snr = ()  # edits that go by it say so when they meet it
        for notify in self.on_call:
            notify()


class TextClock:
    """Which guidance branch a text encoder is encoding for.

    Pipelines encode the prompt first and then the negative prompt, inside one call of ``encode_prompt``. So the calls
    of an encoder are counted within that call, which begins anew whatever happened before.
    """

    def __init__(self, pipe: Pipeline, items: list[Intervention]) -> None:
        self._pipe = pipe
        self._items = items
        self._calls: dict[torch.nn.Module, int] | None = None
        self.branch = ""

    def __enter__(self) -> TextClock:
        encode = getattr(self._pipe, "encode_prompt", None)
        if encode is None or "do_classifier_free_guidance" not in inspect.signature(encode).parameters:
            raise UnsupportedPipeline(
                f"{type(self._pipe).__name__} does not encode prompt and negative prompt in one encode_prompt, so its "
                "guidance branches cannot be told apart there. Edit what the denoiser is given ('prompt')."
            )
        signature = inspect.signature(encode)

        @functools.wraps(encode)
        def counted(*args: Any, **kwargs: Any) -> Any:
            call = signature.bind(*args, **kwargs)
            call.apply_defaults()
            check_branches(
                self._items, ("uncond", "cond") if call.arguments["do_classifier_free_guidance"] else ("cond",)
            )
            before, self._calls = self._calls, {}
            try:
                return encode(*args, **kwargs)
            finally:
                self._calls = before

        self._override = override(self._pipe, "encode_prompt", counted)
        self._override.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._override.__exit__(None, None, None)

    def tick(self, module: torch.nn.Module, *_: Any) -> None:
        """Pre-hook of the text encoders."""
        if self._calls is None:
            self.branch = "cond"  # somebody encodes a text by hand
            return
        self._calls[module] = self._calls.get(module, 0) + 1
        self.branch = "cond" if self._calls[module] == 1 else "uncond"


def check_branches(items: list[Intervention], branches: tuple[str, ...]) -> None:
    """Refuse a branch policy that this generation has nothing for."""
    for item in items:
        if not any(item.sign(branch) for branch in branches):
            raise InvalidIntervention(
                f"{item.where}: branch policy {item.branch!r} has nothing to edit, because this generation computes "
                f"{'+'.join(branches)} only. Raise the guidance scale above 1, or choose another policy."
            )
