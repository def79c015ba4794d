"""Generate images through the pipeline's own ``__call__``, so that what is measured is what a diffusers user
runs.

Every prompt has its own generator, seeded with its own seed, so an image's noise does not depend on which
other prompts share its batch. The arithmetic of a batch may still differ from that of its members in the last
bit on some CPUs (kernels are chosen by shape); for bit-equal reruns keep the batch size and the order of the
prompts.
"""

from __future__ import annotations

import inspect
import json
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from probe.errors import EmptyPrompts, InvalidRequest, UnsupportedPipeline
from probe.model.pipeline import Pipeline

if TYPE_CHECKING:
    from probe.interventions.intervention import Intervention

_PICTURES = ("image", "mask_image", "control_image", "reference_image")
"""Arguments of ``__call__`` that take a picture."""
Progress = Callable[[int, int], None]
"""Called with (done, total) images."""


class GenerationDefaults(NamedTuple):
    """Step count and guidance scale that a model is meant to be run with."""

    steps: int
    guidance: float


def generation_defaults(pipe: Pipeline) -> GenerationDefaults:
    """The model's own defaults: ``denoscope.json`` in its folder if there is one, else those of its
    ``__call__``.

    Raises:
        InvalidRequest: the file is there, but is not ``{"steps": int >= 1, "guidance": number >= 0}``.
    """
    source = pipe.config.get("_name_or_path")
    path = Path(source) / "denoscope.json" if source else None
    if path is not None and path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            steps, guidance = found["steps"], found["guidance"]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidRequest(
                f"{path.name} of {model_label(pipe)}: expected steps and guidance, got {error!r}."
            ) from error
        return GenerationDefaults(_checked_steps(steps), _checked_guidance(guidance))
    parameters = inspect.signature(pipe.__call__).parameters
    steps = parameters["num_inference_steps"].default if "num_inference_steps" in parameters else 50
    guidance = parameters["guidance_scale"].default if "guidance_scale" in parameters else 1.0
    return GenerationDefaults(int(steps), float(guidance))


def generate(
    pipe: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    guidance: float | None = None,
    batch_size: int = 16,
    interventions: Sequence[Intervention] = (),
    progress: Progress | None = None,
) -> np.ndarray:
    """Generate one image for each (prompt, seed).

    Args:
        pipe: any text-to-image pipeline, or a class-conditional one (DiT), whose prompts are class names or
            numbers.
        prompts: N prompts.
        seeds: N seeds of the initial noise.
        steps: denoising steps; the model's default if None.
        guidance: guidance scale; the model's default if None.
        batch_size: images at a time.
        interventions: edits to apply, in order (see ``probe.interventions``).
        progress: called with (done, total) after each batch.

    Returns:
        uint8 array (N, height, width, 3).

    Raises:
        EmptyPrompts, InvalidRequest: before any work starts.
        UnsupportedPipeline: the pipeline takes neither prompts nor class labels.
    """
    default = generation_defaults(pipe)
    steps = default.steps if steps is None else _checked_steps(steps)
    guidance = default.guidance if guidance is None else _checked_guidance(guidance)
    _check_prompts(prompts, seeds, batch_size)
    images: list[np.ndarray] = []
    with _edited(pipe, interventions):
        for start in range(0, len(prompts), batch_size):
            stop = min(start + batch_size, len(prompts))
            images.append(run_batch(pipe, prompts[start:stop], seeds[start:stop], steps=steps, guidance=guidance))
            if progress is not None:
                progress(stop, len(prompts))
    return np.concatenate(images)


def run_batch(
    pipe: Pipeline, prompts: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float
) -> np.ndarray:
    """One call of the pipeline: uint8 images (B, height, width, 3)."""
    kwargs = call_kwargs(pipe, prompts, seeds, steps=steps, guidance=guidance)
    with no_progress_bar(pipe):
        found = call_pipeline(pipe, kwargs)
    images = getattr(found, "images", None)
    if images is None:
        raise UnsupportedPipeline(
            f"{type(pipe).__name__} returns {type(found).__name__}, which has no images; only pipelines that draw an "
            "image from a prompt are supported."
        )
    return (np.asarray(images, dtype=np.float32) * 255).round().clip(0, 255).astype(np.uint8)


