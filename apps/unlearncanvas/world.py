"""UnlearnCanvas as a world of the unlearning benchmark: Stable Diffusion, classifiers and data set from folders.

Every pair of an object and a style is a test prompt, so what is recorded and what settings are chosen on differ from
the test by wording and seed, not by content: the recorded prompts use the first of ``PARAPHRASES``, validation the
others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from apps.errors import InvalidOption
from apps.prompts import LabelledPrompts
from apps.unlearncanvas.protocol import (
    LABELS,
    OBJECTS,
    PARAPHRASES,
    PHOTOGRAPH,
    SEEDS,
    SIDE,
    STYLES,
    caption,
    paraphrase,
)
from apps.unlearning.edits import Sampling
from apps.unlearning.prompt_grids import VALIDATION_SEED

if TYPE_CHECKING:
    import torch

    from apps.unlearncanvas.judge import UnlearnCanvasJudge
    from probe.model.pipeline import Pipeline
    from probe.unlearning import PromptGrid

N_CALIBRATION = 400
"""Real images that tell how sure the classifiers are."""
_CANVAS_ONLY = "bench unlearn: attacks and audits know canvas only; leave them out with --world unlearncanvas."


def load_model(folder: str | Path, *, device: str | torch.device = "cpu") -> Pipeline:
    """The fine-tuned Stable Diffusion, drawing with DDIM as the protocol asks.

    Its safety checker is left out: it blackens images, which would count as forgetting. Weights are float32 on a CPU
    and float16 elsewhere.
    """
    import torch
    from diffusers import DDIMScheduler

    from probe.model import load_pipeline

    device = torch.device(device)
    pipe = load_pipeline(folder, device=device, dtype=torch.float32 if device.type == "cpu" else torch.float16)
    if not isinstance(pipe.scheduler, DDIMScheduler):
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    if getattr(pipe, "safety_checker", None) is not None:
        pipe.safety_checker = None
        pipe.register_to_config(requires_safety_checker=False)
    return pipe


@dataclass(frozen=True)
class UnlearnCanvasWorld:
    """The world, or a part of it.

    Attributes:
        sampling: how images are drawn.
        classifiers: folder with ``object.safetensors`` and ``style.safetensors``.
        data: folder of the data set, which calibrates the judge; None: no image counts as an artifact.
        n_recorded: prompts that are recorded.
        n_seeds: of the five seeds, how many are used.
        objects, styles: restrict the world; all if empty. The photographs are always drawn.
        device: where the classifiers run.
    """

    sampling: Sampling
    classifiers: Path
    data: Path | None
    n_recorded: int
    n_seeds: int = len(SEEDS)
    objects: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    device: str = "cpu"
    name: str = "unlearncanvas"

    @property
    def labels(self) -> Mapping[str, tuple[str, ...]]:
        """Objects and styles; the style of the photographs is no target."""
        styles = self.styles or tuple(style for style in STYLES if style != PHOTOGRAPH)
        return {"object": self.objects or OBJECTS, "style": styles}

    @property
    def _drawn(self) -> dict[str, tuple[str, ...]]:
        chosen = {*self.labels["style"], PHOTOGRAPH}
        return {"object": self.labels["object"], "style": tuple(style for style in STYLES if style in chosen)}

    @property
    def judge(self) -> UnlearnCanvasJudge:
        """The two classifiers, calibrated where there is a data set."""
        return self._judge

    @cached_property
    def _judge(self) -> UnlearnCanvasJudge:
        from apps.unlearncanvas.data import real_images
        from apps.unlearncanvas.judge import UnlearnCanvasJudge

        judge = UnlearnCanvasJudge.load(self.classifiers, device=self.device)
        return judge if self.data is None else judge.calibrated(real_images(self.data, N_CALIBRATION, SIDE))

    @property
    def features(self) -> Callable[[np.ndarray], np.ndarray]:
        """The classifiers' class tokens."""
        return self.judge.features

    @property
    def test(self) -> PromptGrid:
        """Every object in every style, the photographs' included, with every seed."""
        return self._test

    @cached_property
    def _test(self) -> PromptGrid:
        from probe.unlearning import PromptGrid

        return PromptGrid.product(caption, self._drawn, SEEDS[: self.n_seeds])

    @property
    def recorded(self) -> LabelledPrompts:
        """Prompts balanced over objects and styles, in a wording of their own."""
        return self._recorded

    @cached_property
    def _recorded(self) -> LabelledPrompts:
        pairs = _spread(self._drawn["object"], self._drawn["style"], self.n_recorded, seed=0)
        return _said(pairs, [0] * len(pairs))

    def validation(self, factor: str, label: str, n_target: int, n_retain: int) -> PromptGrid:
        """Prompts with and without the target, in wordings and with seeds of their own."""
        from probe.unlearning import PromptGrid

        values = self._drawn
        others = values | {factor: tuple(value for value in values[factor] if value != label)}
        asked = {**values, factor: (label,)}
        pairs = _spread(asked["object"], asked["style"], n_target, seed=1)
        pairs += _spread(others["object"], others["style"], n_retain, seed=2)
        said = _said(pairs, [1 + i % (len(PARAPHRASES) - 1) for i in range(len(pairs))])
        seeds = range(VALIDATION_SEED, VALIDATION_SEED + len(pairs))
        return PromptGrid(said.prompts, tuple(seeds), said.labels)

    def attack_task(self, *_: object, **__: object) -> NoReturn:
        """Not here: attacks search the words and pictures of canvas. Raises ``InvalidOption``."""
        raise InvalidOption(_CANVAS_ONLY)

    def audit_task(self, *_: object, **__: object) -> NoReturn:
        """Not here, as ``attack_task``."""
        raise InvalidOption(_CANVAS_ONLY)


def _spread(objects: Sequence[str], styles: Sequence[str], n: int, *, seed: int) -> list[tuple[str, str]]:
    """n pairs in which every object, and every style, occurs as equally often as n allows."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(values)) for values in (objects, styles)]
    found = []
    for i in range(n):
        lap = i // int(np.lcm(len(objects), len(styles)))  # shifted once all pairs of this lap have been met
        found.append((objects[orders[0][i % len(objects)]], styles[orders[1][(i + lap) % len(styles)]]))
    return found


def _said(pairs: Sequence[tuple[str, str]], forms: Sequence[int]) -> LabelledPrompts:
    labels = [dict(zip(LABELS, pair, strict=True)) for pair in pairs]
    prompts = tuple(paraphrase(one, form) for one, form in zip(labels, forms, strict=True))
    return LabelledPrompts(prompts, {factor: tuple(one[factor] for one in labels) for factor in LABELS})
