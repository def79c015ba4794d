"""The picture of an audit: where the concept can be read, site by step, before and after the edit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from apps.images import heat_colours, labelled_grid

if TYPE_CHECKING:
    from probe.unlearning.audit_result import AuditResult

_KINDS = (("unedited", "unedited"), ("unedited", "edited"), ("edited", "edited"))
_SIDE = 44


def heat_map(result: AuditResult) -> np.ndarray:
    """Balanced accuracy of each kind of probe, (H, W, 3) uint8.

    A row is a kind of probe at a site, a column a step. One scale: 0.5 (chance) is dark, 1 is light; the number stands
    under each cell.
    """
    cells, captions, labels = [], [], []
    n_steps = 0
    for trained, tested in _KINDS:
        sites, steps, values = result.table(trained, tested)
        n_steps = max(n_steps, len(steps))
        for site, row in zip(sites, values, strict=True):
            colours = heat_colours(2.0 * (np.nan_to_num(row, nan=0.5) - 0.5))
            cells.append([np.broadcast_to(colour, (_SIDE, _SIDE, 3)).copy() for colour in colours])
            captions.append([f"{value:.2f}" for value in row])
            labels.append(f"{trained} to {tested}, {site.removeprefix('unet.').removesuffix(':out')}")
    return labelled_grid(
        cells,
        row_labels=labels,
        column_labels=[f"step {i}" for i in range(n_steps)],
        captions=captions,
        side=_SIDE,
        title=f"{result.factor} {result.label}: accuracy of probes, trained on one model and tested on another",
    )