def call_kwargs(
    pipe: Pipeline, prompts: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float
) -> dict[str, Any]:
    """Arguments of ``pipe.__call__`` for a batch, as far as its signature takes them.

    Raises:
        UnsupportedPipeline: the pipeline takes neither prompts nor class labels.
    """
    parameters = inspect.signature(pipe.__call__).parameters
    kwargs: dict[str, Any] = {
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "generator": [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds],
        "output_type": "np",
    }
    kwargs = {key: value for key, value in kwargs.items() if key in parameters}
    if "prompt" in parameters:
        kwargs["prompt"] = list(prompts)
    elif "class_labels" in parameters:
        kwargs["class_labels"] = _class_labels(pipe, prompts)
    else:
        raise UnsupportedPipeline(
            f"{type(pipe).__name__} takes neither 'prompt' nor 'class_labels'; only conditional generation "
            "is supported."
        )
    return kwargs


def call_pipeline(pipe: Pipeline, kwargs: dict[str, Any]) -> Any:
    """What the pipeline's ``__call__`` returns.

    Raises:
        UnsupportedPipeline: it refuses to draw from a prompt alone.
    """
    try:
        return pipe(**kwargs)
    except (TypeError, ValueError, AttributeError) as error:
        given = [name for name in _PICTURES if name in inspect.signature(pipe.__call__).parameters]
        *_, last = traceback.walk_tb(error.__traceback__)
        if not given or not last[0].f_globals.get("__name__", "").startswith("diffusers."):
            raise  # not the pipeline's own word
        raise UnsupportedPipeline(
            f"{model_label(pipe)} does not draw from a prompt alone (it takes {', '.join(given)}): {error} Load the "
            "same weights as a text-to-image pipeline, AutoPipelineForText2Image.from_pretrained(folder), save it with "
            "save_pretrained, and give its folder. In Python, interventions also work around a call of your own."
        ) from error


@contextmanager
def no_progress_bar(pipe: Pipeline) -> Iterator[None]:
    """Switch the pipeline's own progress bar off, and back to what it was."""
    before: dict[str, Any] | None = getattr(pipe, "_progress_bar_config", None)
    pipe.set_progress_bar_config(**((before or {}) | {"disable": True}))
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**(before or {}))


def model_label(pipe: Pipeline) -> str:
    """Class and name of a pipeline, for messages."""
    from probe.model.fingerprint import model_name

    return f"{type(pipe).__name__} {model_name(pipe)!r}"


@contextmanager
def _edited(pipe: Pipeline, interventions: Sequence[Intervention]) -> Iterator[None]:
    if not interventions:
        yield
        return
    from probe.interventions.apply import intervene  # imported late: interventions build on this package

    with intervene(pipe, interventions):
        yield


def _class_labels(pipe: Pipeline, prompts: Sequence[str]) -> list[int]:
    lookup = getattr(pipe, "labels", None) or {}
    labels = []
    for prompt in prompts:
        if prompt.strip().isdigit():
            labels.append(int(prompt))
        elif prompt in lookup:
            labels.append(int(lookup[prompt]))
        else:
            raise InvalidRequest(
                f"{type(pipe).__name__} is conditioned on classes: {prompt!r} is neither a class number nor "
                f"one of its {len(lookup)} class names."
            )
    return labels


def _check_prompts(prompts: Sequence[str], seeds: Sequence[int], batch_size: int) -> None:
    if isinstance(prompts, str):
        raise InvalidRequest(f"generate: prompts must be a list of strings, got the string {prompts!r}.")
    if len(prompts) == 0:
        raise EmptyPrompts("generate: there are no prompts; give at least one.")
    if len(prompts) != len(seeds):
        raise InvalidRequest(f"generate: {len(prompts)} prompts but {len(seeds)} seeds; give one seed for each prompt.")
    if batch_size < 1:
        raise InvalidRequest(f"generate: batch_size must be at least 1, got {batch_size}.")


def _checked_steps(steps: Any) -> int:
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InvalidRequest(f"steps must be an integer of at least 1, got {steps!r}.")
    return steps


def _checked_guidance(guidance: Any) -> float:
    if not isinstance(guidance, int | float) or isinstance(guidance, bool) or not 0 <= guidance < float("inf"):
        raise InvalidRequest(f"guidance must be a finite number of at least 0, got {guidance!r}.")
    return float(guidance)
