"""Random numbers of tests: the seeds that a property is tried on, and draws that depend on a seed alone."""

from __future__ import annotations

import torch

SEEDS = [0, 1, 2]


def gen(seed: int) -> torch.Generator:
    """A generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=gen(seed), dtype=dtype)
