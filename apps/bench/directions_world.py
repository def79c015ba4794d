"""What the finders of ``denoscope bench directions`` are given, and what they give back.

Every edit at a site has the same length in units of the site, so that a strength means the same for all; an adapter's
strength counts in the change that was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

if TYPE_CHECKING:
    from activations_store import ActivationStore
    from probe.directions import Direction
    from probe.interventions import Intervention
    from probe.model import PipelineEps

Concept = tuple[str, str]
CONCEPTS: tuple[Concept, ...] = (("object", "star"), ("style", "mosaic"), ("colour", "red"), ("background", "dark"))
Edit = Callable[[int, float], Sequence["Intervention"]]


@dataclass(frozen=True)
class Found:
    """What a finder found.

    Attributes:
        edits: the interventions of (component, strength): one for all prompts, or one a prompt.
        k: components.
        direction: the vectors, where they are rows of the store's site; else None.
        products: with a Jacobian, that finding took; None for finders without one.
    """

    edits: tuple[Edit, ...]
    k: int
    direction: Direction | None = None
    products: int | None = None


@dataclass(frozen=True)
class World:
    """What the finders are given.

    Attributes:
        model: canvas.
        store: labelled training rows of one site, without the rows that score.
        site: its full name.
        sizes: (n_steps,) root mean square length of the site's rows.
        prompts, seeds: of the images that are edited and judged.
        steps: of generations.
        k: vectors of a finder that is not asked for a concept.
        iterations: of finders that are trained.
        samples: clean samples of full captions, for finders without labels.
        seed: of everything random.
    """

    model: PipelineEps
    store: ActivationStore
    site: str
    sizes: np.ndarray
    prompts: tuple[str, ...]
    seeds: range
    steps: int
    k: int
    iterations: int
    samples: torch.Tensor
    seed: int

    def at_site(self, direction: Direction, *, branch: str = "cond", inject: str = "both") -> Found:
        """Edits of one length: strength 1 is the root mean square length of the site's rows (of its map, for maps)."""
        if direction.site.endswith(":prompt"):
            from probe.interventions.guide import text_embedding

            size = text_embedding(self.model.pipe, "").float().square().sum(1).mean().sqrt().reshape(1)
        else:
            size = torch.from_numpy(self.sizes)
            size = size if len(size) == direction.n_rows else size.mean().reshape(1)
        tokens = direction.basis.shape[2] if direction.basis.ndim == 4 else 1
        scale = (size * tokens**0.5)[:, None].expand(direction.n_rows, direction.k)
        scaled = replace(direction, scale=scale, steps=None)

        def edit(component: int, strength: float) -> Sequence[Intervention]:
            return (scaled.intervention(component, strength, unit="std", branch=branch, inject=inject),)

        readable = direction.site == self.site and direction.basis.ndim == 3
        return Found((edit,), direction.k, direction if readable else None)

    def at_state(self, direction: Direction) -> Edit:
        """The edit of the sampler's state at the direction's own step: strength 1 is the state's length there, as the
        state has about unit variance.
        """
        size = float(direction.basis[0, 0].numel()) ** 0.5
        scaled = replace(direction, scale=torch.full((direction.n_rows, direction.k), size))
        return lambda component, strength: (scaled.intervention(component, strength, unit="std"),)


@dataclass(frozen=True)
class Entrant:
    """One finder of the bench.

    Attributes:
        name: in the table.
        kind: what picks the vector that stands for a concept: the finder itself (``named``), the training rows among
            the finder's vectors (``read``), or the judge among the edits (``tried``).
        find: called with the world and, for ``named``, the concept; else with None.
        rows_only: needs nothing but labelled rows, so that it can be fitted to shuffled labels.
        strengths: that are tried, if not the bench's.
    """

    name: str
    kind: Literal["named", "read", "tried"]
    find: Callable[[World, Concept | None], Found]
    rows_only: bool = False
    strengths: tuple[float, ...] | None = None


def scenes(world: World, n: int, concept: Concept) -> list[dict[str, str]]:
    """The factor values of n captions that do not show a concept."""
    from apps.prompts import balanced
    from probe.canvas import FACTORS

    factor, value = concept
    others = [v for v in FACTORS[factor] if v != value]
    made = balanced(n, seed=world.seed + 7, within={factor: others})
    return [{f: made.labels[f][i] for f in FACTORS} for i in range(n)]
