"""Points of a model at which Jacobians are taken, and the Jacobians between its places.

A point is a noisy sample z at a level, with a condition. ``trajectory`` records those of one generation. Places are
``sampler:x_t`` (z itself), ``sampler:eps``, ``sampler:x0`` (the posterior mean), and, where the model is a pipeline,
any site of its denoiser, such as ``unet.mid_block:out``. With a site h as the source, f(d) = target with h replaced by
h + d, at d = 0; with z as the source, f(z) = target. ``added`` reaches one place more, ``unet:prompt``, the text
embedding (B, tokens, d) that the denoiser is given.

Points and Jacobians are those of the denoiser under its condition; guidance is no part of it (see ``pipeline_eps``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from probe.capture.recorder import Recorder
from probe.capture.sites import Site, resolve_sites
from probe.capture.tensors import delta, find_input, find_output, replace_input, replace_output
from probe.directions.jacobian import Jacobian
from probe.errors import InvalidDirection
from probe.model.eps_model import Cond, EpsModel, x0_hat
from probe.model.generate import run_batch
from probe.model.pipeline_eps import PipelineEps
from probe.model.schedule import schedule
from probe.model.steps import denoiser

X_T, EPS, X0 = "sampler:x_t", "sampler:eps", "sampler:x0"


@dataclass(frozen=True, eq=False)
class Point:
    """A noisy sample.

    Attributes:
        z: (1, *sample_shape) in the convention of ``EpsModel``.
        log_snr: its level, finite.
        cond: its condition.
        step: number of the denoising step it was met at, 0 = most noise.
        timestep: the scheduler's timestep, if it came from one.
    """

    z: torch.Tensor
    log_snr: float
    cond: Cond = None
    step: int = 0
    timestep: int | None = None

    def record(self) -> dict[str, Any]:
        """JSON values that name the point: level, condition, step and a hash of z."""
        data = self.z.detach().cpu().contiguous().numpy().tobytes()
        return {
            "z_sha256": hashlib.sha256(data).hexdigest(),
            "log_snr": float(self.log_snr),
            "cond": None if self.cond is None else str(self.cond),
            "step": self.step,
            "timestep": self.timestep,
        }


def trajectory(model: PipelineEps, prompt: str, seed: int, *, steps: int, guidance: float = 1.0) -> list[Point]:
    """The points of one generation, one a step. Costs the generation.

    Args:
        model: the pipeline.
        prompt, seed, steps, guidance: of the generation; the points carry the prompt as their condition.

    Returns:
        ``steps`` points; the first may have level -inf (a schedule that starts from pure noise), where x0 has no
        Jacobian: drop it there.
    """
    timesteps, _ = schedule(model.pipe, steps)
    name, _ = denoiser(model.pipe)
    points: list[Point] = []

    def keep(
        site: Site, step: int, branches: tuple[str, ...], rows: torch.Tensor, grid: tuple[int, int] | None
    ) -> None:
        z, level = model.from_model_scale(model.from_rows(rows[-1:]).float(), timesteps[step])
        points.append(Point(z.contiguous(), level, prompt, step, timesteps[step]))

    with Recorder(model.pipe, [Site(name, "in")], keep):
        run_batch(model.pipe, [prompt], [seed], steps=steps, guidance=guidance)
    return points


def jacobian(model: EpsModel, point: Point, source: str = X_T, target: str = X0, *, batch: int = 8) -> Jacobian:
    """The Jacobian between two places of a model at a point.

    Args:
        model: any denoiser; sites other than the sampler's need a ``PipelineEps``.
        point: where.
        source, target: see the module; the source must come before the target.
        batch: directions at a time; memory grows with it.

    Raises:
        UnknownSite: no such site; near matches are listed.
        InvalidDirection: the target does not depend on the source, or the model has no sites.
    """
    if source == X_T and target in (EPS, X0):
        return Jacobian(_read(model, point, target), point.z, batch=batch)
    if not isinstance(model, PipelineEps):
        raise InvalidDirection(
            f"jacobian from {source} to {target}: {type(model).__name__} has no sites inside; use {X_T}, {EPS}, {X0}."
        )
    read = _read(model, point, target) if target in (EPS, X0) else _read_site(model, point, target)
    if source == X_T:
        return Jacobian(read, point.z, batch=batch)
    if source in (EPS, X0):
        raise InvalidDirection(f"jacobian: {source} is what the model computes last; it can only be a target.")
    site = site_of(model, source)
    here = site_value(model, point, source)

    def shifted(d: torch.Tensor) -> torch.Tensor:
        with added(model, site, d):
            return read(point.z.expand(len(d), *point.z.shape[1:]))

    return Jacobian(shifted, torch.zeros_like(here), batch=batch)


def site_of(model: PipelineEps, name: str) -> Site:
    """The one site that a name as people type it means."""
    if Site.parse(name).port == "prompt":
        return Site(denoiser(model.pipe)[0], "prompt")
    found = resolve_sites(model.pipe, name)
    if len(found) != 1:
        raise InvalidDirection(f"site {name!r} names {len(found)} sites; give one.")
    return found[0]


def full_name(model: EpsModel, place: str) -> str:
    """A place's full name: ``mid_block`` becomes ``unet.mid_block:out`` for a Stable Diffusion pipeline."""
    return str(site_of(model, place)) if isinstance(model, PipelineEps) and place not in (X_T, EPS, X0) else place


@contextmanager
def added(model: PipelineEps, site: Site, d: torch.Tensor) -> Iterator[None]:
    """Within the block, d (B, ...) is added to a site in every call of the denoiser."""

    def before(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if site.port == "prompt":  # PipelineEps names every argument
            text = kwargs["encoder_hidden_states"]
            return args, kwargs | {"encoder_hidden_states": text + d.to(text.dtype)}
        slot = find_input(str(site), args, kwargs)
        return replace_input(slot, slot.tensor + d.to(slot.tensor.dtype), args, kwargs)

    def after(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        slot = find_output(str(site), output, args, kwargs)
        return replace_output(slot, slot.tensor + d.to(slot.tensor.dtype), output)

    module = site.module(model.pipe)
    if site.port in ("in", "prompt"):
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(after, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _read(model: EpsModel, point: Point, target: str) -> Callable[[torch.Tensor], torch.Tensor]:
    if target == EPS:
        return lambda z: model.eps(z, point.log_snr, point.cond)
    return lambda z: x0_hat(model, z, point.log_snr, point.cond)


def _read_site(model: PipelineEps, point: Point, target: str) -> Callable[[torch.Tensor], torch.Tensor]:
    site = site_of(model, target)

    def read(z: torch.Tensor) -> torch.Tensor:
        found: list[torch.Tensor] = []

        def before(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(find_input(str(site), args, kwargs).tensor)

        def after(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            out = find_output(str(site), output, args, kwargs).tensor
            inp = find_input(str(site), args, kwargs).tensor if site.port == "delta" else None
            found.append(out if inp is None else delta(str(site), out, inp))

        module = site.module(model.pipe)
        if site.port == "in":
            handle = module.register_forward_pre_hook(before, with_kwargs=True)
        else:
            handle = module.register_forward_hook(after, with_kwargs=True)
        try:
            model.eps(z, point.log_snr, point.cond)
        finally:
            handle.remove()
        if len(found) != 1:
            raise InvalidDirection(f"site {site}: it fires {len(found)} times a call; choose a module inside it.")
        return found[0].to(z.dtype)

    return read


@torch.no_grad()
def site_value(model: PipelineEps, point: Point, site: str) -> torch.Tensor:
    """What a site holds at a point, (1, ...)."""
    return _read_site(model, point, site)(point.z)
