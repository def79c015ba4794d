"""The noise that all columns of an image share: decided by the seed and the image's number, not by batch or order."""

from __future__ import annotations

import torch


def node_noise(x: torch.Tensor, n_nodes: int, images: range, seed: int) -> torch.Tensor:
    """(images, n_nodes, *sample_shape) unit noise of x's dtype, on the CPU; that of an image depends on its number."""
    generator = torch.Generator()
    shape = (n_nodes, *x.shape[1:])
    noise = [torch.randn(shape, generator=generator.manual_seed(_mixed(seed, i)), dtype=x.dtype) for i in images]
    return torch.stack(noise)


def _mixed(seed: int, image: int) -> int:
    """63 bits of seed and number, so that neighbouring seeds share no noise (SplitMix64; Steele et al. 2014)."""
    state = seed
    for step in (0, image):
        state = (state * 0xD1342543DE82EF95 + step + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state >> 1
