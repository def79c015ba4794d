"""Apply one intervention to one tensor: rows, guidance branches, mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from probe.capture.tensors import from_rows, to_rows
from probe.errors import InvalidIntervention
from probe.interventions.clock import check_branches
from probe.interventions.intervention import Intervention
from probe.interventions.ops import Moment, StepContext, Weight
from probe.interventions.places import Placed

Predict = Callable[[torch.Tensor], torch.Tensor]


def edit(
    x: torch.Tensor,
    where: Placed,
    strength: float,
    branches: Sequence[str],
    moment: Moment,
    predict: Predict | None = None,
) -> torch.Tensor:
    """The edited tensor, or x itself if nothing changes.

    Args:
        x: tensor of the site, branches along its batch; for attention maps (batch, heads, queries, keys).
        where: the edit and its place.
        strength: at this moment.
        branches: of the batch, in order.
        moment: for the operation's tables.
        predict: see ``StepContext``.
    """
    site, item = where.site, where.item
    check_branches([item], tuple(branches))
    rows = to_rows(str(site), x)
    if rows.shape[0] % len(branches):
        raise InvalidIntervention(f"{site}: batch {rows.shape[0]} does not divide into {'+'.join(branches)}.")
    signs = [item.sign(branch) for branch in branches]
    weight = _weight(item, strength, rows, x, where)
    # A gradient that comes in goes out: attacks optimise a prompt through the edits.
    with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
        whole = branches[0] if len(branches) == 1 else ""
        if all(sign == 1.0 for sign in signs) and (whole or not item.op.by_branch):
            edited = item.op.apply(rows, weight, StepContext(str(site), *moment, whole, predict))
            return x if edited is rows else from_rows(edited, x)
        parts = rows.chunk(len(signs))
        new = [
            item.op.apply(part, weight * sign, StepContext(str(site), *moment, branch, predict)) if sign else part
            for part, sign, branch in zip(parts, signs, branches, strict=True)
        ]
        if all(a is b for a, b in zip(new, parts, strict=True)):
            return x
        return from_rows(torch.cat(new), x)


def _weight(item: Intervention, strength: float, rows: torch.Tensor, x: torch.Tensor, where: Placed) -> Weight:
    """Strength times mask: a number, or (tokens, 1)."""
    if item.mask is None:
        return strength
    mask = torch.as_tensor(item.mask)
    mask = _attention_mask(mask, x) if where.kind == "probs" else _cell_mask(mask, x, rows, where)
    if len(mask) != rows.shape[1]:
        raise InvalidIntervention(f"{where.site}: the mask has {len(mask)} cells, the site {rows.shape[1]} tokens.")
    return strength * mask.to(rows)[:, None]


def _cell_mask(mask: torch.Tensor, x: torch.Tensor, rows: torch.Tensor, where: Placed) -> torch.Tensor:
    if mask.ndim == 1:
        return mask
    if x.ndim != 4:
        raise InvalidIntervention(
            f"{where.site}: the mask is a picture of {tuple(mask.shape)}, but this site has {rows.shape[1]} tokens "
            "without a grid; give a mask of (tokens,)."
        )
    if mask.shape != x.shape[2:]:
        mode = "area" if mask.shape[0] >= x.shape[2] else "nearest"
        mask = F.interpolate(mask[None, None], size=tuple(x.shape[2:]), mode=mode)[0, 0]
    return mask.flatten()


def _attention_mask(mask: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    """A mask over the cells of a map: (queries, keys), (keys,), or a picture with as many cells as queries."""
    queries, keys = probs.shape[2:]
    if mask.shape == (queries, keys):
        return mask.flatten()
    if mask.shape == (keys,):
        return mask.expand(queries, keys).flatten()
    if mask.ndim == 2 and mask.numel() == queries:
        return mask.reshape(-1, 1).expand(queries, keys).flatten()
    return mask.flatten()
