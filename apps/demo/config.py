"""Everything that decides the demo, in one place.

A run chooses its settings on validation prompts and seeds, never on those that are scored. What it may choose from
(sites, dictionary sizes, numbers of features) was set by hand, with sight of scored results of other choices, and so
was the pair of concepts: the demo shows what is possible, not the average concept, which ``denoscope unlearn --all``
measures.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from apps.errors import InvalidOption


@dataclass(frozen=True)
class DemoConfig:
    """The demo on canvas.

    Attributes:
        model: a canvas model: ``canvas`` or a pipeline folder that draws the same world.
        sites: sites that are recorded.
        n_prompts: labelled prompts that are collected, balanced over all factor values.
        steps: denoising steps; None for the model's own.
        guidance: guidance scale; None for the model's own.
        batch_size: images at a time.
        object_site, style_site: where the object and the style are unlearned; a dictionary is trained at each.
        object_expansion, style_expansion: features of each dictionary as a multiple of its site's width; the
            object's if both are at one site.
        k: features that are on for a row.
        train_rows: rows that a dictionary is trained on.
        train_batch: rows a step.
        lr: learning rate; None for 2e-4 / sqrt(features / 2^14), which the rest was chosen with.
        train_branches: guidance branches that a dictionary is trained on.
        n_examples: samples kept with their maps for every feature.
        object, style: what is unlearned.
        object_features, object_multipliers: settings tried on validation; one of each means no search.
        style_features, style_multipliers: the same for the style.
        relative: whether a multiplier is times the feature's mean (SAeUron's gamma) or the multiplier itself.
        branch: guidance branches that are edited.
        n_seeds: seeds of each object in each style that are scored.
        validation_target, validation_retain: validation prompts with and without the target.
        objects, styles: the part of the world that is scored; all if empty.
        steer_factor, steer_concept: the concept whose best feature is steered.
        steer_strengths: in units of the feature's 99th percentile.
        steer_branch: guidance branches that are steered.
        steer_prompts: prompts without the concept that are steered.
        n_shown: before and after pairs of each kind in the report.
        seed: of prompts, weights and order.
    """

    model: str = "canvas"
    sites: tuple[str, ...] = ("unet.up_blocks.0.attentions.1:out", "unet.up_blocks.1:out")
    n_prompts: int = 320
    steps: int | None = None
    guidance: float | None = None
    batch_size: int = 16
    object_site: str = "unet.up_blocks.0.attentions.1:out"
    style_site: str = "unet.up_blocks.1:out"
    object_expansion: int = 2
    style_expansion: int = 1
    k: int = 8
    train_rows: int = 800_000
    train_batch: int = 2048
    lr: float | None = None
    train_branches: tuple[str, ...] = ("uncond", "cond")
    n_examples: int = 12
    object: str = "star"
    style: str = "mosaic"
    object_features: tuple[int, ...] = (2, 3)
    object_multipliers: tuple[float, ...] = (-8.0, -12.0, -20.0)
    style_features: tuple[int, ...] = (2, 4, 6)
    style_multipliers: tuple[float, ...] = (-1.0, -2.0)
    relative: bool = False
    branch: str = "both"
    n_seeds: int = 2
    validation_target: int = 24
    validation_retain: int = 12
    objects: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    steer_factor: str = "colour"
    steer_concept: str = "red"
    steer_strengths: tuple[float, ...] = (-0.75, -0.5, 0.0, 0.5, 0.75)
    steer_branch: str = "both"
    steer_prompts: int = 8
    n_shown: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("object_site", "style_site"):
            if getattr(self, name) not in self.sites:
                raise InvalidOption(
                    f"demo: {name} {getattr(self, name)!r} is not one of the sites {', '.join(self.sites)}."
                )
        for name, chosen, part in (("object", self.object, self.objects), ("style", self.style, self.styles)):
            if part and (chosen not in part or len(part) < 2):
                raise InvalidOption(
                    f"demo: {name}s must hold {chosen!r} and at least one other, got {', '.join(part)}."
                )
        for name in ("n_prompts", "batch_size", "n_seeds", "train_rows", "steer_prompts", "n_shown"):
            if getattr(self, name) < 1:
                raise InvalidOption(f"demo: {name} must be at least 1, got {getattr(self, name)}.")
        if 0.0 not in self.steer_strengths:
            raise InvalidOption("demo: steer_strengths must contain 0, the unedited model.")

    @classmethod
    def miniature(cls, **changes: Any) -> DemoConfig:
        """Every stage of the demo at a size that proves the plumbing and nothing else."""
        small = cls(
            n_prompts=16,
            steps=3,
            guidance=2.0,
            batch_size=8,
            sites=("unet.mid_block:out",),
            object_site="unet.mid_block:out",
            style_site="unet.mid_block:out",
            object_expansion=1,
            k=4,
            train_rows=2048,
            train_batch=256,
            n_examples=4,
            object_features=(1, 2),
            object_multipliers=(-1.0,),
            style_features=(1,),
            style_multipliers=(-1.0,),
            n_seeds=1,
            validation_target=2,
            validation_retain=2,
            objects=("star", "heart"),
            styles=("flat", "mosaic"),
            steer_strengths=(-2.0, 0.0, 2.0),
            steer_prompts=1,
            n_shown=2,
        )
        return replace(small, **changes)

    @property
    def dictionary_sites(self) -> tuple[str, ...]:
        """Sites that get a dictionary, without repetition."""
        return tuple(dict.fromkeys((self.object_site, self.style_site)))

    def expansion(self, site: str) -> int:
        """Features of a site's dictionary as a multiple of the site's width."""
        return self.object_expansion if site == self.object_site else self.style_expansion

    def rate(self, features: int) -> float:
        """Learning rate of a dictionary with so many features."""
        return self.lr if self.lr is not None else 2e-4 / (features / 2**14) ** 0.5

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return json.loads(json.dumps(asdict(self)))

    @property
    def content_hash(self) -> str:
        """SHA-256 of the JSON form, hexadecimal."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()
