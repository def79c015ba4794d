"""Push one feature up and down: the operation, and its control."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probe.interventions import AddDirection
    from sae import Dictionary


def direction_op(sae: Dictionary, feature: int, unit: float | None, *, control: bool = False) -> AddDirection:
    """Add a feature's decoder row, or a random direction of the same length.

    Args:
        sae: the dictionary.
        feature: its number.
        unit: the code that strength 1 stands for (its 99th percentile); None for a code of 1.
        control: a random direction instead, the same for every call: what any push of that size does.
    """
    import torch

    from probe.interventions import AddDirection, add_feature

    name, scale = ("raw", None) if unit is None else ("p99", unit)
    if not control:
        return add_feature(sae, feature, unit=name, scale=scale)
    row = sae.W_dec[feature].detach().cpu()
    drawn = torch.randn(row.shape, generator=torch.Generator().manual_seed(feature))
    return AddDirection(drawn * (row.norm() / drawn.norm()), name, scale)
