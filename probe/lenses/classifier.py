"""The denoiser as a classifier of given images (Li et al. 2023, arXiv 2303.16203): the class whose prompt predicts the
noise best, with the same noise for all classes.

The arithmetic is that of ``probe.information``: errors summed over all numbers of a sample and integrated over log SNR,
so that the softmax over classes is a posterior.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from probe.capture.noising import encode
from probe.information.classify import Labels, classify
from probe.information.columns import class_columns
from probe.information.nodes import Nodes
from probe.information.table import measure
from probe.model.pipeline import Pipeline
from probe.model.pipeline_eps import PipelineEps


def classify_images(
    pipe: Pipeline,
    images: np.ndarray,
    classes: Mapping[str, str],
    *,
    nodes: int = 16,
    prior: Mapping[str, float] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Labels:
    """Posterior of classes for given images.

    Args:
        pipe: the pipeline.
        images: uint8 (N, H, W, 3), of the size that the model draws.
        classes: name -> its prompt.
        nodes: noise levels an image, over the model's own range.
        prior: as ``classify``.
        seed: of the noise.
        batch_size: samples in a denoiser call.
        progress: called with (done, total) evaluations.

    Raises:
        InvalidRequest: as ``measure`` and ``classify``.

    Cost: images x nodes x classes denoiser evaluations, without guidance.

    Example:
        >>> from probe.canvas import render_batch
        >>> from probe.lenses import classify_images
        >>> from probe.model import load_pipeline
        >>> classes = {name: f"a {name}" for name in ("star", "cup", "fish")}
        >>> found = classify_images(load_pipeline("canvas"), render_batch(range(2)).images, classes, nodes=4)
        >>> found.posterior.shape
        (2, 3)
    """
    model = PipelineEps(pipe)
    x0 = encode(pipe, images, model.sample_shape)
    columns = class_columns(len(images), classes)
    placed = Nodes(nodes, model.log_snr_range, None, None)
    table = measure(model, x0, columns, placed, seed=seed, batch=batch_size, progress=progress)
    return classify(table, list(classes), prior)
