"""Diffusion Lens: images from every layer of the text encoder (Toker et al. 2024, arXiv 2403.05846).

At layer l the layers behind it are left out, and the encoder's final normalisation is applied to what layer l gave:
the denoiser is handed what the encoder knew so far. l = 0 is the embedding of the tokens alone, l = L the whole
encoder. The empty or negative prompt is encoded by the whole encoder.

A layer is left out by an intervention: what it adds to its input (port ``delta``) is set to zero. So the lens works for
every encoder whose layers are residual, and a single image can be drawn by a recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from probe.capture.sites import Site
from probe.capture.tensors import find_output, to_rows
from probe.errors import InvalidRequest, UnsupportedPipeline
from probe.interventions.intervention import Intervention
from probe.interventions.patching import Replace
from probe.model.conditioning import denoiser_call
from probe.model.generate import generate, model_label
from probe.model.pipeline import Pipeline


@dataclass(frozen=True, eq=False)
class TextLens:
    """What was drawn from each layer.

    Attributes:
        layers: numbers, 0 for the token embedding.
        n_layers: of the encoder.
        prompts, seeds: of the samples.
        images: uint8 (layers, samples, H, W, 3).
    """

    layers: tuple[int, ...]
    n_layers: int
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    images: np.ndarray = field(repr=False)

    def first_layer(self, seen: np.ndarray) -> np.ndarray:
        """For each sample the first layer from which on the concept is seen, NaN if it is not seen at the last.

        Args:
            seen: (layers, samples) bool, such as the judge's answers for ``images``.
        """
        found = np.asarray(seen, bool)
        if found.shape != self.images.shape[:2]:
            raise InvalidRequest(f"first_layer: answers {found.shape} for images {self.images.shape[:2]}.")
        stays = np.logical_and.accumulate(found[::-1])[::-1]  # seen here and at all later layers
        first = np.asarray(self.layers, float)[stays.argmax(0)]
        return np.where(stays.any(0), first, np.nan)


def text_lens(
    pipe: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    layers: Sequence[int] | None = None,
    encoder: str = "text_encoder",
    steps: int | None = None,
    guidance: float | None = None,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> TextLens:
    """Draw every prompt from every layer of a text encoder, with the same seeds.

    Args:
        pipe: the pipeline.
        prompts, seeds: N samples.
        layers: numbers from 0; all if None.
        encoder: of a pipeline with several; the others are left whole.
        steps, guidance, batch_size: as ``generate``.
        progress: called with (done, total) images.

    Raises:
        InvalidRequest: a layer that does not exist.
        UnsupportedPipeline: there is no such encoder, or its layers are not found.

    Cost: a generation a layer.

    Example:
        >>> from probe.lenses import text_lens
        >>> from probe.model import load_pipeline
        >>> found = text_lens(load_pipeline("canvas"), ["a red star in flat style"], [0], steps=2)
        >>> found.layers, found.images.shape
        ((0, 1, 2), (3, 1, 64, 64, 3))
    """
    paths = encoder_layers(pipe, encoder)
    chosen = tuple(range(len(paths) + 1)) if layers is None else tuple(layers)
    if not chosen or not all(0 <= layer <= len(paths) for layer in chosen):
        raise InvalidRequest(f"text_lens: layers {chosen}; {encoder} has layers 0 to {len(paths)}.")
    drawn = []
    for number, layer in enumerate(chosen):
        drawn.append(
            generate(
                pipe, prompts, seeds, steps=steps, guidance=guidance, batch_size=batch_size,
                interventions=without_layers(pipe, paths[layer:]),
                progress=None if progress is None else _shifted(progress, number * len(prompts), len(chosen)),
            )
        )  # fmt: skip
    return TextLens(chosen, len(paths), tuple(prompts), tuple(seeds), np.stack(drawn))


def encoder_layers(pipe: Pipeline, encoder: str = "text_encoder") -> list[str]:
    """Paths of a text encoder's layers, first to last: the longest list of modules in it.

    Raises:
        UnsupportedPipeline: there is no such encoder, or no such list.
    """
    module = getattr(pipe, encoder, None)
    lists = (
        [(name, m) for name, m in module.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m)]
        if isinstance(module, torch.nn.Module)
        else []
    )
    if not lists:
        raise UnsupportedPipeline(f"{model_label(pipe)} has no {encoder!r} with a list of layers.")
    name, found = max(lists, key=lambda item: len(item[1]))
    return [f"{encoder}.{name}.{i}" for i in range(len(found))]


def without_layers(pipe: Pipeline, paths: Sequence[str]) -> list[Intervention]:
    """Interventions that leave layers of a text encoder out on the prompt's pass. Costs one pass of the encoder."""
    shapes: dict[str, torch.Size] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            shapes[path] = to_rows(path, find_output(path, output, args, kwargs).tensor).shape

        return hook

    handles = [Site(path).module(pipe).register_forward_hook(note(path), with_kwargs=True) for path in paths]
    try:
        if paths:
            denoiser_call(pipe, [""], 1.0)
    finally:
        for handle in handles:
            handle.remove()
    return [Intervention(Site(path, "delta"), Replace(torch.zeros(shapes[path][1:])), branch="cond") for path in paths]


def _shifted(progress: Callable[[int, int], None], before: int, times: int) -> Callable[[int, int], None]:
    return lambda done, total: progress(before + done, total * times)
