"""Does canvas draw what it is asked for? Prompts are generated and read back by the judge.

Two settings of the same model: its shipped defaults (``denoscope.json``) and diffusers' own call defaults (50 steps,
guidance 7.5). The judge is not perfect either: its accuracy on real renders, and on renders that went through the
autoencoder, bounds what any generator can score.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.measurement import Measurement, wilson
from apps.progress import bar, table
from apps.prompts import LabelledPrompts, balanced

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from probe.canvas import Judge, Verdict

SHIPPED, CALL = "shipped defaults", "diffusers call defaults"
RENDERS, RECONSTRUCTIONS = "renders", "autoencoder reconstructions"
HELD_OUT = ("object", "style", "colour")
_RENDER_SEED = 77  # a data set of renders that neither the model nor the judge was trained or calibrated on


def bench_canvas(
    pipe: DiffusionPipeline, judge: Judge, n: int, *, seed: int, batch_size: int = 16, device: str = "cpu"
) -> Measurement:
    """Accuracy by factor, on trained and held-out combinations, beside the judge's ceilings.

    Args:
        pipe: canvas.
        judge: reads images.
        n: prompts of trained combinations, and renders; half as many of held-out ones, and a quarter of both at
            diffusers' call defaults, which take five times the steps.
        seed: of the first image.
        batch_size: images at a time.
        device: for the record.
    """
    from probe.model import fingerprint, generation_defaults

    trained, held_out = balanced(n, split="train"), balanced(max(n // 2, 1), split="held_out")
    shipped = generation_defaults(pipe)
    parameters = inspect.signature(pipe.__call__).parameters
    call = (int(parameters["num_inference_steps"].default), float(parameters["guidance_scale"].default))
    rows: list[dict[str, Any]] = []
    for name, (steps, guidance), share in ((SHIPPED, tuple(shipped), 1), (CALL, call, 4)):
        for split, everything in (("trained", trained), ("held out", held_out)):
            prompts = everything.first(max(len(everything.prompts) // share, 1))
            first = seed if split == "trained" else seed + n
            verdict, seconds = _generated(
                pipe, judge, prompts, first, int(steps), guidance, batch_size, f"{name}, {split}"
            )
            about = {"images": name, "split": split, "steps": steps, "guidance": guidance}
            rows += _rows(verdict, prompts, about | {"seconds_per_image": seconds})
    rows += _empty(pipe, judge, min(n, 64), seed + 2 * n, shipped.steps, shipped.guidance, batch_size)
    rows += _ceilings(pipe, judge, n)
    return Measurement(
        "bench.canvas",
        rows,
        _ratios(rows),
        device=device,
        config={"n": n, "seed": seed, "batch_size": batch_size, "model": fingerprint(pipe)},
    )


def canvas_table(measured: Measurement) -> str:
    """The table that people read: accuracies in percent with 95 % intervals."""
    from probe.canvas import FACTORS

    kinds = dict.fromkeys((row["images"], row["split"]) for row in measured.rows if row["measure"] != "variety")
    names = [*FACTORS, "all four", "artifacts"]
    found = {(row["images"], row["split"], row["measure"]): row for row in measured.rows}
    body = []
    for images, split in kinds:
        cells = []
        for name in names:
            row = found[images, split, name]
            cells.append(f"{100 * row['value']:.1f} ({100 * row['low']:.1f}-{100 * row['high']:.1f})")
        first = found[images, split, names[0]]
        about = f", {first['steps']} steps, guidance {first['guidance']:g}" if first.get("steps") else ""
        body.append([f"{images}{about}: {split}", str(first["n"]), *cells])
    return table(["", "n", *names], body)


def contact_sheet(pipe: DiffusionPipeline, seed: int, *, batch_size: int = 16) -> np.ndarray:
    """Every object in every style as the model draws it, beside renders of the same captions, (H, W, 3) uint8.

    One sample each, none of them chosen; colours and backgrounds rotate.
    """
    from apps.images import labelled_grid
    from probe.canvas import BACKGROUNDS, COLOURS, OBJECTS, STYLES, caption, parse_caption, render, sample_scene
    from probe.model import generate
    from probe.unlearning import PromptGrid

    factors = {"style": STYLES, "object": OBJECTS}
    grid = PromptGrid.product(caption, factors, [seed], rotate={"colour": COLOURS, "background": BACKGROUNDS})
    with bar("contact sheet") as progress:
        samples = generate(pipe, grid.prompts, grid.seeds, batch_size=batch_size, progress=progress)
    rng = np.random.default_rng(seed)
    renders = [
        render(sample_scene(rng, split="all", **parse_caption(prompt)), seed=int(rng.integers(2**31))).image
        for prompt in grid.prompts
    ]
    n = len(OBJECTS)  # the grid runs over the objects of a style, then over the styles
    rows = [[*samples[i : i + n], None, *renders[i : i + n]] for i in range(0, len(grid), n)]
    return labelled_grid(
        rows,
        row_labels=STYLES,
        column_labels=[*OBJECTS, "", *OBJECTS],
        side=64,
        gap=3,
        title="samples of the model (left), renders of the same captions (right)",
    )


def _generated(
    pipe: DiffusionPipeline,
    judge: Judge,
    prompts: LabelledPrompts,
    first_seed: int,
    steps: int,
    guidance: float,
    batch_size: int,
    label: str,
) -> tuple[Verdict, float]:
    from probe.model import generate

    seeds = range(first_seed, first_seed + len(prompts.prompts))
    start = time.perf_counter()
    with bar(label) as progress:
        images = generate(
            pipe,
            prompts.prompts,
            seeds,
            steps=steps,
            guidance=guidance,
            batch_size=batch_size,
            progress=progress,
        )
    return judge(images), (time.perf_counter() - start) / len(seeds)


def _rows(verdict: Verdict, prompts: LabelledPrompts, about: dict[str, Any]) -> list[dict[str, Any]]:
    """Accuracy of each factor, of all four together, and the artifact rate."""
    hits = {factor: verdict.labels(factor) == np.asarray(values) for factor, values in prompts.labels.items()}
    measures = hits | {"all four": np.logical_and.reduce(list(hits.values())), "artifacts": verdict.is_artifact}
    rows = []
    for name, hit in measures.items():
        share = wilson(int(hit.sum()), len(hit))
        rows.append(
            about | {"measure": name, "value": share.value, "low": share.low, "high": share.high, "n": len(hit)}
        )
    return rows


def _empty(
    pipe: DiffusionPipeline, judge: Judge, n: int, seed: int, steps: int, guidance: float, batch_size: int
) -> list[dict[str, Any]]:
    """How varied images of the empty prompt are: different values that the judge sees, of those there are."""
    from probe.canvas import FACTORS

    nothing = LabelledPrompts(("",) * n, {})
    verdict, _ = _generated(pipe, judge, nothing, seed, steps, guidance, batch_size, "empty prompt")
    rows = []
    for factor, values in FACTORS.items():
        seen = len(set(verdict.labels(factor).tolist()))
        rows.append(
            {
                "images": "empty prompt",
                "split": "none",
                "measure": "variety",
                "factor": factor,
                "value": seen / len(values),
                "seen": seen,
                "n": n,
            }
        )
    return rows


def _ceilings(pipe: Any, judge: Judge, n: int) -> list[dict[str, Any]]:
    """The judge on renders that nobody trained on, and on the same after the autoencoder."""
    import torch

    from probe.canvas import FACTORS, render_batch

    rows = []
    for split in ("train", "held_out"):
        batch = render_batch(range(n if split == "train" else max(n // 2, 1)), split=split, seed=_RENDER_SEED)
        labels = {f: tuple(getattr(scene, f) for scene in batch.scenes) for f in FACTORS}
        prompts = LabelledPrompts(tuple(batch.captions), labels)
        decoded = []
        with torch.inference_mode():
            for start in range(0, len(batch.images), 64):
                pixels = torch.from_numpy(batch.images[start : start + 64]).permute(0, 3, 1, 2)
                x = (pixels.float() / 127.5 - 1).to(pipe.vae.device, pipe.vae.dtype)
                y = pipe.vae.decode(pipe.vae.encode(x).latents).sample.float().clamp(-1, 1)
                decoded.append(((y + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
        for name, images in ((RENDERS, batch.images), (RECONSTRUCTIONS, np.concatenate(decoded))):
            about = {"images": name, "split": "trained" if split == "train" else "held out"}
            rows += _rows(judge(images), prompts, about)
    return rows


def _ratios(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The named numbers: accuracies at the shipped defaults, and the judge's ceilings."""
    found = {(row["images"], row["split"], row["measure"]): row["value"] for row in rows}
    factors = ("object", "style", "colour", "background")
    ratios: dict[str, float | None] = {name: found[SHIPPED, "trained", name] for name in factors}
    ratios |= {f"heldout_{name}": found[SHIPPED, "held out", name] for name in HELD_OUT}
    ratios["artifacts"] = found[SHIPPED, "trained", "artifacts"]
    ratios["heldout_artifacts"] = found[SHIPPED, "held out", "artifacts"]
    for key, images in (("judge_renders", RENDERS), ("judge_reconstructions", RECONSTRUCTIONS)):
        ratios |= {f"{key}_{name}": found[images, "trained", name] for name in (*factors, "artifacts")}
    ratios |= {f"call_defaults_{name}": found[CALL, "trained", name] for name in (*factors, "artifacts")}
    return ratios
