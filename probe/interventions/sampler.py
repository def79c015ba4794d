"""Edits of the sampler: its state, its guided prediction, and which term of its step sees an edit.

With z the state in the scale of the denoiser's input, z = signal x0 + noise eps, the guided model output is turned
into eps or x0, edited as rows, and turned back:

    output      eps from it                    x0 from it                     d output
    epsilon     output                         (z - noise output) / signal    d eps          -signal / noise d x0
    v           signal output + noise z        signal z - noise output        d eps / signal           -d x0 / noise
    sample      (z - signal output) / noise    output                         -noise / signal d eps    d x0
    flow        z + signal output              z - noise output               d eps / signal           -d x0 / noise

where the last column gives the change of the output for a change of either, z held fixed.

For ``inject`` the pipeline's own denoiser call gives the output that goes into x0, and a second one that of the
direction term; DDIM's step is linear in the two, so

    x' = step(output of the direction) + sqrt(abar') (x0(output of x0) - x0(output of the direction))
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.utils.torch_utils import randn_tensor

from probe.capture.tensors import find_input, replace_input, to_rows
from probe.errors import InvalidIntervention, UnsupportedPipeline
from probe.interventions.clock import EditClock
from probe.interventions.edit import edit
from probe.interventions.intervention import Intervention
from probe.interventions.places import Placed
from probe.model.override import override
from probe.model.pipeline import Pipeline
from probe.model.prediction import clean_of, noise_of, prediction_type
from probe.model.schedule import NoiseLevel, training_level
from probe.model.steps import denoiser


class SamplerEdits:
    """Holds the sampler's edits in place while it is open.

    Args:
        pipe: the pipeline.
        clock: where it is.
        placed: edits of the sampler's own places.
        items: all edits; those with ``inject`` make a second denoiser call necessary.
    """

    def __init__(
        self, pipe: Pipeline, clock: EditClock, placed: Sequence[Placed], items: Sequence[Intervention]
    ) -> None:
        self._pipe = pipe
        self._clock = clock
        self._state = [where for where in placed if where.site.port == "x_t"]
        self._prediction = [where for where in placed if where.site.port in ("eps", "x0")]
        self._noise = [where for where in placed if where.site.port == "noise"]
        sampler = {id(where.item) for where in placed}
        self._injected = [item for item in items if item.inject != "both" and id(item) not in sampler]
        self._module = denoiser(pipe)[1]
        self._call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._branches: tuple[str, ...] = ()
        self._edited_state: torch.Tensor | None = None
        self._direction: torch.Tensor | None = None
        self._inside = False
        self._stack = ExitStack()
        if self._noise or any(item.inject != "both" for item in items):
            _check_ddim(pipe)

    def __enter__(self) -> SamplerEdits:
        # the first of the denoiser's hooks, so that it keeps the arguments as the pipeline gave them
        self._stack.callback(self._module.register_forward_pre_hook(self._before, with_kwargs=True).remove)
        if self._injected:
            self._stack.callback(self._module.register_forward_hook(self._after).remove)
        self._stack.enter_context(override(self._pipe.scheduler, "step", self._stepper(self._pipe.scheduler.step)))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # The denoiser's call

    def _before(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._inside:
            return None
        self._edited_state = None
        slot = find_input("sampler:x_t", args, kwargs)
        z = slot.tensor.chunk(len(self._clock.branches))[0]
        edited = z
        for where in self._state:
            strength = self._clock.strength(where.item)
            edited = edit(edited, where, strength, ("guided",), self._clock.moment) if strength else edited
        if edited is not z:
            self._edited_state = edited
            args, kwargs = replace_input(slot, torch.cat([edited] * len(self._clock.branches)), args, kwargs)
        if "cond" in self._clock.branches:
            self._call = (args, kwargs)
            self._branches = self._clock.branches
        return args, kwargs

    def _after(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """The guided output for the direction term, from a second call."""
        if self._inside:
            return
        self._direction = None
        if not any(item.strength_at(self._clock.moment) for item in self._injected):
            return
        call_args, call_kwargs = self._call
        with self._clock.in_part("direction"):
            found = self._run_denoiser(call_args, call_kwargs)
        self._direction = self._guided(found)

    # The sampler's step

    def _stepper(self, step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(step)
        def edited_step(
            model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any
        ) -> Any:
            sample = self._new_state(sample, timestep)
            if self._noise and kwargs.get("eta"):
                kwargs = self._new_noise(model_output, kwargs)
            for_x0 = for_direction = model_output
            if self._direction is not None:
                for_direction = self._direction.to(model_output)
                if for_direction.shape != model_output.shape:
                    raise UnsupportedPipeline(
                        f"inject: {type(self._pipe).__name__} gives its sampler {tuple(model_output.shape)} of the "
                        f"denoiser's {tuple(for_direction.shape)}; the two terms cannot be told apart."
                    )
            if self._prediction:
                for_x0, for_direction = self._edit_prediction(for_x0, for_direction, timestep, sample)
            if for_x0 is for_direction:
                return step(for_x0, timestep, sample, *args, **kwargs)
            return _two_term_step(self._pipe.scheduler, step, for_x0, for_direction, timestep, sample, args, kwargs)

        return edited_step

    def _new_state(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        """The state that was given to the denoiser, in the sampler's own scale."""
        if self._edited_state is None:
            return sample
        ones = torch.ones(1, dtype=sample.dtype, device=sample.device)
        scale = float(self._input(ones, timestep))
        return self._edited_state if scale == 1.0 else self._edited_state / scale

    def _new_noise(self, like: torch.Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the step with the edited noise in place of the generator that would draw it."""
        noise = randn_tensor(like.shape, generator=kwargs.get("generator"), device=like.device, dtype=like.dtype)
        for where in self._noise:
            strength = where.item.strength_at(self._clock.moment)
            noise = edit(noise, where, strength, ("guided",), self._clock.moment) if strength else noise
        return kwargs | {"variance_noise": noise, "generator": None}

    def _edit_prediction(
        self, for_x0: torch.Tensor, for_direction: torch.Tensor, timestep: Any, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        level = training_level(self._pipe.scheduler, float(timestep))
        z = self._input(sample, timestep)
        for where in self._prediction:
            strength = where.item.strength_at(self._clock.moment)
            if not strength:
                continue
            same = for_x0 is for_direction
            if where.item.inject != "direction":
                for_x0 = self._edit_output(where, strength, for_x0, z, level)
            if where.item.inject == "both" and same:
                for_direction = for_x0
            elif where.item.inject != "x0":
                for_direction = self._edit_output(where, strength, for_direction, z, level)
        return for_x0, for_direction

    def _edit_output(
        self, where: Placed, strength: float, output: torch.Tensor, z: torch.Tensor, level: NoiseLevel
    ) -> torch.Tensor:
        """The model output whose noise, or clean sample, is the edited one."""
        kind = prediction_type(self._pipe.scheduler)
        signal, noise = level.signal, level.noise
        if signal == 0.0 and where.site.port == "eps":
            raise InvalidIntervention(
                f"{where.site}: at step {self._clock.moment.step} only noise is left (zero terminal SNR), so the "
                "predicted noise is the state itself. Edit 'sampler:x0', or begin later: steps=range(1, n)."
            )
        eps = noise_of(kind, output, z, signal, noise)
        if where.site.port == "eps":
            new = edit(eps, where, strength, ("guided",), self._clock.moment, self._predict(z, level))
            if new is eps:
                return output
            factor = {"epsilon": 1.0, "sample": -noise / signal}.get(kind, 1.0 / signal)
            return (output + factor * (new - eps)).to(output)
        x0 = clean_of(kind, output, z, signal, noise)
        new = edit(x0, where, strength, ("guided",), self._clock.moment)
        if new is x0:
            return output
        factor = {"epsilon": -signal / noise, "sample": 1.0}.get(kind, -1.0 / noise)
        return (output + factor * (new - x0)).to(output)

    # Calls of our own

    def _predict(self, z: torch.Tensor, level: NoiseLevel) -> Callable[[torch.Tensor], torch.Tensor]:
        """The unedited model's noise for a text embedding, as rows."""

        def predict(embedding: torch.Tensor) -> torch.Tensor:
            args, kwargs = self._call
            n_all = find_input("sampler:eps", args, kwargs).tensor.shape[0]
            n = n_all // len(self._branches)
            kept = self._branches.index("cond")

            def own(value: Any) -> Any:
                if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == n_all:
                    return value.chunk(len(self._branches))[kept]
                return {key: own(item) for key, item in value.items()} if isinstance(value, dict) else value

            new_kwargs = {key: own(value) for key, value in kwargs.items()}
            if "encoder_hidden_states" not in new_kwargs:
                raise UnsupportedPipeline(
                    f"guide: {type(self._pipe).__name__} does not give its denoiser 'encoder_hidden_states' by name."
                )
            text = embedding.to(z).expand(n, *embedding.shape)
            new_kwargs["encoder_hidden_states"] = text
            with self._clock.in_part("none"):
                output = self._run_denoiser(tuple(own(value) for value in args), new_kwargs)
            kind = prediction_type(self._pipe.scheduler)
            return to_rows("sampler:eps", noise_of(kind, output, z, level.signal, level.noise))

        return predict

    def _run_denoiser(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        self._inside = True
        try:
            found = self._module(*args, **kwargs)
        finally:
            self._inside = False
        return found[0] if isinstance(found, tuple) else found.sample

    def _guided(self, output: torch.Tensor) -> torch.Tensor:
        """Classifier-free guidance as the pipeline applies it."""
        branches = self._clock.branches
        if len(branches) == 1:
            return output
        if getattr(self._pipe, "guidance_rescale", 0.0):
            raise UnsupportedPipeline("inject: the pipeline rescales its guidance; set guidance_rescale to 0.")
        by_name = dict(zip(branches, output.chunk(len(branches)), strict=True))
        return by_name["uncond"] + self._pipe.guidance_scale * (by_name["cond"] - by_name["uncond"])

    def _input(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        """The state in the scale of the denoiser's input."""
        scale: Any = getattr(self._pipe.scheduler, "scale_model_input", None)
        return sample if scale is None else scale(sample, timestep)


def _check_ddim(pipe: Pipeline) -> None:
    scheduler = pipe.scheduler
    if not isinstance(scheduler, DDIMScheduler) or scheduler.config.get("thresholding"):
        raise UnsupportedPipeline(
            f"inject and sampler:noise need the terms of a DDIM step, but the sampler is {type(scheduler).__name__}"
            + (" with thresholding. " if isinstance(scheduler, DDIMScheduler) else ". ")
            + "Set pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config), or use inject='both'."
        )


def _two_term_step(
    scheduler: Any,
    step: Callable[..., Any],
    for_x0: torch.Tensor,
    for_direction: torch.Tensor,
    timestep: Any,
    sample: torch.Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """DDIM's step with one output in its x0 term and another in its direction term."""
    level, kind = training_level(scheduler, float(timestep)), prediction_type(scheduler)
    clean = [clean_of(kind, output, sample, level.signal, level.noise) for output in (for_x0, for_direction)]
    if scheduler.config.clip_sample:
        limit = scheduler.config.clip_sample_range
        clean = [x0.clamp(-limit, limit) for x0 in clean]
    before = int(timestep) - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    abar = scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod
    found = step(for_direction, timestep, sample, *args, **kwargs)
    moved = float(abar) ** 0.5 * (clean[0] - clean[1])
    if isinstance(found, tuple):
        return (found[0] + moved, *found[1:])
    return type(found)(**{**found, "prev_sample": found.prev_sample + moved})
