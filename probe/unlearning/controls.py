"""What a score must be read against: the unedited model, and the same push in a direction that means nothing.

The unedited model's UA is the judge's and the model's own error. An edit that forgets no more than its random control,
which moves every row as far, has only disturbed the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

from probe.interventions.equal_norm import random_control
from probe.interventions.intervention import Intervention


def no_edit() -> tuple[Intervention, ...]:
    """The unedited model."""
    return ()


def random_controls(edits: Sequence[Intervention], seed: int = 0) -> tuple[Intervention, ...]:
    """Every edit in a random direction of equal norm: same site, steps, branch, strength and mask.

    Args:
        edits: of one target.
        seed: of the random directions; edit i uses seed + i.
    """
    return tuple(random_control(edit, seed + i) for i, edit in enumerate(edits))
