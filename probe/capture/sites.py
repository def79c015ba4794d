"""Sites: named tensors of a model, ``module path : port``, for example ``unet.up_blocks.1.attentions.1:out``.

Ports: ``in`` and ``out`` are the module's input and output map, ``delta`` is out - in (what a residual block adds).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from probe.errors import InvalidRequest, UnknownSite
from probe.model.generate import model_label
from probe.model.pipeline import Pipeline
from probe.model.steps import denoiser

PORTS = ("in", "out", "delta")
EDIT_PORTS = ("probs", "prompt", "weight", "x_t", "eps", "x0", "noise")
"""What interventions reach besides: see ``probe/interventions/places.py``."""


@dataclass(frozen=True, order=True)
class Site:
    """A named tensor.

    Attributes:
        path: dotted module path from the pipeline, beginning with the component (``unet``, ``transformer``).
        port: ``in``, ``out`` or ``delta``; for interventions also one of ``EDIT_PORTS``.
    """

    path: str
    port: str = "out"

    def __post_init__(self) -> None:
        if self.port not in PORTS + EDIT_PORTS:
            known = ", ".join(PORTS + EDIT_PORTS)
            raise UnknownSite(f"site {self.path!r}: there is no port {self.port!r}; expected one of {known}.")
        if not self.path or not all(self.path.split(".")):
            raise UnknownSite(f"site: {self.path!r} is not a module path such as 'unet.mid_block'.")

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read ``path`` or ``path:port``; the port defaults to ``out``."""
        path, colon, port = text.strip().partition(":")
        return cls(path, port if colon else "out")

    def __str__(self) -> str:
        return f"{self.path}:{self.port}"

    def module(self, pipe: Pipeline) -> torch.nn.Module:
        """The module of this site.

        Raises:
            UnknownSite: the pipeline has no such module; near matches are listed.
        """
        part, _, rest = self.path.partition(".")
        component = getattr(pipe, part, None)
        if isinstance(component, torch.nn.Module):
            if not rest:
                return component
            found = dict(component.named_modules()).get(rest)
            if found is not None:
                return found
        raise _unknown(pipe, self.path)


def resolve_sites(pipe: Pipeline, names: str | Site | Iterable[str | Site]) -> list[Site]:
    """Full sites for names as people type them.

    The denoiser's name and ``:out`` are filled in (``mid_block`` means ``unet.mid_block:out`` on a Stable
    Diffusion pipeline), and ``*`` matches within one part of the path (``up_blocks.*.attentions.*``).

    Args:
        pipe: the pipeline that the names refer to.
        names: one name or several.

    Returns:
        Sites in the order given, without repetitions.

    Raises:
        UnknownSite: no such module or port; near matches are listed.
        InvalidRequest: no name was given, or a site lies outside the denoiser, where there are no steps, or its port
            can be edited only.
    """
    given = [names] if isinstance(names, str | Site) else list(names)
    if not given:
        raise InvalidRequest("resolve_sites: no site was given; name at least one, such as 'mid_block'.")
    root, _ = denoiser(pipe)
    found: dict[Site, None] = {}
    for name in given:
        site = name if isinstance(name, Site) else Site.parse(name)
        if site.port in EDIT_PORTS:
            raise InvalidRequest(f"site {site}: this port can be edited, but not recorded; ports: {', '.join(PORTS)}.")
        path = _complete(pipe, root, site.path)
        for match in _expand(pipe, path):
            resolved = Site(match, site.port)
            resolved.module(pipe)
            if match.split(".")[0] != root:
                raise InvalidRequest(
                    f"site {resolved}: it lies outside the denoiser {root!r}, so it has no denoising steps. "
                    f"Choose a module of {root!r}."
                )
            found[resolved] = None
    return list(found)


def _complete(pipe: Pipeline, root: str, path: str) -> str:
    """Prefix the denoiser's name unless the path begins with a component."""
    first = path.split(".")[0]
    return path if isinstance(getattr(pipe, first, None), torch.nn.Module) else f"{root}.{path}"


def _expand(pipe: Pipeline, path: str) -> list[str]:
    if "*" not in path:
        return [path]
    pattern = path.split(".")
    matches = [
        known
        for known in _paths(pipe)
        if known.count(".") + 1 == len(pattern)
        and all(fnmatchcase(part, wanted) for part, wanted in zip(known.split("."), pattern, strict=True))
    ]
    if not matches:
        raise _unknown(pipe, path)
    return matches


def _paths(pipe: Pipeline) -> list[str]:
    root, module = denoiser(pipe)
    return [root] + [f"{root}.{name}" for name, _ in module.named_modules() if name]


def _unknown(pipe: Pipeline, path: str) -> UnknownSite:
    known = _paths(pipe)
    near = difflib.get_close_matches(path, known, n=5, cutoff=0.6)
    if not near:
        near = [name for name in known if name.count(".") == 1 and name.split(".")[1].endswith(("block", "blocks"))]
    return UnknownSite(
        f"{model_label(pipe)} has no module {path!r}. Near matches: "
        f"{', '.join(near) or ', '.join(known[:8])}. "
        "All of them: denoscope sites --model FOLDER --every."
    )
