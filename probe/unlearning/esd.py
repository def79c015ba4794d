"""ESD: fine-tune the cross-attention away from a concept (Gandikota et al. 2023, arXiv 2303.07345).

With theta the weights in training and 0 the original ones, at states x_t that the model in training has drawn of the
concept itself (guidance 3, stopped at a random step):

    L = | eps_theta(x_t, c) - [ eps_0(x_t, c_from) - eta (eps_0(x_t, c) - eps_0(x_t, "")) ] |^2

so the concept's prompt comes to predict what guidance away from the concept would. The bracket's factors sum to 1, so
the same loss can be written in whatever the denoiser predicts; here it is the denoiser's own output. For a velocity
model the two differ by a weight of 1 / signal^2 a step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import functional_call

from probe.errors import InvalidRequest
from probe.interventions.guide import text_embedding
from probe.interventions.intervention import Intervention
from probe.interventions.patching import Replace
from probe.model.generate import generation_defaults
from probe.model.pipeline import Pipeline
from probe.model.steps import denoiser
from probe.unlearning.uce import cross_attention_weights

LAYERS = {"x": ("to_q", "to_k", "to_v", "to_out.0"), "x-strict": ("to_k", "to_v")}
"""Variants of the paper's code: all projections of the cross-attention, or keys and values."""


@dataclass(frozen=True)
class ESDSetting:
    """Hyper-parameters; the defaults are the paper's for Stable Diffusion.

    Attributes:
        iterations: of Adam, at least 1.
        lr: learning rate.
        eta: guidance away from the concept.
        start_guidance: guidance scale at which states are drawn.
        layers: ``x`` or ``x-strict``.
        seed: of noise and steps.
    """

    iterations: int = 200
    lr: float = 5e-5
    eta: float = 2.0
    start_guidance: float = 3.0
    layers: str = "x"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.iterations < 1 or not self.lr > 0 or self.layers not in LAYERS:
            raise InvalidRequest(
                f"esd: expected at least 1 iteration, a positive rate and layers {' or '.join(LAYERS)}; got {self}."
            )


def esd(
    pipe: Pipeline,
    erase: str | Sequence[str],
    *,
    erase_from: str | None = None,
    setting: ESDSetting | None = None,
    steps: int | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[Intervention, ...]:
    """Train the edit. An iteration costs half a generation at batch 1, three denoiser evaluations and one backward.

    Args:
        pipe: the pipeline; its own weights are not changed.
        erase: prompt of the concept, or several, taken in turn.
        erase_from: prompt whose prediction the concept is moved from; the concept's own if None.
        setting: hyper-parameters.
        steps: denoising steps of the states; the model's default if None.
        progress: called with (iteration, loss).

    Returns:
        One weight edit for each trained layer.
    """
    setting = setting or ESDSetting()
    prompts = [erase] if isinstance(erase, str) else list(erase)
    if not prompts:
        raise InvalidRequest("esd: there is nothing to erase.")
    concepts = [text_embedding(pipe, prompt) for prompt in prompts]
    sources = concepts if erase_from is None else [text_embedding(pipe, erase_from)] * len(concepts)
    null = text_embedding(pipe, "")
    module = denoiser(pipe)[1]
    frozen = cross_attention_weights(pipe, LAYERS[setting.layers])
    trained = {
        path.partition(".")[2] + ".weight": w.detach().clone().requires_grad_(True) for path, w in frozen.items()
    }
    optimiser = torch.optim.Adam(trained.values(), lr=setting.lr)
    scheduler: Any = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(steps or generation_defaults(pipe).steps)
    draw = torch.Generator("cpu").manual_seed(setting.seed)
    config: Any = module.config
    shape = (1, config.in_channels, config.sample_size, config.sample_size)
    for i in range(setting.iterations):
        c, c_from = concepts[i % len(concepts)], sources[i % len(concepts)]
        stop = int(torch.randint(len(scheduler.timesteps), (1,), generator=draw))
        z = torch.randn(shape, generator=draw).to(c) * scheduler.init_noise_sigma
        with torch.no_grad():
            for t in scheduler.timesteps[:stop]:
                both = _call(module, trained, scheduler.scale_model_input(z, t), t, torch.stack([null, c]))
                guided = both[:1] + setting.start_guidance * (both[1:] - both[:1])
                z = scheduler.step(guided, t, z).prev_sample
            t = scheduler.timesteps[stop]
            x = scheduler.scale_model_input(z, t)
            of_from, of_concept, of_null = _call(module, {}, x, t, torch.stack([c_from, c, null])).split(1)
            target = of_from - setting.eta * (of_concept - of_null)
        loss = (_call(module, trained, x, t, c[None]) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if progress is not None:
            progress(i + 1, float(loss.detach()))
    root = denoiser(pipe)[0]
    return tuple(
        Intervention(f"{root}.{name.removesuffix('.weight')}:weight", Replace(weight.detach()))
        for name, weight in trained.items()
    )


def _call(
    module: torch.nn.Module, weights: dict[str, torch.Tensor], z: torch.Tensor, t: torch.Tensor, text: torch.Tensor
) -> torch.Tensor:
    """The denoiser's output for one state and several texts, with some weights exchanged."""
    call = {"encoder_hidden_states": text, "return_dict": False}
    return functional_call(module, weights, (z.expand(len(text), *z.shape[1:]), t), call)[0]
