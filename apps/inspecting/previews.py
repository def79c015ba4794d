"""The clean image that a running pipeline expects at a step, decoded on the way.

The sampler's own ``step`` is given the guided model output and the state z; the predicted clean sample x0 follows from
the two (``probe/model/prediction.py``), and the pipeline's autoencoder makes a picture of it. Nothing is changed: the
step then runs on what it was given.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from probe.lenses.inversion import decode
from probe.model import StepClock
from probe.model.override import override
from probe.model.pipeline import Pipeline
from probe.model.prediction import clean_of, prediction_type
from probe.model.schedule import training_level


@contextmanager
def predictions(
    pipe: Pipeline, steps: Collection[int], clock: StepClock, show: Callable[[int, np.ndarray], None]
) -> Iterator[None]:
    """While it is open, ``show(step, image)`` gets the predicted clean image of each of some steps.

    Args:
        pipe: the pipeline. One without an autoencoder, or whose samples are not maps (FLUX packs them), shows nothing.
        steps: whose predictions to decode; a model that predicts noise has none where only noise is left.
        clock: open, on the same pipeline.
        show: takes the images, (H, W, 3) uint8.
    """
    if getattr(pipe, "vae", None) is None or not hasattr(pipe, "image_processor"):
        yield
        return
    kind = prediction_type(pipe.scheduler)
    step = pipe.scheduler.step

    @functools.wraps(step)
    def observed(output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        if clock.step in steps and sample.ndim == 4:
            level = training_level(pipe.scheduler, float(timestep))
            if level.signal > 0 or kind != "epsilon":
                z = sample
                if hasattr(pipe.scheduler, "scale_model_input"):
                    z = pipe.scheduler.scale_model_input(sample, timestep)
                x0 = clean_of(kind, output, z, level.signal, level.noise)
                show(clock.step, decode(pipe, x0)[0])
        return step(output, timestep, sample, *args, **kwargs)

    with override(pipe.scheduler, "step", observed):
        yield
