"""How well the edited model denoises images of the concept, given a text: what attacks minimise.

With z = signal x0 + noise n at a step of the sampler, and x0hat the clean sample that the edited model sees in z,

    L(text) = E_{x0, n, step} ||x0 - x0hat(z, text)||^2 / noise^2 / d

This is the training loss of a velocity model, ||v - vhat||^2, and the loss of a noise model up to a weight of
1 + signal^2 / noise^2; unlike the latter it is defined at pure noise. Minimising it over a text embedding is textual
inversion (Gal et al. 2023); through an edited model it is concept inversion (Pham et al. 2024, arXiv 2308.01508).

The steps are those of the sampler, so that edits that change from step to step are met as they are in a generation. The
conditional prediction is taken, or, if an edit treats the guidance branches differently, the guided one, since the
conditional branch alone would not see it. Edits of the sampler's prediction are met by taking the sampler's own step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DDIMScheduler

from probe.capture.noising import encode
from probe.errors import InvalidRequest, UnsupportedPipeline
from probe.interventions.dictionary import as_dictionary
from probe.interventions.features import FeatureOp
from probe.interventions.places import SAMPLER, place
from probe.interventions.timed_dictionary import TimedDictionary
from probe.model.conditioning import denoiser_call
from probe.model.generate import model_label
from probe.model.prediction import Prediction, clean_of, prediction_type
from probe.model.schedule import training_level
from probe.unlearning.attacks.task import AttackTask


class Batch(NamedTuple):
    """Clean samples and noise at one step.

    Attributes:
        at: numbers of the references.
        x0, noise: (n, C, h, w).
        step: of the sampler.
    """

    at: tuple[int, ...]
    x0: torch.Tensor
    noise: torch.Tensor
    step: int


class DenoisingLoss:
    """The loss of a task. Call it inside ``intervene(task.pipe, task.interventions)``.

    Args:
        task: model, edits, references and sampler settings.
        guided: whether the guided prediction is taken where an edit treats the branches differently; if not, the
            conditional one always is.

    Attributes:
        branches: that are computed.
        x0: (M, C, h, w) the references as clean samples.
        n_steps: steps of the sampler.

    Raises:
        InvalidRequest: an edit uses a dictionary that reads the step before.
        UnsupportedPipeline: the pipeline's denoiser is conditioned on more than one text embedding, or an edit of the
            sampler meets another scheduler than DDIM.
    """

    def __init__(self, task: AttackTask, *, guided: bool = True) -> None:
        self._pipe = pipe = task.pipe
        apart = any(item.branch in ("uncond", "opposite") for item in task.interventions)
        self._guidance = task.guidance if apart else 1.0
        self._guided = guided
        call = denoiser_call(pipe, [task.prompts[0]], self._guidance)  # also tells the pipeline its guidance
        if "encoder_hidden_states" not in call.arguments or call.arguments.get("added_cond_kwargs"):
            raise UnsupportedPipeline(f"{model_label(pipe)}: its denoiser takes more, or less, than a text embedding.")
        self._call, self.branches = call, call.branches
        sample = call.arguments[call.sample]
        self._dtype = sample.dtype
        self.x0 = encode(pipe, np.asarray(task.references), sample.shape[1:]).to(sample.device)
        pipe.scheduler.set_timesteps(task.steps)
        self._timesteps = list(pipe.scheduler.timesteps)
        self.n_steps = len(self._timesteps)
        self._kind: Prediction = prediction_type(pipe.scheduler)
        if any(_reads_the_step_before(item.op) for item in task.interventions):
            raise InvalidRequest(
                f"attack on {task.label!r}: the edit uses a residual dictionary, which reads each step after the one "
                "before; its loss at single steps is not defined. Attack it with paraphrase or held_out."
            )
        self._by_sampler = any(place(pipe, item).kind == SAMPLER for item in task.interventions)
        if self._by_sampler and not isinstance(pipe.scheduler, DDIMScheduler):
            raise UnsupportedPipeline(
                f"attack on {task.label!r}: the edit is at the sampler, whose step can be followed for DDIM only, not "
                f"for {type(pipe.scheduler).__name__}. Set pipe.scheduler = "
                "DDIMScheduler.from_config(pipe.scheduler.config)."
            )

    def __call__(self, texts: Sequence[str], batch: Batch) -> torch.Tensor:
        """(B,) losses of a batch of one step, since edits are tied to steps; ``texts`` are B, or one for all."""
        t, x0 = self._timesteps[batch.step], batch.x0
        level = training_level(self._pipe.scheduler, float(t))
        z = level.signal * x0 + level.noise * batch.noise
        output = self._output(z, t, self._text(texts, len(x0)))
        if self._by_sampler:
            clean = self._pipe.scheduler.step(output, t, z).pred_original_sample
        else:
            clean = clean_of(self._kind, output, z, level.signal, level.noise)
        return (x0 - clean).square().flatten(1).mean(1) / level.noise**2

    def noise_error(self, texts: Sequence[str], batch: Batch) -> torch.Tensor:
        """(B,) squared errors of the predicted noise, ||n - eps||^2, summed over all numbers; 0 at pure noise."""
        level = training_level(self._pipe.scheduler, float(self._timesteps[batch.step]))
        return self(texts, batch) * level.signal**2 * batch.x0[0].numel()  # signal (x0 - x0hat) = noise (eps - n)

    def batch(self, n: int, step: int, draw: torch.Generator) -> Batch:
        """n references, drawn with replacement, with fresh noise."""
        at = torch.randint(len(self.x0), (n,), generator=draw)
        noise = torch.randn((n, *self.x0.shape[1:]), generator=draw).to(self.x0)
        return Batch(tuple(at.tolist()), self.x0[at.to(self.x0.device)], noise, step)

    def batches(self, n: int, n_steps: int, seed: int) -> list[Batch]:
        """The same batches whenever they are asked for, n images each, at ``n_steps`` steps spread over all."""
        draw = torch.Generator("cpu").manual_seed(seed)
        n_steps = min(n_steps, self.n_steps)
        return [self.batch(n, int((i + 0.5) * self.n_steps / n_steps), draw) for i in range(n_steps)]

    def _text(self, texts: Sequence[str], n: int) -> list[torch.Tensor]:
        """Embeddings (n, L, C) of the branches, through the text encoder and its edits."""
        cond, uncond = self._pipe.encode_prompt(list(texts), self._pipe.device, 1, "uncond" in self.branches)
        cond = cond.expand(n, *cond.shape[1:])
        if "uncond" not in self.branches:
            return [cond]
        both = {"cond": cond, "uncond": uncond[:1].expand(n, *uncond.shape[1:])}
        return [both[branch] for branch in self.branches]

    def _output(self, z: torch.Tensor, t: torch.Tensor, text: list[torch.Tensor]) -> torch.Tensor:
        """The denoiser's output, guided if both branches are there."""
        arguments: dict[str, Any] = self._call.arguments | {
            self._call.sample: torch.cat([z.to(self._dtype)] * len(text)),
            "timestep": t,
            "encoder_hidden_states": torch.cat(text),
        }
        output = self._call.module(**arguments)
        output = (output[0] if isinstance(output, tuple) else output.sample).to(z.dtype)
        if len(text) == 1:
            return output
        part = dict(zip(self.branches, output.chunk(len(text)), strict=True))
        if not self._guided:
            return part["cond"]
        return part["uncond"] + self._guidance * (part["cond"] - part["uncond"])


def _reads_the_step_before(op: Any) -> bool:
    op = getattr(op, "op", op)  # within a random control
    if not isinstance(op, FeatureOp) or not hasattr(op.dictionary, "levels"):
        return False
    held = as_dictionary(op.dictionary)
    return isinstance(held, TimedDictionary) and held.predictor is not None


def gradient(value: torch.Tensor, vectors: torch.Tensor, label: str) -> torch.Tensor:
    """Gradient of a loss with respect to placeholders.

    Raises:
        InvalidRequest: there is none, so that no text can change the image.
    """
    if value.requires_grad:
        (found,) = torch.autograd.grad(value, vectors)
        if bool((found != 0).any()):
            return found
    raise InvalidRequest(
        f"attack on {label!r}: no gradient comes from the image back to the text. The edit overwrites everything that "
        "the prompt says (a replaced prompt, for example), so that no text can change the image."
    )
