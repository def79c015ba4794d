"""What is pushed while a model generates: features of a dictionary or a found direction, and its control.

A push adds one vector at a site, the same at every token, times a strength. The strength's unit is part of it: the 99th
percentile of a feature's code (``p99``), the site's standard deviation along a direction (``std``), or the vector as it
is (``raw``). The control is ``EqualNorm``: every row is moved exactly as far, in a random direction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.errors import InvalidOption

if TYPE_CHECKING:
    from probe.directions import Direction
    from probe.interventions import AddDirection, Intervention
    from sae import Dictionary


@dataclass(frozen=True)
class Push:
    """One unit of strength at a site.

    Attributes:
        site: full name.
        op: adds the vector; strength 1 adds one unit.
        name: for people, such as ``feature 53 at unet.up_blocks.1:out``.
        steps: steps at which it was found to hold; None for all.
    """

    site: str
    op: AddDirection
    name: str
    steps: tuple[int, ...] | None = None

    @property
    def unit(self) -> str:
        """Name of the unit: ``p99``, ``std`` or ``raw``."""
        return self.op.unit

    def edit(
        self, strength: float, *, branch: str = "both", steps: Sequence[int] | None = None, control: int | None = None
    ) -> Intervention:
        """The edit at a strength.

        Args:
            strength: in units; negative pushes the other way.
            branch: see ``Intervention``.
            steps: overrides the push's own.
            control: seed of a random direction of equal norm that takes the vector's place; None for the push itself.
        """
        from probe.interventions import Intervention, random_control

        edit = Intervention(self.site, self.op, steps=steps or self.steps, branch=branch, strength=strength)
        return edit if control is None else random_control(edit, control)

    def record(self) -> dict[str, Any]:
        """JSON values that decide what is pushed: the hash of the vector at length one unit among them."""
        size = 1.0 if self.op.scale is None else self.op.scale
        vector = (self.op.direction * (size if isinstance(size, float) else _column(size, self.op.direction))).double()
        return {
            "site": self.site,
            "name": self.name,
            "unit": self.unit,
            "vector_sha256": hashlib.sha256(vector.numpy().tobytes()).hexdigest(),
            "timesteps": self.op.timesteps,
            "steps": self.steps,
        }


def feature_push(sae: Dictionary, features: Sequence[int], units: Sequence[float] | None) -> Push:
    """Features of a dictionary, added together: sum_f unit_f W_dec[f].

    Args:
        sae: the dictionary.
        features: their numbers, without repetition.
        units: the code of each that strength 1 stands for (its 99th percentile); None for a code of 1.

    Raises:
        sae.errors.UnknownConcept: the dictionary has no such feature.
        InvalidOption: none is given, one twice, or a unit is not positive: the feature was never on.
    """
    import torch

    from probe.interventions import AddDirection
    from sae.errors import UnknownConcept

    if not features or len(set(features)) < len(features):
        raise InvalidOption(f"steer: features {list(features)}; expected at least one, each once.")
    for feature in features:
        if not 0 <= feature < sae.d_sae:
            raise UnknownConcept(f"steer: the dictionary has features 0 to {sae.d_sae - 1}, not {feature}.")
    codes = [1.0] * len(features) if units is None else [float(unit) for unit in units]
    off = [f for f, code in zip(features, codes, strict=True) if not code > 0]
    if off:
        raise InvalidOption(f"steer: feature {off[0]} was never on in the store, so it has no p99; use --unit raw.")
    rows = sae.W_dec[list(features)].detach().cpu()
    vector = (torch.tensor(codes, dtype=rows.dtype)[:, None] * rows).sum(0)
    op = AddDirection(vector) if units is None else AddDirection(vector, "p99", 1.0)
    noun = "feature" if len(features) == 1 else "features"
    return Push(sae.config.site, op, f"{noun} {', '.join(map(str, features))} at {sae.config.site}")


def direction_push(direction: Direction, component: int, unit: str) -> Push:
    """One vector of a direction, as ``Direction.intervention`` adds it.

    Args:
        direction: what a finder found.
        component: which of its vectors.
        unit: ``std`` or ``raw``.

    Raises:
        InvalidOption: it has no such vector.
    """
    if not 0 <= component < direction.k:
        raise InvalidOption(f"steer: --component {component}; the direction has 0 to {direction.k - 1}.")
    edit = direction.intervention(component, 1.0, unit="std" if unit == "std" else "raw")
    about = direction.provenance.get("finder", "direction")
    return Push(direction.site, edit.op, f"{about} {component} at {direction.site}", direction.steps)  # pyright: ignore[reportArgumentType]


def feature_units(folder: Path, features: Sequence[int]) -> list[float]:
    """99th percentiles of features' codes where they are on, from the bundle of their run.

    Raises:
        apps.errors.UnknownName: there is no bundle.
    """
    from apps.runs import run_of
    from sae import FeatureBundle

    owner, name = run_of(folder)
    bundle = FeatureBundle.open(owner.bundle(name))
    return [float(bundle.stats(feature)["p99"]) for feature in features]


def best_feature(folder: Path, factor: str, label: str) -> int:
    """The feature that tells a concept best (AUC of its largest activation in a sample), from the bundle of its run.

    Raises:
        apps.errors.UnknownName: there is no bundle. sae.errors.UnknownConcept: the bundle has no such concept.
    """
    from apps.runs import run_of
    from sae import FeatureBundle

    owner, name = run_of(folder)
    return FeatureBundle.open(owner.bundle(name)).find(factor, label, 1)[0][0]


def _column(scale: Any, direction: Any) -> Any:
    """A table of sizes (n,) beside directions (n, d) or (n, tokens, d)."""
    return scale.reshape(-1, *(1,) * (direction.ndim - 1))
