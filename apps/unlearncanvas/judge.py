"""The two classifiers of UnlearnCanvas as a judge, and when they do not know.

A classifier always answers: it has no label for a wreck. What can be said is that it is less sure of an image than of
the real ones. The floor of a classifier is the quantile of its largest probability over real images of the data set,
below which half of ``SHARE`` of them fall; an image below the floor of either classifier counts as an artifact. So at
most a share ``SHARE`` of real images does, as with the judge of canvas. This misses wrecks that a classifier is sure
of, and an image between two styles counts although nothing is wrong with it. Without real images nothing is flagged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch

from apps.errors import InvalidFile
from apps.unlearncanvas.protocol import LABELS
from apps.unlearncanvas.vit import ViT, to_pixels

SHARE = 0.01
"""Share of real images that count as artifacts."""


@dataclass(frozen=True)
class Verdict:
    """What the classifiers say of N images.

    Attributes:
        probs: for each factor, (N, n_labels) float32 in the order of ``LABELS``.
        floors: for each factor, the largest probability below which an image counts as an artifact.
    """

    probs: Mapping[str, np.ndarray]
    floors: Mapping[str, float]

    @property
    def is_artifact(self) -> np.ndarray:
        """(N,) bool: whether a classifier is less sure than of real images."""
        return np.logical_or.reduce([self.probs[name].max(1) < floor for name, floor in self.floors.items()])

    def labels(self, factor: str) -> list[str]:
        """The most probable label of each image."""
        return [LABELS[factor][i] for i in self.probs[factor].argmax(1)]


@dataclass(frozen=True)
class UnlearnCanvasJudge:
    """Reads object and style of images; call it on them.

    Attributes:
        nets: the classifier of each factor.
        floors: see ``Verdict``; 0 flags nothing.
        batch_size: images at a time.
    """

    nets: Mapping[str, ViT]
    floors: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(LABELS, 0.0))
    batch_size: int = 32

    @classmethod
    def load(cls, folder: str | Path, *, device: str | torch.device = "cpu") -> Self:
        """From ``object.safetensors`` and ``style.safetensors`` in a folder.

        Raises:
            FileNotFoundError: a file is missing; how the published ones are converted.
            InvalidFile: a file is no classifier, or of other labels.
        """
        nets = {factor: ViT.load(Path(folder) / f"{factor}.safetensors").to(device) for factor in LABELS}
        for factor, net in nets.items():
            if net.head.out_features != len(LABELS[factor]):
                raise InvalidFile(
                    f"classifier {factor}.safetensors in {str(folder)!r} has {net.head.out_features} outputs; expected "
                    f"{len(LABELS[factor])}, the {factor}s of the benchmark."
                )
        return cls(nets)

    def __call__(self, images: np.ndarray) -> Verdict:
        """Judge images, uint8 (N, H, W, 3)."""
        return Verdict({name: self._run(net, images, head=True) for name, net in self.nets.items()}, self.floors)

    def features(self, images: np.ndarray) -> np.ndarray:
        """The classifiers' class tokens side by side, (N, d) float32, for distances between sets of images."""
        return np.concatenate([self._run(net, images, head=False) for net in self.nets.values()], 1)

    def calibrated(self, real: np.ndarray) -> Self:
        """With floors from real images, uint8 (N, H, W, 3)."""
        probs = self(real).probs
        return replace(self, floors={name: float(np.quantile(p.max(1), SHARE / 2)) for name, p in probs.items()})

    @torch.inference_mode()
    def _run(self, net: ViT, images: np.ndarray, *, head: bool) -> np.ndarray:
        device, parts = net.cls_token.device, []
        for start in range(0, len(images), self.batch_size):
            pixels = to_pixels(images[start : start + self.batch_size], net.side).to(device)
            parts.append(net(pixels).softmax(1) if head else net.tokens(pixels))
        return torch.cat(parts).float().cpu().numpy()
