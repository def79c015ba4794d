"""Which world the unlearning benchmark runs in, and where its model, classifiers and data set lie.

``canvas`` is embedded; ``unlearncanvas`` is Stable Diffusion with the classifiers and images of UnlearnCanvas, from
folders. Each has its module of settings, with the same names: ``unlearn_config`` and ``unlearncanvas_config``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from apps.errors import InvalidOption

if TYPE_CHECKING:
    from apps.bench.unlearn.world import World
    from apps.unlearning.methods import Candidates
    from probe.model.pipeline import Pipeline
    from sae import TrainConfig

WORLDS = ("canvas", "unlearncanvas")


class Constants(Protocol):
    """What a module of settings holds."""

    N_PROMPTS: int
    VALIDATION_TARGET: int
    VALIDATION_RETAIN: int
    SITES: tuple[str, ...]
    DICTIONARIES: Mapping[str, TrainConfig]
    CANDIDATES: Candidates


@dataclass(frozen=True)
class Place:
    """A world and its files.

    Attributes:
        world: one of ``WORLDS``.
        model: ``canvas`` or a pipeline folder.
        classifiers: folder with ``object.safetensors`` and ``style.safetensors``; unlearncanvas only.
        data: folder of the data set, which calibrates the judge; unlearncanvas only.
        device: where model and classifiers run.
        steps: denoising steps; None for the world's.
        guidance: guidance scale; None for the world's.
    """

    world: str = "canvas"
    model: str = "canvas"
    classifiers: Path | None = None
    data: Path | None = None
    device: str = "cpu"
    steps: int | None = None
    guidance: float | None = None

    def __post_init__(self) -> None:
        if self.world not in WORLDS:
            raise InvalidOption(f"bench unlearn: world {self.world!r}; expected one of {', '.join(WORLDS)}.")
        if self.world == "canvas" and (self.classifiers or self.data):
            raise InvalidOption("bench unlearn: canvas has its own judge; leave out --classifiers and --data.")
        if self.world != "canvas" and (self.model == "canvas" or self.classifiers is None):
            raise InvalidOption(
                f"bench unlearn: --world {self.world} needs --model FOLDER (the fine-tuned pipeline) and --classifiers "
                "FOLDER (object.safetensors and style.safetensors)."
            )

    @property
    def constants(self) -> Constants:
        """The world's module of settings."""
        if self.world == "canvas":
            from apps.unlearning import config as unlearn_config

            return cast(Constants, unlearn_config)
        from apps.unlearncanvas import config as unlearncanvas_config

        return cast(Constants, unlearncanvas_config)

    def load(self) -> Pipeline:
        """The model, as the world draws with it."""
        if self.world == "canvas":
            from probe.model import load_pipeline

            return load_pipeline(self.model, device=self.device)
        from apps.unlearncanvas.world import load_model

        return load_model(self.model, device=self.device)

    def open(
        self,
        pipe: Pipeline,
        *,
        n_recorded: int,
        n_seeds: int,
        objects: tuple[str, ...],
        styles: tuple[str, ...],
        batch_size: int,
    ) -> World:
        """The world, or a part of it; arguments as in ``UnlearnBench``."""
        from apps.unlearning.edits import Sampling

        if self.world == "canvas":
            from apps.bench.unlearn.world import CanvasWorld
            from probe.model import generation_defaults

            default = generation_defaults(pipe)
            sampling = Sampling(self.steps or default.steps, _first(self.guidance, default.guidance), batch_size)
            return CanvasWorld(sampling, n_recorded, n_seeds, objects, styles)
        from apps.unlearncanvas.protocol import GUIDANCE, STEPS
        from apps.unlearncanvas.world import UnlearnCanvasWorld

        assert self.classifiers is not None  # checked at construction
        sampling = Sampling(self.steps or STEPS, _first(self.guidance, GUIDANCE), batch_size)
        return UnlearnCanvasWorld(
            sampling, self.classifiers, self.data, n_recorded, n_seeds, objects, styles, self.device
        )

    def record(self) -> dict[str, Any]:
        """JSON values without folders: they differ from machine to machine."""
        kept = {key: value for key, value in asdict(self).items() if key not in ("classifiers", "data")}
        return kept | {"model": Path(self.model).name, "calibrated": self.world == "canvas" or self.data is not None}


def _first(given: float | None, default: float) -> float:
    return default if given is None else given
