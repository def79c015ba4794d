"""Hooks that hand every site's tensor to a function, at every denoising step, and are always removed.

A recorder can also end the work early: the hook of the last site to fire raises a private exception, which the
recorder itself catches, so no module behind that site runs. Which site is last needs no knowledge of the model: it is
the one that completes the set.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from probe.capture.sites import Site
from probe.capture.tensors import delta, find_input, find_output, to_rows
from probe.model.pipeline import Pipeline
from probe.model.steps import StepClock


class Receive(Protocol):
    """Takes one tensor of one denoiser call."""

    def __call__(
        self,
        site: Site,
        step: int,
        branches: tuple[str, ...],
        rows: torch.Tensor,
        grid: tuple[int, int] | None,
    ) -> None:
        """``rows`` is (len(branches) * B, tokens, channels), branch by branch, on the model's device and dtype; the
        tensor belongs to the running model and must not be changed. ``grid`` is (height, width) if tokens are
        spatial."""


class Clock(Protocol):
    """Says where the model is. ``StepClock`` follows a running pipeline; ``CallClock`` is set by hand."""

    step: int
    calls: int

    @property
    def branches(self) -> tuple[str, ...]: ...

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: object) -> None: ...


@dataclass
class CallClock:
    """A clock for code that calls the denoiser itself: set ``step``, and add one to ``calls`` before each call.

    Attributes:
        branches: along the batch, see ``probe.model.branch_layout``.
        step: number given to the tensors of the call.
        calls: differs between any two calls.
    """

    branches: tuple[str, ...]
    step: int = -1
    calls: int = 0

    def __enter__(self) -> CallClock:
        return self

    def __exit__(self, *_: object) -> None: ...


class _EverySiteSeen(BaseException):
    """Ends a denoiser call after its deepest recorded site. Not an ``Exception``, so that no model swallows it."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder


class Recorder:
    """Context manager: while it is open, every site's tensor of every denoiser call goes to ``receive``.

    Recorders and interventions nest: what is opened first sees the model's tensor first, so a recorder opened
    inside ``intervene`` sees edited values.

    Args:
        pipe: the pipeline.
        sites: what to record.
        receive: takes the tensors.
        clock: where the model is; follows the pipeline if None.
        stop_steps: at these steps the model is stopped as soon as every site has given its tensor, so nothing
            after the deepest site runs, and execution goes on after the ``with`` block.
        stop_branches: the branches that have to be seen before that; those of the call if none is named.
    """

    def __init__(
        self,
        pipe: Pipeline,
        sites: Sequence[Site],
        receive: Receive,
        *,
        clock: Clock | None = None,
        stop_steps: Collection[int] = (),
        stop_branches: Collection[str] = (),
    ) -> None:
        self._pipe = pipe
        self._sites = tuple(sites)
        self._receive = receive
        self._clock: Clock = StepClock(pipe) if clock is None else clock
        self._stop_steps = frozenset(stop_steps)
        self._stop_branches = frozenset(stop_branches)
        self._began: int | None = None
        self._waiting: set[tuple[Site, str]] = set()
        self._handles: list[Any] = []

    def __enter__(self) -> Recorder:
        # unknown sites raise before any hook exists
        modules = [(site, site.module(self._pipe)) for site in self._sites]
        self._clock.__enter__()
        for site, module in modules:
            if site.port == "in":
                self._handles.append(module.register_forward_pre_hook(self._on_input(site), with_kwargs=True))
            else:
                self._handles.append(module.register_forward_hook(self._on_output(site), with_kwargs=True))
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._clock.__exit__()
        return isinstance(error, _EverySiteSeen) and error.recorder is self

    def _on_input(self, site: Site) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._emit(site, find_input(str(site), args, kwargs).tensor)

        return hook

    def _on_output(self, site: Site) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            out = find_output(str(site), output, args, kwargs).tensor
            if site.port == "delta":
                out = delta(str(site), out, find_input(str(site), args, kwargs).tensor)
            self._emit(site, out)

        return hook

    def _emit(self, site: Site, tensor: torch.Tensor) -> None:
        grid = (int(tensor.shape[2]), int(tensor.shape[3])) if tensor.ndim == 4 else None
        self._receive(site, self._clock.step, self._clock.branches, to_rows(str(site), tensor.detach()), grid)
        if self._clock.step in self._stop_steps:
            self._stop_after(site)

    def _stop_after(self, site: Site) -> None:
        # Branches may have a call each, so what is waited for is that of a step where the branches are known.
        began = self._clock.step if self._stop_branches else self._clock.calls
        if self._began != began or not self._waiting:
            branches = self._stop_branches or self._clock.branches
            self._began, self._waiting = began, {(each, branch) for each in self._sites for branch in branches}
        self._waiting -= {(site, branch) for branch in self._clock.branches}
        if not self._waiting:
            raise _EverySiteSeen(self)
