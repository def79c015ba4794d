"""D-Scope's steering: add a direction at the size that the site itself has at each step (2026).

    h'_p = h_p + M_p rho R(t) u,     u = d_i / |d_i|,     R(t) = root mean square over rows of |h(t)|

rho is so the same share of the activation at every step and every site. rho < 0 removes.
"""

from __future__ import annotations

from typing import Any

import torch

from activations_store import ActivationStore
from probe.errors import InvalidRequest
from probe.interventions.directions import AddDirection
from probe.interventions.intervention import Intervention
from probe.interventions.units import site_scale


def norm_matched(
    store: ActivationStore, site: str, direction: torch.Tensor, rho: float, **where: Any
) -> tuple[Intervention, ...]:
    """The edit that adds a direction, matched to the site's norm.

    Args:
        store: recorded the site; its statistics give R(t).
        site: where the direction lives.
        direction: (d,), such as a row of a dictionary's W_dec.
        rho: strength, in shares of R(t).
        **where: ``steps``, ``branch``, ``mask``, ``inject`` of the intervention.
    """
    length = float(torch.as_tensor(direction).norm())
    if not length > 0:
        raise InvalidRequest("norm_matched: the direction has no length.")
    scale, timesteps = site_scale(store, site, "rms")
    op = AddDirection(torch.as_tensor(direction) / length, "rms", torch.from_numpy(scale), timesteps)
    return (Intervention(site, op, strength=rho, **where),)
