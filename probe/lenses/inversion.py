"""The noise from which the model draws a given image, and how well it draws it again.

``ddim``           the sampler run upwards (``probe.capture.inversion``): one first state, no noise at the steps. An
                   Euler step of the probability flow, so the error falls with the number of steps.
``edit_friendly``  a first state and the noise of every step (``probe.interventions.edit_friendly``): the sampler passes
                   through x_t at every level, whatever the number of steps; only the last denoising is the model's own.

Both are kept as interventions (the first state, the noise), so that the image can be drawn again with another prompt,
or under further interventions. Two errors are reported. ``state_error`` says how far the path is from where it should
be at its end; ``pixel_error`` is that of the drawn image, beside ``codec_error``, that of the autoencoder alone, below
which no inversion can come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch

from probe.capture.inversion import invert as invert_ddim
from probe.capture.inversion import to_eps
from probe.capture.noising import condition, encode
from probe.capture.tensors import find_input
from probe.errors import InvalidRequest
from probe.interventions.apply import intervene
from probe.interventions.edit_friendly import invert as invert_edit_friendly
from probe.interventions.edit_friendly import noised_states
from probe.interventions.intervention import Intervention
from probe.interventions.patching import Patch
from probe.model.generate import call_kwargs, no_progress_bar
from probe.model.pipeline import Pipeline
from probe.model.schedule import NoiseLevel, schedule, training_level
from probe.model.steps import denoiser

Method = Literal["ddim", "edit_friendly"]


@dataclass(frozen=True, eq=False)
class Inversion:
    """What draws the images again.

    Attributes:
        edits: the first state, and for ``edit_friendly`` the noise of the steps.
        prompts, steps, guidance, eta: how it was inverted, and is drawn.
        latents: (N, C, h, w) the images' clean latents.
        drawn: (N, C, h, w) latents where the sampler ends.
        images: uint8 (N, H, W, 3) drawn again.
        state_error: (N,) |x - x'| / |x|: for ``ddim`` of the clean latents, for ``edit_friendly`` of the sampler's
            state on entry to its last step.
        pixel_error: (N,) root mean square difference of drawn and given image, in [0, 1].
        codec_error: (N,) the same of decoded latents.
    """

    edits: tuple[Intervention, ...]
    prompts: tuple[str, ...]
    steps: int
    guidance: float
    eta: float
    latents: torch.Tensor = field(repr=False)
    drawn: torch.Tensor = field(repr=False)
    images: np.ndarray = field(repr=False)
    state_error: np.ndarray
    pixel_error: np.ndarray
    codec_error: np.ndarray

    def draw(
        self,
        pipe: Pipeline,
        prompts: Sequence[str] | None = None,
        *,
        interventions: Sequence[Intervention] = (),
        guidance: float | None = None,
    ) -> np.ndarray:
        """Draw the images with other prompts or under interventions: uint8 (N, H, W, 3)."""
        chosen = self.prompts if prompts is None else prompts
        if len(chosen) != len(self.prompts):
            raise InvalidRequest(f"draw: {len(chosen)} prompts for {len(self.prompts)} inverted images.")
        scale = self.guidance if guidance is None else guidance
        latents = _draw(pipe, chosen, (*self.edits, *interventions), self.steps, scale, self.eta, self.latents)
        return decode(pipe, latents)


def invert_images(
    pipe: Pipeline,
    images: np.ndarray,
    prompts: Sequence[str],
    *,
    method: Method = "edit_friendly",
    steps: int = 50,
    guidance: float = 1.0,
    eta: float = 0.99,
    seed: int = 0,
) -> Inversion:
    """Invert images and draw them again.

    Args:
        pipe: a latent pipeline with a DDIM sampler.
        images: uint8 (N, H, W, 3), of the size that the model draws.
        prompts: one an image, that describe them.
        method: see the module.
        steps: of the sampler.
        guidance: 1 for no guidance. Inversion with ``ddim`` is without; drawing with more moves away from the image.
        eta: share of fresh noise, for ``edit_friendly``, below 1 where the schedule begins with pure noise; ``ddim``
            has none.
        seed: of the noises of ``edit_friendly``.

    Raises:
        InvalidRequest: arguments that do not fit.
        UnsupportedPipeline: the sampler is not DDIM.

    Cost: two generations.

    Example:
        >>> from probe.canvas import render_batch
        >>> from probe.lenses import invert_images
        >>> from probe.model import load_pipeline
        >>> pipe, shown = load_pipeline("canvas"), render_batch(range(1))
        >>> found = invert_images(pipe, shown.images, shown.captions, steps=5)
        >>> bool((found.state_error < 1e-5).all())
        True
        >>> other = found.draw(pipe, ["a blue cup on white background in neon style"], guidance=2.0)
    """
    if method not in get_args(Method):
        raise InvalidRequest(f"invert_images: method {method!r}; expected one of {', '.join(get_args(Method))}.")
    if len(prompts) != len(images) or not len(images):
        raise InvalidRequest(f"invert_images: {len(images)} images but {len(prompts)} prompts.")
    model = condition(pipe, prompts, 1.0)
    x0 = encode(pipe, images, model.sample_shape)
    if method == "ddim":
        edits, eta = (_ddim_start(pipe, x0, prompts, steps),), 0.0
    else:
        edits = invert_edit_friendly(pipe, x0, list(prompts), steps=steps, guidance=guidance, eta=eta, seed=seed)
    states: list[torch.Tensor] = []
    drawn = _draw(pipe, prompts, edits, steps, guidance, eta, x0, states)
    again = decode(pipe, drawn)
    if method == "ddim":
        state_error = relative_error(drawn, x0)
    else:
        state_error = relative_error(states[-1], noised_states(pipe, x0, steps=steps, seed=seed)[-1])
    return Inversion(
        edits, tuple(prompts), steps, guidance, eta, x0, drawn, again, state_error,
        pixel_error=_rms(again, images), codec_error=_rms(decode(pipe, x0), images),
    )  # fmt: skip


def relative_error(found: torch.Tensor, truth: torch.Tensor) -> np.ndarray:
    """(N,) |found - truth| / |truth| of each sample, float64."""
    difference = (found.double() - truth.double()).flatten(1).norm(dim=1)
    return (difference / truth.double().flatten(1).norm(dim=1)).cpu().numpy()


@torch.no_grad()
def decode(pipe: Pipeline, latents: torch.Tensor) -> np.ndarray:
    """uint8 images (N, H, W, 3) of clean latents in the sampler's scale, as the pipeline itself decodes them."""
    vae: Any = pipe.vae
    config = vae.config
    x = latents.to(vae.dtype) / (config.get("scaling_factor") or 1.0) + (config.get("shift_factor") or 0.0)
    pixels = vae.decode(x, return_dict=False)[0]
    found = pipe.image_processor.postprocess(pixels, output_type="np")
    return (np.asarray(found, np.float32) * 255).round().clip(0, 255).astype(np.uint8)


