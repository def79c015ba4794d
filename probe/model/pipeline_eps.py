"""A diffusers pipeline as an ``EpsModel``: prediction type, schedule, time and dtype are hidden.

The level decides the time. Models that were trained on a grid of timesteps get the time by linear interpolation of
their own log-SNR (a sinusoidal time embedding takes fractions), so that the time and the noise in z agree exactly; at a
grid point it is that timestep, and the call is the one that the pipeline would make. Flow matching is continuous,

    a = 2 log((1 - s) / s),   t = s T,   z_flow = (1 - s) x + s n = z sqrt((1 - s)^2 + s^2)

A condition is a prompt (or the class of a class-conditional model); None is what the pipeline itself runs as its
unconditional branch, which is not always the empty prompt (SDXL zeroes it). Guidance is no part of a denoiser: the
guided noise is no posterior mean, and whoever wants it combines two calls. A model that was distilled to take guidance
as an input (FLUX) is given 1, and None is its empty prompt.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from probe.errors import InvalidRequest, UnsupportedPipeline
from probe.model.conditioning import DenoiserCall, denoiser_call
from probe.model.eps_model import Cond, LogSnr, check_samples, conditions, levels
from probe.model.generate import model_label
from probe.model.pipeline import Pipeline
from probe.model.prediction import Prediction, noise_of, prediction_type

_EDGE = 1e-6


class PipelineEps:
    """``eps(z, log_snr, cond)`` of a loaded pipeline. Making one costs the text encoder once, no denoiser call.

    Args:
        pipe: the pipeline; the timesteps of its scheduler are set anew whenever a condition is met first.

    Raises:
        UnsupportedPipeline: its denoiser takes no plain map, or its training schedule or prediction is unknown.

    Example:
        >>> import torch
        >>> from probe.model import PipelineEps, load_pipeline
        >>> model = PipelineEps(load_pipeline("canvas"))
        >>> z = torch.randn(2, *model.sample_shape)
        >>> model.eps(z, 0.0, ["a red star", None]).shape
        torch.Size([2, 8, 16, 16])
    """

    def __init__(self, pipe: Pipeline) -> None:
        self.pipe = pipe
        self.kind: Prediction = prediction_type(pipe.scheduler)
        self._calls: dict[Any, dict[str, Any]] = {}
        first, self._kept()[None] = self._capture(None)
        self._module, self._sample = first.module, first.sample
        sample, time = first.arguments[first.sample], first.arguments["timestep"]
        self._packing = first.packing
        shape = sample.shape if first.packing is None else first.packing.unpack(sample).shape
        self.sample_shape: tuple[int, ...] = tuple(shape[1:])
        self.device: torch.device = sample.device
        self.dtype = torch.float32
        self._model_dtype: torch.dtype = sample.dtype
        self._time_dtype = time.dtype if isinstance(time, torch.Tensor) else torch.float32
        self._time_scale = first.time_scale
        self._grid = None if self.kind == "flow_prediction" else _grid(pipe.scheduler)
        self.log_snr_range = (
            (-30.0, 30.0) if self._grid is None else (float(self._grid[1][0]), float(self._grid[1][-1]))
        )

    def eps(self, z: torch.Tensor, log_snr: LogSnr, cond: Cond = None) -> torch.Tensor:
        """See ``EpsModel.eps``. Level -inf is pure noise, for models that were trained there."""
        check_samples(self, z)
        a = levels(log_snr, len(z))
        signal, noise, t = (torch.from_numpy(v) for v in self._level(a.numpy()))
        shape = (-1, *(1,) * (z.ndim - 1))
        signal, noise = (v.reshape(shape).to(z.device, z.dtype) for v in (signal, noise))
        vp = (signal**2 + noise**2).sqrt()
        own = z * vp if self._grid is None else z
        whole = bool((t == t.round()).all())
        time = (t * self._time_scale).to(z.device, self._time_dtype if whole else torch.float32)
        arguments = self._arguments(cond, len(z))
        sample = own.to(self._model_dtype) if self._packing is None else self._packing.pack(own.to(self._model_dtype))
        output = self._module(**(arguments | {self._sample: sample, "timestep": time}))
        output = output[0] if isinstance(output, tuple) else output.sample
        output = output if self._packing is None else self._packing.unpack(output)
        output = output[:, : self.sample_shape[0]].to(z.dtype)  # DiT predicts variances behind the noise
        return noise_of(self.kind, output, own, signal, noise)

    def from_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Recorded rows (B, tokens, d) of the denoiser's input as samples (B, *sample_shape)."""
        if self._packing is not None:
            return self._packing.unpack(rows)
        return rows.transpose(1, 2).reshape(-1, *self.sample_shape)

    def from_model_scale(self, x: torch.Tensor, t: float) -> tuple[torch.Tensor, float]:
        """A denoiser's own input at a timestep, such as a recorded ``unet:in``, as (z, log_snr) of this interface.

        Args:
            x: (B, *sample_shape).
            t: the scheduler's timestep.
        """
        if self._grid is None:
            s = t / self.pipe.scheduler.config.num_train_timesteps
            a = 2.0 * (math.log1p(-s) - math.log(s)) if 0.0 < s < 1.0 else math.copysign(math.inf, 0.5 - s)
            return x / math.sqrt((1.0 - s) ** 2 + s**2), a
        times, values, _ = self._grid
        if t > times[0]:  # rescaled schedules end in pure noise
            return x, -math.inf
        return x, float(np.interp(t, times[::-1], values[::-1]))

    def _level(self, a: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(signal, noise, timestep) of levels."""
        low, high = self.log_snr_range
        if self._grid is None:
            s = 1.0 / (1.0 + np.exp(np.clip(a, -60.0, 60.0) / 2.0))
            s = np.where(a == -np.inf, 1.0, s)
            found = (1.0 - s, s, s * self.pipe.scheduler.config.num_train_timesteps)
            pure = True
        else:
            times, values, last = self._grid
            t = np.interp(a, values, times)
            t = np.where(abs(t - t.round()) < _EDGE, t.round(), t)
            t = np.where(a == -np.inf, last, t)
            found = (np.sqrt(1.0 / (1.0 + np.exp(-a))), np.sqrt(1.0 / (1.0 + np.exp(a))), t)
            pure = last > times[0]
        outside = (a < low - _EDGE) | (a > high + _EDGE)
        if pure:
            outside &= a != -np.inf
        if outside.any():
            raise InvalidRequest(
                f"log_snr {a[outside][0]:g}: {model_label(self.pipe)} knows levels from {low:.4g} to {high:.4g}"
                + (" and -inf." if pure else ".")
            )
        return found

    def _arguments(self, cond: Cond, n: int) -> dict[str, Any]:
        wanted = conditions(cond, n)
        kept = self._kept()
        for c in wanted:
            if c not in kept:
                kept[c] = self._capture(c)[1]
        calls = [kept[c] for c in wanted]
        return calls[0] if n == 1 else _batched(calls)

    def _kept(self) -> dict[Any, dict[str, Any]]:
        """Conditions met before; none, and none kept, while a text encoder has hooks, as what it says may be edited."""
        hooked = any(
            module._forward_hooks or module._forward_pre_hooks
            for name, part in self.pipe.components.items()
            if name.startswith("text_encoder") and isinstance(part, torch.nn.Module)
            for module in part.modules()
        )
        return {} if hooked else self._calls

    def _capture(self, cond: Any) -> tuple[DenoiserCall, dict[str, Any]]:
        """The denoiser's call for one condition, and what of it is the condition; None is the unconditional branch."""
        if cond is None:
            found = denoiser_call(self.pipe, [_any_prompt(self.pipe)], 2.0)
            if "uncond" not in found.branches:  # guidance is an input, or nothing
                found = denoiser_call(self.pipe, [_any_prompt(self.pipe)], 1.0)
            branch = found.branches.index("uncond") if "uncond" in found.branches else 0
        else:
            found, branch = denoiser_call(self.pipe, [str(cond)], 1.0), 0
        n = len(found.branches)
        arguments = _map(lambda x: x[branch : branch + 1] if x.ndim and x.shape[0] == n else x, found.arguments)
        return found, {k: v for k, v in arguments.items() if k not in (found.sample, "timestep")}


def _grid(scheduler: Any) -> tuple[np.ndarray, np.ndarray, int]:
    """(timesteps, their finite log-SNRs in ascending order, the last timestep)."""
    abar = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(abar, torch.Tensor):
        raise UnsupportedPipeline(f"{type(scheduler).__name__} has no 'alphas_cumprod': its training noise is unknown.")
    values = torch.special.logit(abar.double()).cpu().numpy()
    finite = np.isfinite(values)
    times = np.flatnonzero(finite)[::-1].astype(np.float64)
    return times, values[finite][::-1].copy(), len(values) - 1


def _any_prompt(pipe: Pipeline) -> str:
    """A prompt whose generation has an unconditional branch beside it."""
    return "0" if "class_labels" in inspect.signature(pipe.__call__).parameters else ""


def _map(f: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """``value`` with f applied to every tensor in nested dictionaries, lists and tuples."""
    if isinstance(value, torch.Tensor):
        return f(value)
    if isinstance(value, dict):
        return {key: _map(f, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map(f, item) for item in value)
    return value


def _batched(values: Iterable[Any]) -> Any:
    """The arguments of several calls on one sample as those of one call."""
    items = list(values)
    first = items[0]
    if isinstance(first, torch.Tensor):
        if first.ndim == 0 or first.shape[0] != 1:
            return first
        if all(item is first for item in items):
            return first.expand(len(items), *first.shape[1:])
        return torch.cat(items)
    if isinstance(first, dict):
        return {key: _batched(item[key] for item in items) for key in first}
    if isinstance(first, list | tuple):
        return type(first)(_batched(parts) for parts in zip(*items, strict=True))
    return first
