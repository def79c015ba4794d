"""The judge: a classifier of the four factors and of artifacts, independent of the generator.

A batch is one third renders, one third autoencoder reconstructions (of latents with a little noise), one third wrecks
(``wrecks``); the first two are shifted, blurred, tinted and speckled a little at random. Samples of the diffusion
model are never used. The factor heads learn from the first two thirds only; the artifact head from all. The renders are
of all combinations, those held out of the generator's training included: a judge that had never seen a watercolor key
would score its own generalisation instead of the generator's.

Calibration (Guo et al., 2017): one temperature a head, minimising the likelihood loss on renders and reconstructions
of a seed that training does not see. The artifact threshold is the 99 % quantile of the score on the same images.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from probe.canvas.judge_net import JudgeNet
from probe.canvas.train.autoencoder import LATENT_NOISE
from probe.canvas.train.renders import cached_renders, to_float
from probe.canvas.train.wrecks import wreck
from probe.canvas.world import FACTORS


def augment(x: Tensor, rng: torch.Generator) -> Tensor:
    """Small shifts, blur, tint and noise, which change nothing that a caption says; (N, 3, 64, 64) in [-1, 1]."""
    n = len(x)
    pad = F.pad(x, (3, 3, 3, 3), mode="replicate")
    dy, dx = torch.randint(0, 7, (2,), generator=rng).tolist()
    x = pad[..., dy : dy + 64, dx : dx + 64]
    blur = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = x + 0.8 * torch.rand(n, 1, 1, 1, generator=rng) * (blur - x)
    gain = 1 + 0.08 * torch.randn(n, 1, 1, 1, generator=rng)
    shift = 0.04 * torch.randn(n, 3, 1, 1, generator=rng)
    noise = 0.06 * torch.rand(n, 1, 1, 1, generator=rng) * torch.randn(x.shape, generator=rng)
    return (gain * x + shift + noise).clamp(-1, 1)


@dataclass
class JudgeTask:
    """Training of the judge on cached renders, with a finished autoencoder."""

    work: Path
    n_renders: int
    autoencoder: Path

    def build(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return JudgeNet()

    def prepare(self, device: torch.device) -> None:
        self.images, self.labels = cached_renders(self.work, self.n_renders, split="all")
        vae = AutoencoderTiny.from_pretrained(self.autoencoder, local_files_only=True)
        assert isinstance(vae, AutoencoderTiny)
        self.vae = vae.eval().requires_grad_(False)
        self.device = device

    def loss(self, model: nn.Module, batch_size: int, rng: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        third = batch_size // 3
        index = torch.randint(len(self.images), (3 * third,), generator=rng)
        x = to_float(self.images[index])
        with torch.no_grad():
            z = self.vae.encode(x[third : 2 * third]).latents  # type: ignore[union-attr]
            z = z + 2 * LATENT_NOISE * torch.randn(z.shape, generator=rng)
            decoded = self.vae.decode(z).sample.clamp(-1, 1)  # type: ignore[union-attr]
            clean = augment(torch.cat([x[:third], decoded]), rng)
            x = torch.cat([clean, wreck(x[2 * third :], rng, self.vae)])
        out = model(x.to(self.device, memory_format=torch.channels_last))
        labels = self.labels[index[: 2 * third]].to(self.device)
        artifact = (torch.arange(3 * third, device=self.device) >= 2 * third).float()
        logs, loss = {}, F.binary_cross_entropy_with_logits(out["artifact"], artifact)
        logs["artifact"] = float(((out["artifact"] > 0) == (artifact > 0)).float().mean())
        for i, factor in enumerate(FACTORS):
            logits = out[factor][: 2 * third]
            loss = loss + F.cross_entropy(logits, labels[:, i], label_smoothing=0.02)
            logs[factor] = float((logits.argmax(1) == labels[:, i]).float().mean())
        return loss, logs


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that minimises cross-entropy, by golden-section search over its logarithm."""
    low, high = -2.0, 2.0
    golden = 0.6180339887
    for _ in range(40):
        a, b = high - golden * (high - low), low + golden * (high - low)
        loss_a, loss_b = (F.cross_entropy(logits / 10**t, labels).item() for t in (a, b))
        low, high = (low, b) if loss_a < loss_b else (a, high)
    return 10 ** ((low + high) / 2)
