"""Parallel transport: the same combination of other vectors.

    v' = sum_j (source_j . v) target_j

for orthonormal bases of corresponding vectors: those of two points, or the left and right singular vectors of one
Jacobian, which may be at different sites.
"""

from __future__ import annotations

from dataclasses import replace

from probe.directions.direction import Direction
from probe.errors import InvalidDirection


def transported(direction: Direction, source: Direction, target: Direction) -> Direction:
    """A direction at the place of other vectors.

    Args:
        direction: n rows, or one.
        source: orthonormal basis at the direction's site; as many rows, or one.
        target: the corresponding vectors.

    Returns:
        At the target's site; what the source does not span is lost, and lengths shrink by it.

    Raises:
        InvalidDirection: source and target do not correspond, or the source is in another space.
    """
    direction.check_space(source)
    rows = {source.n_rows, target.n_rows, direction.n_rows} - {1}
    if source.k != target.k or len(rows) > 1:
        raise InvalidDirection(
            f"transported: {source.n_rows} x {source.k} vectors do not correspond to {target.n_rows} x {target.k}."
        )
    moved = (direction.flat @ source.flat.mT) @ target.flat
    about = {"transported": {"from": source.hash, "to": target.hash}}
    return replace(
        target,
        basis=moved.reshape(*moved.shape[:2], *target.basis.shape[2:]).to(target.basis.dtype),
        scale=direction.scales.expand(len(moved), -1),
        timesteps=target.timesteps if target.n_rows == len(moved) else direction.timesteps,
        provenance=dict(direction.provenance) | about,
    )
