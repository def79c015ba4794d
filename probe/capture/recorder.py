"""Hooks that hand every site's tensor to a function, at every denoising step, and are always removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        """``rows`` is (len(branches) * B, tokens, channels), branch by branch, on the model's device and
        dtype; the
        tensor belongs to the running model and must not be changed. ``grid`` is (height, width) if tokens are
        spatial."""


class Recorder:
    """Context manager: while it is open, every site's tensor of every denoiser call goes to ``receive``.

    Recorders and interventions nest: what is opened first sees the model's tensor first, so a recorder opened
        inside
    ``intervene`` sees edited values.
    """

    def __init__(self, pipe: Pipeline, sites: Sequence[Site], receive: Receive) -> None:
        self._pipe = pipe
        self._sites = tuple(sites)
        self._receive = receive
        self._clock = StepClock(pipe)
        self._handles: list[Any] = []

    def __enter__(self) -> Recorder:
        modules = [
            (site, site.module(self._pipe)) for site in self._sites
        ]  # unknown sites raise before any hook exists
        self._clock.__enter__()
        for site, module in modules:
            if site.port == "in":
                self._handles.append(module.register_forward_pre_hook(self._on_input(site), with_kwargs=True))
            else:
                self._handles.append(module.register_forward_hook(self._on_output(site), with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._clock.__exit__()

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
