"""Nodes that fit a model and a question, found by a pilot.

A pilot of a few images measures the orthogonal gap between two columns; ``Nodes.fitted`` puts the nodes where it is.
The first round has equal cells over the whole range that the model knows, every further round is placed by the one
before, so that a narrow gap in a wide range is found.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from probe.errors import InvalidRequest
from probe.information.columns import Column
from probe.information.mutual import gap_curve
from probe.information.nodes import GapCurve, Nodes, Placement
from probe.information.table import measure
from probe.model.eps_model import EpsModel


def measure_gap(
    model: EpsModel, x: torch.Tensor, base: Column, full: Column, nodes: Nodes, *, seed: int = 0, batch: int = 64
) -> GapCurve:
    """Mean orthogonal gap between two columns; 2 x images x nodes evaluations."""
    table = measure(model, x, [base, full], nodes, seed=seed, batch=batch)
    gap = table.differences(base.name, full.name).sum(2)
    return gap_curve(0.5 * table.weight * gap, table.log_snr, table.weight, shared=nodes.shared)


def adaptive_nodes(
    model: EpsModel,
    x: torch.Tensor,
    columns: Sequence[Column],
    n: int,
    *,
    clip: float = 8.0,
    placement: Placement = "jitter",
    seed: int = 0,
    pilot: int = 48,
    rounds: int = 2,
    batch: int = 64,
) -> Nodes:
    """Nodes for the gap between two columns.

    Args:
        model: the denoiser; its range bounds the window.
        x: a few images, (B, *sample_shape).
        columns: two, without and with what is said, each with B conditions.
        n: nodes wanted.
        clip: half-width of the window in scales, before it is cut to the model's range.
        placement, seed: see ``Nodes``.
        pilot: nodes of each round.
        rounds: at least 1.

    Raises:
        InvalidRequest: not two columns, or they never differ.
    """
    if len(columns) != 2 or rounds < 1:
        raise InvalidRequest(f"adaptive_nodes: {len(columns)} columns, {rounds} rounds; expected two, and at least 1.")
    low, high = model.log_snr_range
    nodes = Nodes(pilot, (low, high), placement="gauss", model_range=(low, high))
    curve = measure_gap(model, x, columns[0], columns[1], nodes, seed=seed, batch=batch)
    for _ in range(rounds - 1):
        nodes = Nodes.fitted(pilot, curve, clip=clip, model=model, placement="gauss")
        curve = measure_gap(model, x, columns[0], columns[1], nodes, seed=seed, batch=batch)
    return Nodes.fitted(n, curve, clip=clip, model=model, placement=placement, seed=seed)
