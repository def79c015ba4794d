"""Carry features of one picture's region into another's (RIEBench; Surkov et al. 2025, arXiv 2410.22366).

Two runs are recorded, with the mask of the object in each. With zbar_i(t) the mean code over the masked tokens:

    score_i   (S1) of SAeUron between source-mask and target-mask tokens, at the first step
    S, T      the n features with the largest, and with the smallest score
    delta[mask_src] += m sum_{i in S} zbar_i^src(t) d_i
    delta[mask_tgt] -= m sum_{j in T} zbar_j^tgt(t) d_j

computed before the edited run, so that run needs no dictionary.
"""

from __future__ import annotations

from typing import Any

import torch

from probe.errors import InvalidRequest
from probe.interventions.dictionary import Dictionary
from probe.interventions.directions import AddDirection
from probe.interventions.intervention import Intervention
from probe.interventions.patching import Patch

_EPS = 1e-8


def transport(
    source: Patch,
    target: Patch,
    source_mask: torch.Tensor,
    target_mask: torch.Tensor,
    *,
    dictionary: Dictionary,
    site: str,
    n_features: int,
    strength: float = 1.0,
    branch: str = "cond",
    **where: Any,
) -> tuple[Intervention, ...]:
    """The edit for the run of the target, which puts the source's features in and takes its own out.

    Args:
        source, target: recordings of the site, one sample each (``record_run``).
        source_mask, target_mask: (tokens,), where the object is in each picture; not empty.
        dictionary: of the site's rows.
        site: where both were recorded.
        n_features: size of S and T.
        strength: m.
        branch: branch whose recording is read and which is edited.
        **where: ``steps``, ``inject`` of the intervention.

    Raises:
        InvalidRequest: recordings and masks do not fit.
    """
    codes = []
    for name, run, mask in (("source", source, source_mask), ("target", target, target_mask)):
        inside = torch.as_tensor(mask).flatten() != 0
        if (
            branch not in run.branches
            or run.value.shape[2] != 1
            or len(inside) != run.value.shape[3]
            or not inside.any()
        ):
            raise InvalidRequest(
                f"transport: the {name} must be one sample of branch {branch!r} with a mask of its "
                f"{run.value.shape[3]} tokens that is not empty."
            )
        rows = run.value[:, run.branches.index(branch), 0]
        codes.append((torch.stack([dictionary.encode(step[inside]).mean(0) for step in rows]), inside.float()))
    (z_source, in_source), (z_target, in_target) = codes
    if len(z_source) != len(z_target) or not 1 <= n_features <= z_source.shape[1]:
        raise InvalidRequest("transport: the recordings differ in steps, or n_features is out of range.")
    score = z_source[0] / (z_source[0].sum() + _EPS) - z_target[0] / (z_target[0].sum() + _EPS)
    order = score.argsort(descending=True, stable=True)
    gained, lost = order[:n_features], order.flip(0)[:n_features]
    W = dictionary.W_dec.detach().float().cpu()
    change = (z_source[:, gained] @ W[gained])[:, None] * in_source[:, None]
    change = change - (z_target[:, lost] @ W[lost])[:, None] * in_target[:, None]
    op = AddDirection(change, timesteps=target.timesteps)
    return (Intervention(site, op, branch=branch, strength=strength, **where),)
