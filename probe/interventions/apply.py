"""Put interventions into a running pipeline, and take them out again whatever happens.

One hook a module and direction applies its interventions in declared order. The step is the scheduler's
(``StepClock``), so nothing has to be reset between generations, also not after one that failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F

from probe.capture.sites import Site, resolve_sites
from probe.capture.tensors import (
    delta,
    find_input,
    find_output,
    from_rows,
    replace_input,
    replace_output,
    to_rows,
)
from probe.errors import ConflictingInterventions, InvalidIntervention
from probe.interventions.intervention import Intervention
from probe.interventions.ops import StepContext, Weight, add_change
from probe.model.pipeline import Pipeline
from probe.model.steps import StepClock

_Placed = tuple[Site, Intervention]


@contextmanager
def intervene(pipe: Pipeline, interventions: Intervention | Sequence[Intervention]) -> Iterator[None]:
    """Apply interventions to every generation inside the ``with`` block; the hooks are always removed.

    Interventions on one module apply in the order given. Blocks may be nested; the outer block's edits come
    first.

    Raises:
        UnknownSite: a site does not exist.
        ConflictingInterventions: two edits on one site would overwrite each other.
        InvalidIntervention: an edit does not fit its site; raised by the generation that meets it.
    """
    given = [interventions] if isinstance(interventions, Intervention) else list(interventions)
    placed = [(_resolve(pipe, item.where), item) for item in given]
    _refuse_clashes(placed)
    by_module: dict[torch.nn.Module, list[_Placed]] = {}
    for site, item in placed:
        by_module.setdefault(site.module(pipe), []).append((site, item))
    with ExitStack() as stack:
        clock = stack.enter_context(StepClock(pipe))
        for module, items in by_module.items():
            before = [(site, item) for site, item in items if site.port == "in"]
            after = [(site, item) for site, item in items if site.port != "in"]
            if before:
                stack.callback(module.register_forward_pre_hook(_input_hook(before, clock), with_kwargs=True).remove)
            if after:
                stack.callback(module.register_forward_hook(_output_hook(after, clock), with_kwargs=True).remove)
        yield


def _resolve(pipe: Pipeline, site: Site) -> Site:
    found = resolve_sites(pipe, site)
    if len(found) != 1:
        raise InvalidIntervention(f"intervene: {site} names {len(found)} sites; an intervention has one.")
    return found[0]


def _refuse_clashes(placed: Sequence[_Placed]) -> None:
    for (site, first), (other, second) in combinations(placed, 2):
        reason = first.op.clash(second.op) if site == other else None
        if reason is not None:
            raise ConflictingInterventions(
                f"intervene: two interventions at {site} ({first.op.kind}, {second.op.kind}) cannot be "
                f"combined: {reason}. "
                "Keep one of them."
            )


def _input_hook(items: Sequence[_Placed], clock: StepClock) -> Callable[..., Any]:
    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for site, item in items:
            if not item.active_at(clock.step):
                continue
            slot = find_input(str(site), args, kwargs)
            edited = _edit(slot.tensor, site, item, clock)
            if edited is not slot.tensor:
                args, kwargs = replace_input(slot, edited, args, kwargs)
        return args, kwargs

    return hook


def _output_hook(items: Sequence[_Placed], clock: StepClock) -> Callable[..., Any]:
    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        for site, item in items:
            if not item.active_at(clock.step):
                continue
            slot = find_output(str(site), output, args, kwargs)
            if site.port == "delta":
                added = delta(str(site), slot.tensor, find_input(str(site), args, kwargs).tensor)
                edited_delta = _edit(added, site, item, clock)
                if edited_delta is added:
                    continue
                # out' = in + delta', written as a change of out, so that cells whose delta stays keep their
                # exact value
                edited = add_change(slot.tensor, edited_delta - added, 1.0)
            else:
                edited = _edit(slot.tensor, site, item, clock)
            if edited is not slot.tensor:
                output = replace_output(slot, edited, output)
        return output

    return hook


def _edit(x: torch.Tensor, site: Site, item: Intervention, clock: StepClock) -> torch.Tensor:
    """The edited tensor, or x itself if nothing changes."""
    signs = [item.sign(branch) for branch in clock.branches]
    if not any(signs):
        raise InvalidIntervention(
            f"{site}: branch policy {item.branch!r} has nothing to edit, because this generation computes "
            f"{'+'.join(clock.branches)} only. Raise the guidance scale above 1, or choose another policy."
        )
    rows = to_rows(str(site), x)
    if rows.shape[0] % len(signs):
        raise InvalidIntervention(f"{site}: batch {rows.shape[0]} does not divide into {'+'.join(clock.branches)}.")
    context = StepContext(str(site), clock.step, clock.t)
    weight = _weight(item, rows, x, site)
    with torch.no_grad():
        if all(sign == 1.0 for sign in signs):
            edited = item.op.apply(rows, weight, context)
            return x if edited is rows else from_rows(edited, x)
        parts = rows.chunk(len(signs))
        new = [
            item.op.apply(part, weight * sign, context) if sign else part
            for part, sign in zip(parts, signs, strict=True)
        ]
        if all(a is b for a, b in zip(new, parts, strict=True)):
            return x
        return from_rows(torch.cat(new), x)


def _weight(item: Intervention, rows: torch.Tensor, x: torch.Tensor, site: Site) -> Weight:
    """Strength times mask: a number, or (tokens, 1)."""
    if item.mask is None:
        return item.strength
    mask = torch.as_tensor(item.mask)
    if mask.ndim == 2:
        if x.ndim != 4:
            raise InvalidIntervention(
                f"{site}: the mask is a picture of {tuple(mask.shape)}, but this site has {rows.shape[1]} "
                "tokens without a "
                "grid; give a mask of (tokens,)."
            )
        if mask.shape != x.shape[2:]:
            mode = "area" if mask.shape[0] >= x.shape[2] else "nearest"
            mask = F.interpolate(mask[None, None], size=tuple(x.shape[2:]), mode=mode)[0, 0]
        mask = mask.flatten()
    if len(mask) != rows.shape[1]:
        raise InvalidIntervention(f"{site}: the mask has {len(mask)} cells, the site {rows.shape[1]} tokens.")
    return item.strength * mask.to(rows.device)[:, None]