def _ddim_start(pipe: Pipeline, x0: torch.Tensor, prompts: Sequence[str], steps: int) -> Intervention:
    """The first state from which the sampler without noise comes to x0, walked up the sampler's own levels."""
    timesteps, _ = schedule(pipe, steps)
    path = [training_level(pipe.scheduler, t) for t in reversed(timesteps)]
    model = condition(pipe, prompts, 1.0)

    def predict(z: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        return to_eps(pipe.scheduler, model(z, level.t), z, level)

    z = x0
    with torch.no_grad():
        for _, z in invert_ddim(x0, path, predict):  # noqa: B007
            pass
    return Intervention("sampler:x_t", _patch(z), steps=[0])


def _draw(
    pipe: Pipeline,
    prompts: Sequence[str],
    edits: Sequence[Intervention],
    steps: int,
    guidance: float,
    eta: float,
    like: torch.Tensor,
    states: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Latents where the sampler ends; its state on entry to every step is added to ``states``."""
    kwargs = call_kwargs(pipe, prompts, [0] * len(prompts), steps=steps, guidance=guidance)
    _, module = denoiser(pipe)
    dtype = next(module.parameters()).dtype
    kwargs |= {"output_type": "latent", "latents": torch.zeros_like(like).to(dtype), "eta": eta}

    def keep(_: torch.nn.Module, args: tuple[Any, ...], call: dict[str, Any]) -> None:
        if states is not None:
            states.append(find_input("denoiser:in", args, call).tensor[: len(prompts)].detach().clone())

    with intervene(pipe, list(edits)), no_progress_bar(pipe):
        handle = module.register_forward_pre_hook(keep, with_kwargs=True)  # behind the edits, so it sees the new state
        try:
            found: Any = pipe(**kwargs)
        finally:
            handle.remove()
    return found.images


def _patch(z: torch.Tensor) -> Patch:
    """A state (N, C, h, w) as the value of ``sampler:x_t``."""
    return Patch(z.flatten(2).transpose(1, 2)[None, None], ("guided",))


def _rms(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square((a.astype(np.float64) - b) / 255.0).mean((1, 2, 3)))
