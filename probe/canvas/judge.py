"""The judge: says what an image of the canvas world shows, and whether it shows anything known at all.

A small CNN (``judge_net``) trained on renders and autoencoder reconstructions, never on samples of the diffusion
model. Probabilities are calibrated by a temperature a head. The *artifact score* is the probability that the image is
a wreck: no object, two at once, a melted or torn one, noise. An image whose score exceeds the threshold, set so that
one clean image in a hundred does, counts as an artifact.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from probe.canvas.judge_net import JudgeNet, to_input
from probe.canvas.world import FACTORS

JUDGE_DIR = Path(__file__).parent / "weights" / "judge"


@dataclass(frozen=True)
class Verdict:
    """What the judge says of N images.

    Attributes:
        probs: for each factor, calibrated probabilities (N, n_values) float32 in the order of ``FACTORS``.
        artifact: (N,) float32 in [0, 1], the probability of a wreck.
        threshold: the score above which an image counts as an artifact.
    """

    probs: dict[str, NDArray[np.float32]]
    artifact: NDArray[np.float32]
    threshold: float

    @property
    def is_artifact(self) -> NDArray[np.bool_]:
        """(N,) bool: whether an image shows none of the known things."""
        return self.artifact > self.threshold

    def labels(self, factor: str) -> NDArray[np.str_]:
        """(N,) the most probable value of a factor."""
        return np.asarray(FACTORS[factor])[self.probs[factor].argmax(1)]


class Judge:
    """A loaded judge; call it on images."""

    def __init__(self, net: JudgeNet, temperatures: dict[str, float], threshold: float) -> None:
        self.net = net.eval().requires_grad_(False)
        self.temperatures = temperatures
        self.threshold = threshold

    @classmethod
    def load(cls, folder: Path = JUDGE_DIR) -> Self:
        """Load the shipped judge, or another folder with ``judge.safetensors`` and ``judge.json``."""
        config = json.loads((folder / "judge.json").read_text())
        net = JudgeNet()
        net.load_state_dict({k: v.float() for k, v in load_file(folder / "judge.safetensors").items()})
        return cls(net, config["temperatures"], config["artifact_threshold"])

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8], *, batch_size: int = 256) -> Verdict:
        """Judge images.

        Args:
            images: (N, 64, 64, 3) uint8 RGB.
            batch_size: images at a time; changes memory, not the verdict.

        Raises:
            ValueError: if the images have another shape or dtype.
        """
        self._check(images)
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in (*FACTORS, "artifact")}
        for start in range(0, len(images), batch_size):
            out = self.net(to_input(torch.from_numpy(np.array(images[start : start + batch_size]))))
            for name, chunks in parts.items():
                logits = out[name] / self.temperatures[name]
                chunks.append(torch.sigmoid(logits) if name == "artifact" else torch.softmax(logits, 1))
        joined = {name: torch.cat(chunks).numpy() for name, chunks in parts.items()}
        return Verdict({factor: joined[factor] for factor in FACTORS}, joined["artifact"], self.threshold)

    @torch.inference_mode()
    def features(self, images: NDArray[np.uint8], *, batch_size: int = 256) -> NDArray[np.float32]:
        """The judge's pooled representation, (N, 160) float32, for distances between sets of images."""
        self._check(images)
        starts = range(0, len(images), batch_size)
        chunks = [self.net.features(to_input(torch.from_numpy(np.array(images[i : i + batch_size])))) for i in starts]
        return torch.cat(chunks).numpy()

    @staticmethod
    def _check(images: NDArray[np.uint8]) -> None:
        if images.ndim != 4 or images.shape[1:] != (64, 64, 3) or images.dtype != np.uint8 or len(images) == 0:
            raise ValueError(
                f"Judge: images must be (N >= 1, 64, 64, 3) uint8, got {images.shape} {images.dtype}; "
                "the canvas judge knows no other world"
            )


@lru_cache(maxsize=1)
def shipped_judge() -> Judge:
    """The judge in the package, loaded once."""
    return Judge.load()
