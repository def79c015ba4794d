"""The judge's network: a small residual CNN with one head a factor and one for artifacts.

Group normalisation instead of batch normalisation, so that a verdict never depends on the other images of a batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from probe.canvas.world import FACTORS


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class JudgeNet(nn.Module):
    """Images (N, 3, 64, 64) float in [-1, 1] to logits; 0.9 M parameters.

    ``forward`` returns a mapping: the four factor names to logits (N, n_values), and ``artifact`` to a logit (N,).
    ``features`` returns the pooled (N, 160) representation, for distances between sets of images.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 4, stride=2, padding=1),
            nn.Conv2d(32, 64, 4, stride=2, padding=1),
            _Residual(64),
            nn.Conv2d(64, 96, 3, stride=2, padding=1),
            _Residual(96),
            _Residual(96),
            nn.Conv2d(96, 160, 3, stride=2, padding=1),
            _Residual(160),
            nn.GroupNorm(8, 160),
            nn.SiLU(),
        )
        self.heads = nn.ModuleDict({factor: nn.Linear(160, len(names)) for factor, names in FACTORS.items()})
        self.heads["artifact"] = nn.Linear(160, 1)

    def features(self, images: Tensor) -> Tensor:
        """Pooled representation, (N, 160)."""
        return self.body(images).mean((2, 3))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        pooled = self.features(images)
        out = {name: head(pooled) for name, head in self.heads.items()}
        return out | {"artifact": out["artifact"].squeeze(-1)}


def to_input(images: Tensor) -> Tensor:
    """uint8 (N, 64, 64, 3) to the network's input."""
    return images.permute(0, 3, 1, 2).to(torch.float32).div(127.5).sub(1.0)
