"""Put interventions into a running pipeline, and take them out again whatever happens.

One hook a module and direction applies its interventions in declared order. The step is the scheduler's
(``EditClock``), so nothing has to be reset between generations, also not after one that failed. ``places.py`` lists
the kinds of place; attention maps, weights and the sampler have a file each.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import combinations
from typing import Any

import torch

from probe.capture.tensors import Slot, delta, find_input, find_output, replace_input, replace_output
from probe.errors import ConflictingInterventions, InvalidIntervention
from probe.interventions.attention import AttentionEdits
from probe.interventions.clock import NO_STEP, EditClock, TextClock, check_branches
from probe.interventions.edit import edit
from probe.interventions.intervention import Intervention
from probe.interventions.ops import add_change
from probe.interventions.places import SAMPLER, Placed, place
from probe.interventions.sampler import SamplerEdits
from probe.interventions.weights import WeightEdits
from probe.model.pipeline import Pipeline

Change = Callable[[Placed, torch.Tensor], torch.Tensor]
"""Applies one edit where it is met; returns the tensor itself if it changes nothing or does not apply now."""
Active = Callable[[Placed], bool]
"""Whether an edit applies now."""
_HOOKED = ("denoiser", "probs", "prompt", "text")


@contextmanager
def intervene(pipe: Pipeline, interventions: Intervention | Sequence[Intervention]) -> Iterator[None]:
    """Apply interventions to every generation inside the ``with`` block; everything is put back at its end.

    Interventions at one place apply in the order given. Blocks may be nested: at modules the outer block's edits come
    first, at the sampler the inner block's.
    With ``inject`` other than ``both``, or ``guide``, the denoiser is called more than once a step: a recorder that is
    open at the same time sees those calls too.

    Raises:
        UnknownSite: a site does not exist.
        ConflictingInterventions: two edits at one site would overwrite each other.
        UnsupportedPipeline: the pipeline or its sampler lacks what an edit needs.
        InvalidIntervention: an edit does not fit its site; raised by the generation that meets it, if it depends on
            shapes.
    """
    given = [interventions] if isinstance(interventions, Intervention) else list(interventions)
    placed = [place(pipe, item) for item in given]
    refuse_clashes(placed)
    with ExitStack() as stack:
        clock = stack.enter_context(EditClock(pipe))
        if any(where.kind == SAMPLER or where.item.inject != "both" for where in placed):
            sampler = [where for where in placed if where.kind == SAMPLER]
            stack.enter_context(SamplerEdits(pipe, clock, sampler, [where.item for where in placed]))
        texts = [where for where in placed if where.kind == "text"]
        text_clock = stack.enter_context(TextClock(pipe, [t.item for t in texts])) if texts else None

        def change(where: Placed, x: torch.Tensor) -> torch.Tensor:
            if where.kind == "text" and text_clock is not None:
                branches, moment, strength = (text_clock.branch,), NO_STEP, where.item.strength_at(NO_STEP)
                return edit(x, where, strength, branches, moment) if where.item.sign(text_clock.branch) else x
            strength = clock.strength(where.item)
            if strength and len(clock.branches) < len(clock.all_branches):
                check_branches([where.item], clock.all_branches)
                if not any(where.item.sign(branch) for branch in clock.branches):
                    return x  # this call is of the other branch
            return edit(x, where, strength, clock.branches, clock.moment) if strength else x

        for part in dict.fromkeys(where.site.path.split(".")[0] for where in texts):
            encoder = getattr(pipe, part)
            if text_clock is not None:
                stack.callback(encoder.register_forward_pre_hook(text_clock.tick).remove)
        for module, where in _by_module(pipe, placed).items():
            _hook(stack, module, where, change, lambda where: bool(clock.strength(where.item)))
        weights = [where for where in placed if where.kind == "weight"]
        if weights:
            stack.enter_context(WeightEdits(pipe, clock, weights))
        yield


def refuse_clashes(placed: Sequence[Placed]) -> None:
    """Refuse two edits that would overwrite each other at the same cells, steps and branches."""
    for first, second in combinations(placed, 2):
        if first.site != second.site or not first.item.meets(second.item):
            continue
        reason = first.item.op.clash(second.item.op)
        if reason is not None:
            raise ConflictingInterventions(
                f"intervene: two interventions at {first.site} ({first.item.op.kind}, {second.item.op.kind}) cannot be "
                f"combined: {reason}. Keep one of them, or give them different steps, branches or masks."
            )


def _by_module(pipe: Pipeline, placed: Sequence[Placed]) -> dict[torch.nn.Module, list[Placed]]:
    found: dict[torch.nn.Module, list[Placed]] = {}
    for where in placed:
        if where.kind in _HOOKED:
            found.setdefault(where.site.module(pipe), []).append(where)
    return found


def _hook(stack: ExitStack, module: torch.nn.Module, placed: Sequence[Placed], change: Change, active: Active) -> None:
    """Hooks of one module: its input, the prompt it is given, its attention maps, its output."""
    inputs = [where for where in placed if where.site.port in ("in", "prompt")]
    maps = [where for where in placed if where.kind == "probs"]
    outputs = [where for where in placed if where.site.port in ("out", "delta")]
    if inputs:
        stack.callback(module.register_forward_pre_hook(_input_hook(module, inputs, change), with_kwargs=True).remove)
    if maps:
        hook = AttentionEdits(module, maps, change, active)
        stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
    if outputs:
        stack.callback(module.register_forward_hook(_output_hook(outputs, change), with_kwargs=True).remove)


def _input_hook(module: torch.nn.Module, placed: Sequence[Placed], change: Change) -> Callable[..., Any]:
    names = list(inspect.signature(module.forward).parameters)

    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for where in placed:
            slot = (
                _prompt(where, names, args, kwargs)
                if where.kind == "prompt"
                else find_input(str(where.site), args, kwargs)
            )
            edited = change(where, slot.tensor)
            if edited is not slot.tensor:
                args, kwargs = replace_input(slot, edited, args, kwargs)
        return args, kwargs

    return hook


def _prompt(where: Placed, names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Slot:
    """The text embedding among the denoiser's arguments."""
    name = "encoder_hidden_states"
    at = names.index(name) if name in names else len(args)
    key = name if name in kwargs else at
    value = kwargs.get(name) if name in kwargs else args[at] if at < len(args) else None
    if not isinstance(value, torch.Tensor):
        raise InvalidIntervention(f"{where.site}: this denoiser is not given a text embedding ({name}).")
    return Slot(key, value)


def _output_hook(placed: Sequence[Placed], change: Change) -> Callable[..., Any]:
    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        for where in placed:
            slot = find_output(str(where.site), output, args, kwargs)
            if where.site.port == "delta":
                added = delta(str(where.site), slot.tensor, find_input(str(where.site), args, kwargs).tensor)
                edited_delta = change(where, added)
                if edited_delta is added:
                    continue
                # out' = in + delta', written as a change of out, so that cells whose delta stays keep their
                # exact value
                edited = add_change(slot.tensor, edited_delta - added, 1.0)
            else:
                edited = change(where, slot.tensor)
            if edited is not slot.tensor:
                output = replace_output(slot, edited, output)
        return output

    return hook
