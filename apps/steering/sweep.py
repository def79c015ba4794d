"""The images of a strength sweep: the unedited model, the push and its control, all from the same prompts and seeds.

A sweep folder:

    sweep.json                      what decides the images; another sweep is refused here
    images/unedited/0003.png        image of the fourth prompt and seed
    images/push_+2/0003.png         the same at strength 2
    images/random_+2/0003.png       the same, moved as far in a random direction

Each condition is drawn whole or again, so that a sweep that was interrupted goes on where it was. The control uses
several random directions, dealt to the images in turn: one alone may by chance be a direction that means something.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.errors import InvalidOption, OutputExists
from apps.images import read_image, save_png
from apps.measurement import read_json, write_json
from apps.stages import key_hash

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from apps.progress import Progress
    from apps.steering.push import Push

UNEDITED, PUSH, RANDOM = "unedited", "push", "random"
N_RANDOM = 4
"""Random directions of the control."""


@dataclass(frozen=True)
class Condition:
    """One column of the sweep.

    Attributes:
        kind: ``unedited``, ``push`` or ``random``.
        strength: 0 for the unedited model only.
    """

    kind: str
    strength: float = 0.0

    @property
    def name(self) -> str:
        """Folder name."""
        return self.kind if self.kind == UNEDITED else f"{self.kind}_{self.strength:+g}"


@dataclass(frozen=True)
class Sweep:
    """What is drawn.

    Attributes:
        push: what is pushed.
        prompts, seeds: N of each, one image each.
        strengths: without 0; ascending.
        branch: guidance branches that are edited.
        edit_steps: steps that are edited; None for the push's own.
        steps: denoising steps; None for the model's own.
        guidance: guidance scale; None for the model's own.
        batch_size: images at a time.
    """

    push: Push
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    strengths: tuple[float, ...]
    branch: str = "both"
    edit_steps: tuple[int, ...] | None = None
    steps: int | None = None
    guidance: float | None = None
    batch_size: int = 16

    def __post_init__(self) -> None:
        if not self.prompts or len(self.prompts) != len(self.seeds):
            raise InvalidOption(f"steer: {len(self.prompts)} prompts and {len(self.seeds)} seeds; expected one each.")
        if min(self.seeds) < 0:
            raise InvalidOption(f"steer: seeds are whole numbers from 0, got {min(self.seeds)}.")
        if not self.strengths or 0.0 in self.strengths or sorted(set(self.strengths)) != list(self.strengths):
            raise InvalidOption(f"steer: strengths {list(self.strengths)}; expected ascending numbers other than 0.")

    @property
    def conditions(self) -> list[Condition]:
        """All of them, the unedited model first."""
        edited = [Condition(kind, s) for kind in (PUSH, RANDOM) for s in self.strengths]
        return [Condition(UNEDITED), *edited]

    @property
    def n_images(self) -> int:
        """Images of the whole sweep."""
        return len(self.prompts) * len(self.conditions)

    def key(self, fingerprint_hash: str) -> dict[str, Any]:
        """JSON values that decide the images."""
        return {
            "model": fingerprint_hash,
            "push": self.push.record(),
            "prompts": self.prompts,
            "seeds": self.seeds,
            "branch": self.branch,
            "edit_steps": self.edit_steps,
            "steps": self.steps,
            "guidance": self.guidance,
            "batch_size": self.batch_size,
            "n_random": N_RANDOM,
        }


def open_folder(folder: Path, key: dict[str, Any], *, force: bool) -> None:
    """Make a sweep's folder, or go on with it.

    Raises:
        OutputExists: it holds another sweep, or something else, and ``force`` is off.
    """
    mark = folder / "sweep.json"
    if mark.is_file():
        if read_json(mark).get("key_hash") == key_hash(key):
            return
        if not force:
            raise OutputExists(
                f"{str(folder)!r} holds another sweep (model, push, prompts or seeds differ); choose another --out, "
                "or pass --force to replace it."
            )
        mark.unlink()
        shutil.rmtree(folder / "images", ignore_errors=True)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExists(f"{str(folder)!r} exists and holds no sweep; choose another --out.")
    write_json(mark, {"key_hash": key_hash(key), "key": key})


def drawn(sweep: Sweep, pipe: DiffusionPipeline, folder: Path, *, progress: Progress) -> Iterator[np.ndarray]:
    """The images of each condition in turn, uint8 (N, H, W, 3), from the folder where they are there.

    Args:
        sweep: what to draw.
        pipe: the model.
        folder: of the sweep, made by ``open_folder``.
        progress: called with (done, total) images of the whole sweep.
    """
    done = 0
    for condition in sweep.conditions:
        paths = [folder / "images" / condition.name / f"{i:04d}.png" for i in range(len(sweep.prompts))]
        if all(path.is_file() for path in paths):
            images = np.stack([read_image(path) for path in paths])
        else:
            images = _draw(sweep, condition, pipe)
            for path, image in zip(paths, images, strict=True):
                save_png(path, image)
        done += len(paths)
        progress(done, sweep.n_images)
        yield images


def missing(sweep: Sweep, folder: Path) -> int:
    """Images that a sweep has still to draw."""
    n = len(sweep.prompts)
    found = [sum(1 for _ in (folder / "images" / c.name).glob("*.png")) for c in sweep.conditions]
    return n * sum(count < n for count in found)


def _draw(sweep: Sweep, condition: Condition, pipe: DiffusionPipeline) -> np.ndarray:
    from probe.model import generate

    images: list[np.ndarray] = []
    groups: Sequence[Sequence[int]] = [range(len(sweep.prompts))]
    if condition.kind == RANDOM:
        groups = [range(r, len(sweep.prompts), N_RANDOM) for r in range(min(N_RANDOM, len(sweep.prompts)))]
    for number, rows in enumerate(groups):
        edit = sweep.push.edit(
            condition.strength,
            branch=sweep.branch,
            steps=sweep.edit_steps,
            control=number if condition.kind == RANDOM else None,
        )
        images.append(
            generate(
                pipe,
                [sweep.prompts[i] for i in rows],
                [sweep.seeds[i] for i in rows],
                steps=sweep.steps,
                guidance=sweep.guidance,
                batch_size=sweep.batch_size,
                interventions=[edit] if condition.strength else (),
            )
        )
    order = np.argsort(np.concatenate([np.asarray(rows) for rows in groups]))
    return np.concatenate(images)[order]
