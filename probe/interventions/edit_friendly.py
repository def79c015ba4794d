"""Edit-friendly inversion: the noise of every step that leads a sampler to a given picture (Huberman-Spiegelglas et al.
2024, arXiv 2304.06140).

The picture is noised to every level with noise of its own, and the step's noise is what is missing between two levels:

    x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) n_t,    n_t independent
    z_t = (x_{t-1} - mu(x_t)) / sigma_t,             sigma_t = eta sqrt((1 - abar') / (1 - abar)) sqrt(1 - abar / abar')

with mu the sampler's step without noise; at the last step sigma is 0 and z too. Run with these z from the first x_t,
the sampler passes through every x_t; run with another prompt, or under other interventions, it draws the edited
picture. The z are not white: neighbours are correlated, and their variance is above 1.

The means come from the pipeline's own call, with x_t put in at every step; the z go in as an edit of ``sampler:noise``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from probe.errors import InvalidRequest
from probe.interventions.apply import intervene
from probe.interventions.intervention import Intervention
from probe.interventions.patching import Patch
from probe.model.generate import no_progress_bar
from probe.model.override import override
from probe.model.pipeline import Pipeline
from probe.model.schedule import schedule
from probe.model.steps import denoiser


def invert(
    pipe: Pipeline,
    x0: torch.Tensor,
    prompts: list[str],
    *,
    steps: int,
    guidance: float,
    eta: float = 1.0,
    seed: int = 0,
) -> tuple[Intervention, Intervention]:
    """The edits that lead the pipeline to some latents; run it with the same prompts, steps, guidance and eta.

    Args:
        pipe: a pipeline with a DDIM sampler.
        x0: (n, channels, height, width) latents, in the scale of the sampler's state.
        prompts: n, that describe the pictures.
        steps, guidance: as ``generate``.
        eta: share of fresh noise, in (0, 1]; give the pipeline's call the same.
        seed: of the n_t.

    Returns:
        The first state (``sampler:x_t`` at step 0) and the noise of all steps (``sampler:noise``). The sampler's state
        at the last step is then x_t of that level, up to rounding; the picture differs from x0 by one denoising from
        there. Costs one generation.

    Raises:
        InvalidRequest: eta or shapes do not fit, or eta is too large for a schedule that begins with pure noise.
        UnsupportedPipeline: the sampler is not DDIM.
    """
    if not 0 < eta <= 1 or x0.ndim != 4 or len(x0) != len(prompts):
        raise InvalidRequest(f"invert: eta {eta!r}, latents {tuple(x0.shape)} for {len(prompts)} prompts do not fit.")
    timesteps, _ = schedule(pipe, steps)
    abar = torch.stack([pipe.scheduler.alphas_cumprod[t] for t in timesteps]).to(x0)
    after = _levels_after(pipe.scheduler, timesteps, steps).to(x0)
    sigma = eta * ((1 - after) / (1 - abar) * (1 - abar / after)).sqrt()
    if bool((1 - after - sigma.square() < 0).any()):
        raise InvalidRequest(
            f"invert: at eta {eta:g} all noise of the first step is fresh, because the schedule begins with pure "
            "noise, and the sampler takes the root of a rounding error. Use an eta below 1, such as 0.99."
        )
    x_t = noised_states(pipe, x0, steps=steps, seed=seed)
    means = _means(pipe, x_t, prompts, steps, guidance, eta)
    z = torch.zeros_like(x_t)
    z[:-1] = (x_t[1:] - means[:-1]) / sigma[:-1, None, None, None, None]
    start = Intervention("sampler:x_t", _patch(x_t[:1]), steps=[0])
    return start, Intervention("sampler:noise", _patch(z))


def _levels_after(scheduler: Any, timesteps: Sequence[int], steps: int) -> torch.Tensor:
    """abar' of every step, as the sampler takes it: a fixed number of timesteps further on, which is not quite the next
    of its timesteps where the number of steps does not divide the training steps.
    """
    further = [t - scheduler.config.num_train_timesteps // steps for t in timesteps]
    return torch.stack([scheduler.alphas_cumprod[t] if t >= 0 else scheduler.final_alpha_cumprod for t in further])


def noised_states(pipe: Pipeline, x0: torch.Tensor, *, steps: int, seed: int) -> torch.Tensor:
    """The x_t of every step, with noise of its own: (steps, n, channels, height, width), as ``invert`` draws them."""
    timesteps, _ = schedule(pipe, steps)
    abar = torch.stack([pipe.scheduler.alphas_cumprod[t] for t in timesteps]).to(x0)
    draw = torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn((steps, *x0.shape), generator=draw, dtype=x0.dtype).to(x0.device)
    signal = abar.sqrt()[:, None, None, None, None]
    return signal * x0 + (1 - abar).sqrt()[:, None, None, None, None] * noise


def _means(
    pipe: Pipeline, x_t: torch.Tensor, prompts: list[str], steps: int, guidance: float, eta: float
) -> torch.Tensor:
    """(steps, n, channels, height, width): the sampler's step from every x_t, without its noise."""
    seen: list[torch.Tensor] = []
    edits = [Intervention("sampler:x_t", _patch(x_t)), Intervention("sampler:noise", _patch(torch.zeros_like(x_t)))]
    scheduler: Any = pipe.scheduler
    own_step = scheduler.step

    @functools.wraps(own_step)
    def keep(*args: Any, **kwargs: Any) -> Any:
        found = own_step(*args, **kwargs)
        seen.append((found[0] if isinstance(found, tuple) else found.prev_sample).detach().clone())
        return found

    call: Any = pipe
    with override(scheduler, "step", keep), intervene(pipe, edits), no_progress_bar(pipe):
        call(
            prompts,
            num_inference_steps=steps,
            guidance_scale=guidance,
            eta=eta,
            latents=torch.zeros_like(x_t[0]).to(next(denoiser(pipe)[1].parameters()).dtype),
            output_type="latent",
        )
    return torch.stack(seen).to(x_t)


def _patch(values: torch.Tensor) -> Patch:
    """(steps, n, channels, height, width) as one row a cell."""
    return Patch(values.flatten(3).transpose(2, 3)[:, None], ("guided",))
