"""What finders that are trained through a frozen denoiser have in common.

The model's weights stay; the finder's own parameters are moved by Adam so that a loss on noisy samples falls. A clean
sample x is brought to a level a drawn from the schedule that the model samples with, z = alpha x + sigma n, and
whatever is learned is added at a site while the denoiser runs. Clean samples come from the model itself
(``self_generated``) or from anywhere else, in the scale that the denoiser takes.

Everything random comes from one seed; two fits with one seed are equal. Interrupting a fit loses it: none is meant to
take longer than minutes.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from probe.directions.direction import Direction, tensor_hash
from probe.directions.fitted import Fitted
from probe.directions.operator_finder import model_record
from probe.directions.points import Point, site_of, site_value
from probe.errors import InvalidDirection
from probe.interventions.guide import text_embedding
from probe.model.eps_model import noised
from probe.model.generate import call_kwargs, generation_defaults, no_progress_bar
from probe.model.pipeline_eps import PipelineEps
from probe.model.schedule import schedule

Progress = Callable[[int, int], None]
"""Called with (done, total) iterations."""
Embed = Callable[[torch.Tensor], torch.Tensor]
"""Clean samples (B, *sample_shape) to features (B, F), differentiable."""


@dataclass(kw_only=True, eq=False)
class OptimisedFinder(Fitted, ABC):
    """Base of the finders that are trained.

    Attributes:
        iterations: steps of Adam.
        batch: samples an iteration; memory is that of a training step of as many.
        lr: learning rate, in units of the root mean square of the site's values where the finder knows it.
        levels: log-SNRs to draw from; None for the finite levels of the model's own sampling schedule.
        seed: of everything random.

    After ``fit``: ``loss_`` (iterations,), the loss of each batch before its step, noisy because every batch has other
    levels; ``direction_``.
    """

    iterations: int = 200
    batch: int = 8
    lr: float = 0.05
    levels: Sequence[float] | None = None
    seed: int = 0

    direction_: Direction = field(init=False, repr=False)
    loss_: np.ndarray = field(init=False, repr=False)

    def _levels(self, model: PipelineEps) -> list[float]:
        """The levels to draw from, in sampling order."""
        found = self.levels
        if found is None:
            found = schedule(model.pipe, generation_defaults(model.pipe).steps)[1]
        found = [float(a) for a in found if math.isfinite(a)]
        if not found or self.iterations < 1 or self.batch < 1 or not self.lr > 0:
            raise InvalidDirection(
                f"{type(self).__name__}: {self.iterations} iterations of {self.batch} samples at rate {self.lr} and "
                f"{len(found)} finite levels; expected at least one of each, and a positive rate."
            )
        return found

    def _samples(self, model: PipelineEps, x: torch.Tensor, at_least: int = 1) -> torch.Tensor:
        if tuple(x.shape[1:]) != tuple(model.sample_shape) or len(x) < at_least or not bool(torch.isfinite(x).all()):
            raise InvalidDirection(
                f"{type(self).__name__}: samples {tuple(x.shape)}; expected finite "
                f"({at_least} or more, {', '.join(map(str, model.sample_shape))})."
            )
        return x.detach().to(model.device, model.dtype)

    def _generator(self) -> torch.Generator:
        return torch.Generator("cpu").manual_seed(self.seed)

    def _descend(
        self,
        parameters: Sequence[torch.Tensor],
        loss: Callable[[], torch.Tensor],
        progress: Progress | None,
        *,
        rate: float = 1.0,
        eps: float = 1e-8,
    ) -> None:
        """Adam with a cosine schedule down to zero, so that the end is not moved by the last batches."""
        optimiser = torch.optim.Adam(parameters, lr=self.lr * rate, eps=eps)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.iterations)
        losses = []
        for i in range(self.iterations):
            optimiser.zero_grad()
            value = loss()
            value.backward()
            optimiser.step()
            decay.step()
            losses.append(float(value.detach()))
            if progress is not None:
                progress(i + 1, self.iterations)
        self.loss_ = np.array(losses)
        if not np.isfinite(self.loss_).all():
            raise InvalidDirection(f"{type(self).__name__}: the loss became NaN or infinite; lower lr={self.lr}.")

    def _about(self, model: PipelineEps, **inputs: Any) -> dict[str, Any]:
        """Everything that the result depends on, and how the loss fell."""
        n = max(1, len(self.loss_) // 10)
        return {
            "finder": type(self).__name__,
            "parameters": {f.name: described(getattr(self, f.name)) for f in fields(self) if f.init},
            "model": model_record(model),
            "inputs": {name: described(value) for name, value in inputs.items()},
            "loss": {"first": float(self.loss_[:n].mean()), "last": float(self.loss_[-n:].mean())},
        }


def self_generated(
    model: PipelineEps,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    guidance: float | None = None,
    batch: int = 16,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Clean samples that the model draws itself, one for each (prompt, seed), before they are decoded.

    Args:
        model: the pipeline; it must know ``output_type="latent"``.
        prompts, seeds: N each.
        steps, guidance: of the generation; the model's defaults if None.
        batch: samples at a time.
        progress: called with (done, total) samples.

    Returns:
        (N, *sample_shape), in the scale that the denoiser takes.

    Raises:
        InvalidDirection: the pipeline keeps its samples in another form.
    """
    default = generation_defaults(model.pipe)
    parts: list[torch.Tensor] = []
    for start in range(0, len(prompts), batch):
        kwargs = call_kwargs(
            model.pipe,
            prompts[start : start + batch],
            seeds[start : start + batch],
            steps=steps or default.steps,
            guidance=default.guidance if guidance is None else guidance,
        )
        with no_progress_bar(model.pipe), torch.no_grad():
            found = model.pipe(**(kwargs | {"output_type": "latent"})).images
        if not isinstance(found, torch.Tensor) or tuple(found.shape[1:]) != tuple(model.sample_shape):
            raise InvalidDirection(
                f"self_generated: {type(model.pipe).__name__} gives its samples as "
                f"{tuple(getattr(found, 'shape', ()))}; expected (B, {', '.join(map(str, model.sample_shape))})."
            )
        parts.append(found.float())
        if progress is not None:
            progress(min(start + batch, len(prompts)), len(prompts))
    if not parts:
        raise InvalidDirection("self_generated: there are no prompts; give at least one.")
    return torch.cat(parts)


