"""Given images brought to noise levels, and the denoiser called on them: what every lens on real images does.

    z = signal x0 + noise n

The noise n of an image is its own (from its seed) and the same at all levels, so what differs between two levels is the
level. Several draws of noise can be asked for; their results are to be averaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from probe.capture.inversion import to_eps
from probe.capture.noising import Conditioned, add_noise, condition, encode, noise
from probe.errors import InvalidRequest
from probe.model.pipeline import Pipeline
from probe.model.schedule import NoiseLevel, noise_levels

_NEXT_DRAW = 1_000_003  # added to a seed for every further draw of noise


@dataclass(frozen=True, eq=False)
class NoisedBatch:
    """Images of one batch at one level.

    Attributes:
        samples: numbers of the images.
        step: number of the level.
        draw: number of the noise.
        level: time, log-SNR, factors.
        x0, noise, z: (B, C, h, w) clean latents, unit noise, and what the denoiser sees.
        model: the denoiser, conditioned on the prompts; one branch.
    """

    samples: range
    step: int
    draw: int
    level: NoiseLevel
    x0: torch.Tensor
    noise: torch.Tensor
    z: torch.Tensor
    model: Conditioned
    _pipe: Pipeline

    def run(self) -> torch.Tensor:
        """Call the denoiser: its output, (B, C, h, w)."""
        return self.model(self.z, self.level.t)

    def eps(self) -> torch.Tensor:
        """Call the denoiser: the noise it predicts, (B, C, h, w) float32."""
        return to_eps(self._pipe.scheduler, self.run(), self.z, self.level)


@dataclass(frozen=True, eq=False)
class NoisedImages:
    """Images at noise levels.

    Attributes:
        pipe: the pipeline; its scheduler's timesteps are set anew.
        images: uint8 (N, height, width, 3), of the size that the model draws.
        prompts: one an image; ``""`` is the empty prompt.
        log_snr: levels of the model's own noise schedule (see ``noise_levels``).
        seeds: of the noise, one an image; 0, 1, ... if None.
        draws: noises an image.
        batch_size: images at a time.

    Raises:
        InvalidRequest: numbers that do not fit, or a level that the model does not know.
    """

    pipe: Pipeline
    images: np.ndarray
    prompts: Sequence[str]
    log_snr: Sequence[float]
    seeds: Sequence[int] | None = None
    draws: int = 1
    batch_size: int = 16

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.ndim != 4 or self.images.shape[-1] != 3 or self.images.dtype != np.uint8 or n == 0:
            raise InvalidRequest(f"images: {self.images.shape} {self.images.dtype}; expected uint8 (N, H, W, 3).")
        if isinstance(self.prompts, str) or len(self.prompts) != n:
            raise InvalidRequest(f"images: {n} images, so {n} prompts are needed; got {len(self.prompts)}.")
        if self.seeds is not None and len(self.seeds) != n:
            raise InvalidRequest(f"images: {n} images but {len(self.seeds)} seeds.")
        if self.draws < 1 or self.batch_size < 1 or not len(self.log_snr):
            raise InvalidRequest("images: draws, batch_size and the number of levels must be at least 1.")
        _ = self.levels  # unknown levels are told before any work

    @cached_property
    def levels(self) -> tuple[NoiseLevel, ...]:
        """The levels, in the order given."""
        return noise_levels(self.pipe.scheduler, self.log_snr)

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[NoisedBatch]:
        """Batch by batch; within a batch level by level; within a level draw by draw."""
        seeds = range(len(self.images)) if self.seeds is None else self.seeds
        for start in range(0, len(self.images), self.batch_size):
            part = range(start, min(start + self.batch_size, len(self.images)))
            model = condition(self.pipe, [self.prompts[i] for i in part], 1.0)
            x0 = encode(self.pipe, self.images[part.start : part.stop], model.sample_shape)
            for step, level in enumerate(self.levels):
                for draw in range(self.draws):
                    n = noise([seeds[i] + _NEXT_DRAW * draw for i in part], model.sample_shape, x0.device)
                    z = add_noise(x0, n, level)
                    yield NoisedBatch(part, step, draw, level, x0, n, z, model, self.pipe)
