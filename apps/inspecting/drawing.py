"""A prompt of one's own, drawn by the run's model and recorded as the run's samples were.

The same hooks, number format and kept tokens as the collection's, so a recorded prompt and seed drawn again gives the
rows of the store. At every denoiser call the caller hears of it, and can end the drawing there by raising.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.errors import CannotDraw, ModelMissing, NotEnoughRoom

if TYPE_CHECKING:
    from activations_store import ActivationStore
    from probe.model.pipeline import Pipeline

OnStep = Callable[[int, int], None]
"""Called with (step, steps) before each denoiser call; what it raises ends the drawing."""
OnPreview = Callable[[int, np.ndarray], None]
"""Called with (step, uint8 image (H, W, 3) of the clean sample predicted at it)."""
N_PREVIEWS = 10
"""Steps at most whose prediction is decoded: an autoencoder may cost more than a step."""


@dataclass(frozen=True)
class Request:
    """What to draw.

    Attributes:
        prompt: the text.
        seed: of the initial noise.
        guidance: guidance scale; up to 1 the unconditional branch is not computed.
        model: canvas, a pipeline folder, or a hub id whose files are on this machine.
        branches: guidance branches to keep, of those of the store.
    """

    prompt: str
    seed: int
    guidance: float
    model: str
    branches: tuple[str, ...]

    @property
    def computed(self) -> tuple[str, ...]:
        """The branches that are kept at this guidance."""
        return tuple(b for b in self.branches if b == "cond" or self.guidance > 1.0) or ("cond",)


@dataclass(frozen=True, eq=False)
class Drawn:
    """A drawn sample.

    Attributes:
        request: what was asked.
        rows: site -> (n_steps, n_branches, tokens, channels), all steps of the store.
        branches: of ``rows``.
        image: (H, W, 3) uint8.
        predictions: step -> predicted clean image, (H, W, 3) uint8, at some steps.
    """

    request: Request
    rows: Mapping[str, np.ndarray]
    branches: tuple[str, ...]
    image: np.ndarray
    predictions: Mapping[int, np.ndarray]

    def branch(self, name: str) -> dict[str, np.ndarray]:
        """Site -> (n_steps, tokens, channels) of one branch."""
        at = self.branches.index(name)
        return {site: rows[:, at] for site, rows in self.rows.items()}

    def prediction(self, step: int) -> np.ndarray | None:
        """The clean image predicted at the last decoded step up to this one; None before the first."""
        known = [s for s in self.predictions if s <= step]
        return self.predictions[max(known)] if known else None


def draw(
    store: ActivationStore, sites: Sequence[str], request: Request, *, on_step: OnStep, on_preview: OnPreview
) -> Drawn:
    """Draw and record one image. Loads the model, and keeps it for the next call.

    Args:
        store: of a collection of generations; says steps, number format and which tokens are kept.
        sites: what to record.
        request: what to draw.
        on_step: hears of every step.
        on_preview: is shown predicted images on the way.

    Raises:
        CannotDraw: the store holds real images, or the model is another than its own.
        ModelMissing: the model is not on this machine; the message has the command that brings it.
        NotEnoughRoom: memory ran out; the message says what was asked.
        probe.errors.ProbeError: the model or the request is refused; as in ``probe.model.load_pipeline``.
    """
    import torch

    if "steps" not in store.plan:
        raise CannotDraw(
            "This run recorded real images at chosen noise levels, so there is no generation to repeat. Collect one "
            "from prompts: denoscope collect --model NAME --sites SITE --prompts FILE --out RUN"
        )
    try:
        pipe = _model(request.model, str(store.fingerprint.get("dtype", "float32")))
        _check_same(pipe, store)
        return _draw(pipe, store, tuple(sites), request, on_step, on_preview)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _no_room(store, sites, request) from error
    except RuntimeError as error:
        if "allocate" not in str(error):  # torch has no type of its own for host memory
            raise
        raise _no_room(store, sites, request) from error


def _draw(
    pipe: Pipeline,
    store: ActivationStore,
    sites: tuple[str, ...],
    request: Request,
    on_step: OnStep,
    on_preview: OnPreview,
) -> Drawn:
    from apps.inspecting.previews import predictions
    from probe.capture import CapturePlan, Recorder
    from probe.capture.buffers import ShardBuffers
    from probe.capture.shapes import observe_generation
    from probe.model import StepClock
    from probe.model.generate import run_batch

    made = store.plan
    plan = CapturePlan.for_pipeline(
        pipe,
        sites,
        [request.prompt],
        seeds=[request.seed],
        steps=int(made["steps"]),
        guidance=request.guidance,
        branches=request.computed,
        **{name: made[name] for name in ("dtype", "tokens", "token_seed", "pool", "record_steps") if name in made},
    )
    seen = observe_generation(pipe, plan)
    n_steps = len(seen.timesteps)  # more than the plan's, for samplers with several calls a step
    kept = plan.kept_of(n_steps)
    buffers = ShardBuffers(seen.spec(plan, kept), plan, seen.layouts(plan), kept, 0)
    shown: dict[int, np.ndarray] = {}
    images: list[np.ndarray] = []

    def keep(step: int, image: np.ndarray) -> None:
        shown[step] = image
        on_preview(step, image)

    clock = StepClock(pipe, lambda: on_step(clock.step, n_steps))
    buffers.begin(range(1))
    wanted = np.linspace(0, n_steps - 1, min(n_steps, N_PREVIEWS)).round().astype(int)
    with (
        Recorder(pipe, list(seen.shapes), buffers.receive, clock=clock),
        predictions(pipe, frozenset(wanted.tolist()), clock, keep),
    ):
        images.append(run_batch(pipe, plan.prompts, plan.seeds, steps=plan.steps, guidance=plan.guidance)[0])
    buffers.end()
    rows = {site: array[0] for site, array in buffers.arrays.items()}
    position = {step: i for i, step in enumerate(kept)}
    return Drawn(request, rows, plan.branches, images[0], {position[s]: p for s, p in shown.items() if s in position})


@lru_cache(maxsize=1)
def _model(name: str, dtype: str) -> Pipeline:
    """A pipeline from this machine's own files, on an accelerator if there is one."""
    place = _on_this_machine(name)  # before anything heavy is imported
    import torch

    from probe.model import load_pipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    # On a CPU half precision is for storage; the weights are then the same numbers in float32.
    chosen = "float32" if device == "cpu" and dtype == "float16" else dtype
    return load_pipeline(place, dtype=getattr(torch, chosen), device=device)


