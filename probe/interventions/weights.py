"""Edit weights for the length of a ``with`` block: closed-form edits, fine-tuned layers, adapters.

A weight (out, in, ...) is seen as rows: one for each output channel, holding its inputs. The module is given an edited
parameter and, at the end, the very object it had before, so nothing has to be computed back. With steps or a schedule
the parameter is exchanged before the denoiser calls at which the strength changes.
"""

from __future__ import annotations

from typing import Any

import torch

from probe.interventions.clock import NO_STEP, EditClock
from probe.interventions.edit import edit
from probe.interventions.places import Placed, has_steps
from probe.model.pipeline import Pipeline


class WeightEdits:
    """Holds edited weights in place while it is open."""

    def __init__(self, pipe: Pipeline, clock: EditClock, placed: list[Placed]) -> None:
        self._clock = clock
        self._by_module: dict[torch.nn.Module, list[Placed]] = {}
        for where in placed:
            self._by_module.setdefault(where.site.module(pipe), []).append(where)
        self._originals: dict[torch.nn.Module, torch.nn.Parameter] = {}
        self._strengths: dict[torch.nn.Module, tuple[float, ...]] = {}

    def __enter__(self) -> WeightEdits:
        try:
            for module, placed in self._by_module.items():
                original: Any = module._parameters["weight"]
                self._originals[module] = original
                if not any(where.item.timed for where in placed):
                    self._set(module, placed, [where.item.strength_at(NO_STEP) for where in placed])
        except BaseException:
            self.__exit__()
            raise
        self._clock.on_call.append(self._update)
        return self

    def __exit__(self, *_: object) -> None:
        for module, original in self._originals.items():
            module._parameters["weight"] = original
        self._originals.clear()
        self._strengths.clear()

    def _update(self) -> None:
        """Before a denoiser call."""
        for module, placed in self._by_module.items():
            if has_steps(placed[0]):
                self._set(module, placed, [self._clock.strength(where.item) for where in placed])

    def _set(self, module: torch.nn.Module, placed: list[Placed], strengths: list[float]) -> None:
        if self._strengths.get(module) == tuple(strengths):
            return
        original = self._originals[module]
        rows = start = original.detach().flatten(1)[None]
        for where, strength in zip(placed, strengths, strict=True):
            if strength:
                rows = edit(rows, where, strength, ("guided",), NO_STEP)
        edited = torch.nn.Parameter(rows[0].reshape(original.shape), requires_grad=False)
        module._parameters["weight"] = original if rows is start else edited
        self._strengths[module] = tuple(strengths)
