"""Does the edited model still know what the concept looks like? Classification of its images by denoising error.

An image that shows the concept is noised, and the edited model denoises it under its caption with the concept's word
and with the words of other labels. With errors summed over the log SNR of the sampler's steps and shared noise,

    P(label | x) = softmax [ -1/2 sum_j w_j ||n - eps(z_j, caption with label)||^2 ]

(Li et al. 2023, https://arxiv.org/abs/2303.16203; ``probe.information.classify``). No picture is drawn: an edit that
only keeps the sampler from drawing the concept leaves this as it was. Compared with the unedited model, with images of
other labels (how often the concept is named for them), and with chance, 1 / number of labels.

The conditional prediction counts, without guidance: a guided noise is no posterior mean. Steps of pure noise say
nothing of an image and are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import torch

from probe.errors import InvalidRequest
from probe.information.classify import Labels, classify
from probe.information.nodes import Nodes
from probe.information.table import NodeTable
from probe.interventions.apply import intervene
from probe.model.schedule import schedule
from probe.unlearning.attacks.loss import Batch, DenoisingLoss
from probe.unlearning.attacks.task import AttackTask


def classify_images(
    task: AttackTask,
    words: Sequence[str],
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Labels:
    """Posterior over words for each reference of a task; references x words x steps denoiser evaluations.

    Args:
        task: model, edits, steps, and images with their captions, each holding the task's word.
        words: the classes; the task's own word among them.
        seed: of the noise.
        progress: called with (done, total) steps.

    Raises:
        InvalidRequest: a caption lacks the word, or the task's word is no class.
    """
    name = task.name
    captions = list(task.captions)
    if name not in words or not captions or any(len(_pattern(name).findall(text)) != 1 for text in captions):
        raise InvalidRequest(
            f"audit: expected captions that hold {name!r} once each, and {name!r} among the words {', '.join(words)}."
        )
    loss = DenoisingLoss(task, guided=False)
    log_snr = np.array(schedule(task.pipe, task.steps)[1])
    steps = [i for i, level in enumerate(log_snr) if np.isfinite(level) and abs(level) < _PURE]
    width = _cells(log_snr[steps])
    n = len(captions)
    errors = np.zeros((n, len(steps), 1, len(words)), np.float64)
    with torch.no_grad(), intervene(task.pipe, task.interventions):
        for j, step in enumerate(steps):
            draw = torch.Generator("cpu").manual_seed(1_000_003 * seed + step)
            noise = torch.randn(loss.x0.shape, generator=draw).to(loss.x0)
            for k, word in enumerate(words):
                texts = [_pattern(name).sub(word, text) for text in captions]
                for start in range(0, n, task.batch_size):
                    part = slice(start, start + task.batch_size)
                    batch = Batch(tuple(range(n)[part]), loss.x0[part], noise[part], step)
                    errors[part, j, 0, k] = loss.noise_error(texts[part], batch).double().cpu().numpy()
            if progress is not None:
                progress(j + 1, len(steps))
    table = NodeTable(
        columns=tuple(words),
        nodes=Nodes(len(steps), (float(log_snr[steps].min()) - 1e-6, float(log_snr[steps].max()) + 1e-6)),
        log_snr=np.tile(log_snr[steps], (n, 1)),
        weight=np.tile(width, (n, 1)),
        error=errors,
        difference=np.zeros((n, len(steps), 1, len(words) * (len(words) - 1) // 2), np.float32),
        dimensions=int(loss.x0[0].numel()),
        grid=None,
        x=loss.x0.flatten(1).cpu().numpy(),
    )
    return classify(table, list(words))


_PURE = 25.0  # log-SNRs beyond are pure noise, or none


def _cells(levels: np.ndarray) -> np.ndarray:
    """Width in log SNR that each level stands for: half the way to its neighbours."""
    if len(levels) == 1:
        return np.ones(1)
    gaps = np.abs(np.diff(levels))
    return (np.r_[gaps[:1], gaps] + np.r_[gaps, gaps[-1:]]) / 2


def _pattern(word: str) -> re.Pattern[str]:
    return re.compile(rf"\b{re.escape(word)}\b")