def _on_this_machine(name: str) -> str | Path:
    """A folder of a model that is here; a hub id only if its files were brought before. Nothing is downloaded.

    Raises:
        ModelMissing: it is not here.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if name == "canvas" or Path(name).expanduser().is_dir():
        return name
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        remedy = (
            f"Bring it here (several gigabytes) and draw again: hf download {name}"
            if name.count("/") == 1 and not name.startswith((".", "/", "~"))
            else "Write the folder that the run's model was loaded from."
        )
        raise ModelMissing(f"The model {name!r} is not on this machine. {remedy}") from error


def _check_same(pipe: Pipeline, store: ActivationStore) -> None:
    from probe.model import fingerprint
    from probe.model.fingerprint import differences

    lines = differences(fingerprint(pipe), dict(store.fingerprint))
    if lines:
        raise CannotDraw(f"This is not the model that the run was recorded from: {'; '.join(lines)}.")


def _no_room(store: ActivationStore, sites: Sequence[str], request: Request) -> NotEnoughRoom:
    from probe.capture.memory import available_memory
    from probe.capture.size import human_bytes

    free = available_memory()
    return NotEnoughRoom(
        f"Memory ran out. Asked for: one image in {store.plan['steps']} steps at guidance {request.guidance:g}, and "
        f"{human_bytes(room(store, sites, request))} of activations of {len(sites)} sites, branches "
        f"{' and '.join(request.computed)}." + ("" if free is None else f" Free now: {human_bytes(free)}.")
    )


def room(store: ActivationStore, sites: Sequence[str], request: Request) -> int:
    """Bytes of the activations that a drawing keeps."""
    specs: list[Any] = [store.site(site).spec for site in sites]
    values = sum(spec.tokens * spec.channels for spec in specs)
    width = 2 if store.plan.get("dtype", "float16") == "float16" else 4
    return values * width * len(request.computed) * store.spec.n_steps
