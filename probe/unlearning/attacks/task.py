"""What an attack is given and what it returns.

An unlearner is robust when a concept does not come back for prompts that it was not tuned on. An attack has the edited
model itself, its gradients included (white box), and tries to make it draw the concept again; a judge then says in how
many images it did. What is attacked is the model with its edits in place: every denoiser evaluation of an attack runs
under ``intervene``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from probe.capture.tensors import find_input
from probe.errors import EmptyPrompts, InvalidRequest
from probe.interventions.intervention import Intervention
from probe.model.generate import generate
from probe.model.pipeline import Pipeline
from probe.model.steps import denoiser


@dataclass(frozen=True, eq=False)
class AttackTask:
    """One edited model, one concept, and the prompts that are to show it again.

    Attributes:
        pipe: the pipeline.
        interventions: the edit under attack; none for the unedited model.
        factor: the concept's factor, such as "object".
        label: the concept, such as "star".
        prompts: N prompts that ask for the concept.
        seeds: N seeds.
        references: uint8 (M, height, width, 3) images that show the concept: real ones, or drawn by the unedited model
            with other seeds. Attacks that optimise learn from them.
        steps: denoising steps.
        guidance: guidance scale.
        batch_size: images at a time.
        captions: M captions of the references with ``word`` in each; a short phrase for all of them if empty.
        word: how prompts and captions name the concept; the label if None.
        paraphrases: N other ways to say the prompts; made from the prompts if empty, for captions of canvas.
        held_out: prompts that ask for the concept in combinations that the model was not trained on; taken from
            canvas's own if empty.
        progress: called with (done, total) rounds of the attack.
    """

    pipe: Pipeline
    interventions: Sequence[Intervention]
    factor: str
    label: str
    prompts: Sequence[str]
    seeds: Sequence[int]
    references: np.ndarray
    steps: int
    guidance: float
    batch_size: int = 16
    captions: Sequence[str] = ()
    word: str | None = None
    paraphrases: Sequence[str] = ()
    held_out: Sequence[str] = ()
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        if not len(self.prompts):
            raise EmptyPrompts(f"attack on {self.label!r}: there are no prompts.")
        shape, dtype = np.shape(self.references), np.asarray(self.references).dtype
        if len(shape) != 4 or shape[0] == 0 or shape[-1] != 3 or dtype != np.uint8:
            raise InvalidRequest(f"attack on {self.label!r}: references {shape} {dtype}; expected uint8 (M, H, W, 3).")
        n, m = len(self.prompts), shape[0]
        for name, expected in (("seeds", n), ("captions", m), ("paraphrases", n)):
            found = len(getattr(self, name))
            if found != expected and (found or name == "seeds"):
                raise InvalidRequest(f"attack on {self.label!r}: {found} {name}; expected {expected}.")
        if self.steps < 1 or self.batch_size < 1:
            raise InvalidRequest(f"attack on {self.label!r}: steps and batch_size must be at least 1.")

    @property
    def name(self) -> str:
        """The word that names the concept in prompts."""
        return self.word or self.label

    def draw(self, prompts: Sequence[str]) -> np.ndarray:
        """Images (N, height, width, 3) of the edited model for N prompts, with the task's seeds."""
        return generate(
            self.pipe,
            list(prompts),
            list(self.seeds),
            steps=self.steps,
            guidance=self.guidance,
            batch_size=self.batch_size,
            interventions=self.interventions,
        )

    def report(self, done: int, total: int) -> None:
        """Tell how far the attack is."""
        if self.progress is not None:
            self.progress(done, total)


@dataclass(frozen=True, eq=False)
class AttackResult:
    """What an attack drew.

    Attributes:
        name: of the attack.
        images: uint8 (N, height, width, 3), one for each prompt and seed of the task.
        prompts: the N prompts that were drawn; None where they are not text (embeddings).
        evaluations: rows that went through the denoiser, guidance branches and drawing included.
        seconds: wall time.
        detail: JSON values, such as losses before and after.
    """

    name: str
    images: np.ndarray
    prompts: tuple[str, ...] | None
    evaluations: int
    seconds: float
    detail: Mapping[str, Any] = field(default_factory=dict)


class Spent:
    """Denoiser evaluations and seconds since it was opened."""

    def __init__(self) -> None:
        self.evaluations = 0
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall time so far."""
        return time.perf_counter() - self._start


@contextmanager
def spending(pipe: Pipeline) -> Iterator[Spent]:
    """Counts the rows that go through a pipeline's denoiser while it is open."""
    spent = Spent()

    def count(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        spent.evaluations += find_input("denoiser", args, kwargs).tensor.shape[0]

    handle = denoiser(pipe)[1].register_forward_hook(count, with_kwargs=True)
    try:
        yield spent
    finally:
        handle.remove()
