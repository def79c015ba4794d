"""What tests of unlearning share: a small dictionary, and scores of three concepts whose features are planted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from probe.interventions import TopKDictionary
from probe.unlearning import PromptGrid

D, D_SAE, STEPS = 16, 12, 3
TIMES = (999, 666, 333)
OBJECT_NAMES, STYLE_NAMES = ("star", "moon", "cup"), ("flat", "neon")


def dictionary() -> TopKDictionary:
    """Random unit rows, no biases."""
    g = torch.Generator().manual_seed(0)
    W = torch.nn.functional.normalize(torch.randn(D_SAE, D, generator=g), dim=-1)
    return TopKDictionary(W.T.clone(), torch.zeros(D_SAE), W, torch.zeros(D), k=6)


@dataclass
class Scores:
    """(S0) and (S1), written independently of the code under test."""

    concepts: tuple[str, ...]
    mu: np.ndarray

    @property
    def mean_activation(self) -> np.ndarray:
        return self.mu.mean(1)

    def score(self, concept: str) -> np.ndarray:
        own = self.mu[:, self.concepts.index(concept)]
        rest = np.delete(self.mu, self.concepts.index(concept), axis=1).mean(1)
        return own / own.sum(-1, keepdims=True) - rest / rest.sum(-1, keepdims=True)


def planted_scores() -> Scores:
    """Concept c fires feature c at step 0, c + 3 at step 1, c + 6 at step 2; feature 11 fires for all."""
    mu = np.full((STEPS, 3, D_SAE), 0.01, dtype=np.float32)
    for step in range(STEPS):
        for concept in range(3):
            mu[step, concept, concept + 3 * step] = 0.5 + step
    mu[:, :, 11] = 5.0
    return Scores(("star", "moon", "cup"), mu)


def make_grid(seeds: Sequence[int] = (0, 1)) -> PromptGrid:
    """Each object in each style, from each seed."""
    return PromptGrid.product(
        lambda labels: f"a {labels['object']} in {labels['style']} style",
        {"object": OBJECT_NAMES, "style": STYLE_NAMES},
        seeds,
    )


def rows(n: int, seed: int = 0, d: int = D) -> torch.Tensor:
    """Two samples of n normal rows."""
    return torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed))