def drawn(
    x: torch.Tensor, levels: Sequence[float], n: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch: (indices (n,), noisy samples, their noise, levels (n,)), each with a level of its own."""
    index = torch.randint(len(x), (n,), generator=generator)
    a = torch.tensor(levels, dtype=torch.float64)[torch.randint(len(levels), (n,), generator=generator)]
    noise = torch.randn(n, *x.shape[1:], generator=generator).to(x)
    return index, noised(x[index], noise, a), noise, a


def site_example(model: PipelineEps, site: str) -> torch.Tensor:
    """What a site holds for pure noise and no condition, (1, ...): its shape, and the size of its values."""
    where = site_of(model, site)
    if where.port == "prompt":
        return text_embedding(model.pipe, "")[None].float()
    z = torch.randn(1, *model.sample_shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    return site_value(model, Point(z, model.log_snr_range[0]), str(where)).float()


def vector_shape(example: torch.Tensor, view: str) -> tuple[int, ...]:
    """Shape of what is added to a site like ``example``: the whole of it (``map``), or one value a channel that
    broadcasts over its tokens (``tokens``).

    Raises:
        InvalidDirection: another view.
    """
    if view not in ("tokens", "map"):
        raise InvalidDirection(f"view {view!r}; expected tokens or map.")
    if view == "map":
        return tuple(example.shape)
    return (1, example.shape[1], 1, 1) if example.ndim == 4 else (1, 1, example.shape[-1])


def flat_embed(x: torch.Tensor) -> torch.Tensor:
    """The sample itself as its features."""
    return x.flatten(1)


def described(value: Any) -> Any:
    """JSON values that name an argument: tensors by their hash, functions and objects by their name."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple):
        return [described(item) for item in value]
    if isinstance(value, torch.Tensor | np.ndarray):
        array = torch.as_tensor(value).detach().cpu()
        return {"shape": list(array.shape), "sha256": tensor_hash(array)}
    record = getattr(value, "record", None)
    return record() if callable(record) else getattr(value, "__name__", type(value).__name__)
