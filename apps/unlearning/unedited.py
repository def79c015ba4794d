"""The unedited model's images, kept by prompt and seed: whatever is asked for later, none is drawn twice.

    unlearn/unedited/SETTINGS/PROMPT-AND-SEED.png

Both names are hashes: of the model and of how it draws, and of what is drawn. So commands with other targets, other
numbers of seeds, or several concepts at once share one folder, and an interrupted one goes on after its last batch.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from apps.images import read_image, save_png
from apps.progress import Progress
from apps.stages import key_hash

if TYPE_CHECKING:
    from apps.runs import Run
    from apps.unlearning.edits import Sampling
    from probe.model.pipeline import Pipeline
    from probe.unlearning import PromptGrid


def unedited_images(
    run: Run,
    pipe: Pipeline,
    grid: PromptGrid,
    sampling: Sampling,
    *,
    progress: Progress | None = None,
) -> np.ndarray:
    """Images of a grid; those that are not there yet are drawn.

    Args:
        run: the work folder.
        pipe: the model.
        grid: at least one prompt.
        sampling: how images are drawn.
        progress: called with (done, total) images; not called if all are there.

    Returns:
        uint8 (N, height, width, 3).
    """
    from probe.model import fingerprint, generate
    from probe.model.fingerprint import fingerprint_hash

    settings = asdict(sampling)
    key = {"model": fingerprint_hash(fingerprint(pipe)), "sampling": settings}
    folder = run.new("unlearn", "unedited") / key_hash(key)[:16]
    names = [key_hash({"prompt": prompt, "seed": seed}) for prompt, seed in zip(grid.prompts, grid.seeds, strict=True)]
    paths = [folder / f"{name[:32]}.png" for name in names]
    missing = [row for row, path in enumerate(paths) if not path.is_file()]
    done = len(paths) - len(missing)
    for start in range(0, len(missing), sampling.batch_size):
        rows = missing[start : start + sampling.batch_size]
        batch = grid.select(rows)
        images = generate(pipe, batch.prompts, batch.seeds, **settings)
        for row, image in zip(rows, images, strict=True):
            save_png(paths[row], image)
        if progress is not None:
            progress(done + start + len(rows), len(paths))
    return np.stack([read_image(path) for path in paths])
