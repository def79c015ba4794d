"""A pipeline as the maker of a recipe had it.

A recipe belongs to weights, a number format and a sampler. The folder that the weights came from may name another
sampler and hold more: UnlearnCanvas is drawn with DDIM from a folder that says PNDM, in half precision on an
accelerator, without the safety checker, which blackens images. All of that can be had from the same folder. Whether the
outcome is the recipe's model is decided by the fingerprint, as for every other pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probe.interventions import Intervention
    from probe.model.pipeline import Pipeline

_DTYPES = ("float32", "float16", "bfloat16")


def open_recipe(folder: Path, pipe: Pipeline) -> tuple[tuple[Intervention, ...], list[str]]:
    """The interventions of a recipe, and what had to be changed about a pipeline for them, a line each.

    Args:
        folder: of the recipe.
        pipe: changed in place, also if the recipe is refused in the end.

    Raises:
        probe.errors.RecipeNotFound, RecipeError: there is no recipe, or it is damaged.
        probe.errors.WrongModel: it belongs to another model.
    """
    from probe.interventions import Recipe

    said = _as_made(pipe, Recipe.load(folder, None).fingerprint)
    return Recipe.load(folder, pipe).interventions, said


def model_of_recipe(folder: Path | None) -> str | None:
    """Name of the model that a recipe was made for; None without a recipe.

    Raises:
        probe.errors.RecipeNotFound, RecipeError: there is no recipe, or it is damaged.
    """
    from probe.interventions import Recipe

    return None if folder is None else Recipe.load(folder, None).fingerprint.get("name")


def _as_made(pipe: Pipeline, made_for: Mapping[str, Any]) -> list[str]:
    import diffusers
    import torch

    from probe.model import fingerprint

    said = []
    found = fingerprint(pipe)
    dtype = made_for.get("dtype")
    if dtype in _DTYPES and dtype != found["dtype"]:
        pipe.to(getattr(torch, dtype))
        said.append(f"weights as {dtype}")
    if fingerprint(pipe)["weights_hash"] != made_for.get("weights_hash") and getattr(pipe, "safety_checker", None):
        pipe.safety_checker = None
        pipe.register_to_config(requires_safety_checker=False)
        said.append("without the safety checker")
    if fingerprint(pipe)["weights_hash"] != made_for.get("weights_hash"):
        return said  # another model, which is to be named as it is
    name = str(made_for.get("scheduler"))
    sampler = getattr(diffusers, name, None)
    if name != found["scheduler"] and isinstance(sampler, type) and issubclass(sampler, diffusers.SchedulerMixin):
        pipe.scheduler = sampler.from_config(pipe.scheduler.config)  # type: ignore[attr-defined]
        said.append(f"sampler {name} instead of {found['scheduler']}")
    return said
