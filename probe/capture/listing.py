"""Which sites a model has: the modules of its denoiser that give one map a sample and branch, with their shapes.

Seen in one denoising step of one sample. Modules that run several times in a step, or return what is no map of the
batch (time embeddings, lists of residuals), are no sites and left out.
"""

from __future__ import annotations

from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch

from probe.capture.shapes import SiteShape, first_step
from probe.capture.sites import Site
from probe.capture.tensors import find_output, to_rows
from probe.errors import UnsupportedSite
from probe.model.generate import generation_defaults
from probe.model.pipeline import Pipeline
from probe.model.steps import StepClock, denoiser


class Listed(NamedTuple):
    """A site that can be recorded.

    Attributes:
        site: of port ``out``.
        shape: of one sample at one step and branch.
    """

    site: Site
    shape: SiteShape


def list_sites(pipe: Pipeline, prompt: str = "", *, pattern: str = "*", guidance: float | None = None) -> list[Listed]:
    """The sites of a model in the order in which they run. Costs one denoising step on one sample.

    Args:
        pipe: any pipeline that draws from a prompt.
        prompt: what is drawn; a class number for a model that is conditioned on classes.
        pattern: of module paths without the denoiser's name; ``*`` also matches dots.
        guidance: guidance scale; the model's default if None.
    """
    root, module = denoiser(pipe)
    found: dict[str, tuple[Listed, list[str]]] = {}
    left_out: set[str] = set()
    clock = StepClock(pipe)

    def look(name: str) -> Any:
        def hook(part: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            with suppress(UnsupportedSite):
                tensor = find_output(name, output, args, kwargs).tensor
                rows = to_rows(name, tensor)
                seen = found[name][1] if name in found else []
                if rows.shape[0] == len(clock.branches) and not set(seen) & set(clock.branches):
                    grid = (int(tensor.shape[2]), int(tensor.shape[3])) if tensor.ndim == 4 else None
                    shape = SiteShape(int(rows.shape[1]), int(rows.shape[2]), grid)
                    found[name] = Listed(Site(f"{root}.{name}"), shape), [*seen, *clock.branches]
                    return
            left_out.add(name)

        return hook

    names = {name: part for name, part in module.named_modules() if name and fnmatchcase(name, pattern)}
    handles = []
    with clock:
        try:
            handles = [part.register_forward_hook(look(name), with_kwargs=True) for name, part in names.items()]
            first_step(pipe, prompt, 2, generation_defaults(pipe).guidance if guidance is None else guidance)
        finally:
            for handle in handles:
                handle.remove()
    return [listed for name, (listed, _) in found.items() if name not in left_out]
