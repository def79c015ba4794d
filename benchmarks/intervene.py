"""What an edit costs: `python -m benchmarks.intervene --out FILE`.

The same images, in turns:

    plain            the pipeline alone
    intervene        features of a TopK dictionary scaled at one site, every step and branch (`probe.interventions`)
    nnsight          the same edit written with nnsight: encode the site's rows, change the codes, add the difference
    nnsight, kernel  nnsight around this project's own kernel for few features, so that only the two machineries differ

on two models: a Stable-Diffusion-shaped one, an image at a time, and canvas (ratios ``canvas_...``), eight at a time,
where the denoiser is so small that an edit weighs most.

The dictionary's atoms are rows that the model itself computes, so features fire as sparsely as in a trained one; the
edited features and their thresholds are chosen as SAeUron chooses them, features that are on in about one row of
twenty, above their mean. A ratio is the median over rounds of (CPU seconds of a way / CPU seconds of plain in the same
round), on one thread. The images of all edited ways are compared: they must agree to one level of 255.
"""

import argparse
import logging
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging as diffusers_logging
from nnsight import DiffusionModel
from transformers.utils import logging as transformers_logging

from apps.measurement import Measurement
from benchmarks.capture import build
from probe.canvas import MODEL_DIR
from probe.interventions import Intervention, ScaleFeatures, TopKDictionary, record_run
from probe.interventions.ops import StepContext
from probe.model import generate, load_pipeline
from probe.model.generate import call_kwargs, no_progress_bar

SITE = "up_blocks.1.attentions.1"
PROMPT, GUIDANCE, K = "a picture of a", 5.0, 32


def main(argv: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.intervene", description="What an edit costs.")
    parser.add_argument("--quick", action="store_true", help="64 channels and 3 rounds, in two minutes")
    parser.add_argument("--width", type=int, default=160, help="channels of the first level; then twice and four times")
    parser.add_argument("--rounds", type=int, default=9, help="images drawn in each way")
    parser.add_argument("--steps", type=int, default=6, help="denoising steps")
    parser.add_argument("--expansion", type=int, default=16, help="features of the dictionary for each channel")
    parser.add_argument("--features", type=int, default=10, help="features that are edited")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop earlier after so long, with what there is")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(argv)
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    width, rounds = (64, 3) if options.quick else (options.width, options.rounds)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        build((width, 2 * width, 4 * width)).save_pretrained(model)
        rows, ratios, models = [], {}, {}
        for name, source, n_images in (("", model, 1), ("canvas_", Path(MODEL_DIR), 8)):
            ways = Ways(source, n_images, options.steps, options.expansion, options.features)
            times = ways.measure(rounds, time.monotonic() + 30 * options.minutes)
            found, of_times = summary(times)
            rows += [{"model": name.removesuffix("_") or "sd-shaped"} | row for row in found]
            ratios |= {name + key: value for key, value in of_times.items()}
            models[name.removesuffix("_") or "sd-shaped"] = ways.config() | {"rounds": len(times["plain"])}
    config = {
        "models": models,
        "unet_channels": (width, 2 * width, 4 * width),
        "site": SITE,
        "k": K,
        "steps": options.steps,
        "guidance": GUIDANCE,
        "threads": torch.get_num_threads(),
        "load": [load_before, os.getloadavg()[0]],
        "nnsight": version("nnsight"),
        "quick": options.quick,
    }
    Measurement("intervene", rows, ratios, config=config).write(options.out)
    for row in rows:
        quartiles = f"({row['q1_cpu_s']:.3f} to {row['q3_cpu_s']:.3f})"
        print(f"{row['model']:<10} {row['what']:<16} {row['median_cpu_s']:8.3f} s CPU {quartiles}")
    for name, value in ratios.items():
        print(f"{name}: {value:.4f}")


class Ways:
    """The four ways to draw one image.

    Args:
        model: folder of the pipeline; nnsight gets a copy of its own, because it changes the modules it wraps.
        n_images: drawn at a time.
        steps: denoising steps.
        expansion: features of the dictionary for each channel of the site.
        n_features: features that are edited.
    """

    def __init__(self, model: Path, n_images: int, steps: int, expansion: int, n_features: int) -> None:
        self.steps = steps
        self.n_images = n_images
        self.pipe = load_pipeline(model)
        self.traced = DiffusionModel(str(model), dispatch=True, safety_checker=None)
        for module in (self.traced.pipeline.unet, self.traced.pipeline.vae, self.traced.pipeline.text_encoder):
            module.eval().requires_grad_(False).to(torch.float32, memory_format=torch.channels_last)
        rows = self._rows(n=1 + expansion)
        self.dictionary = _dictionary(rows, expansion * rows.shape[1])
        self.features, self.thresholds, self.density = _targets(self.dictionary, rows[:4096], n_features)
        self.op = ScaleFeatures(self.dictionary, self.features, -2.0, self.thresholds)
        self.difference = 0.0

    def plain(self, seed: int) -> np.ndarray:
        """The pipeline alone."""
        return generate(self.pipe, *self._images(seed), steps=self.steps, guidance=GUIDANCE)

    def intervene(self, seed: int) -> np.ndarray:
        """The edit of this project."""
        edits = [Intervention(SITE, self.op)]
        return generate(self.pipe, *self._images(seed), steps=self.steps, guidance=GUIDANCE, interventions=edits)

    def nnsight(self, seed: int) -> np.ndarray:
        """The edit as its equations read: all codes of all rows."""
        d, features, above = self.dictionary, self.features, self.thresholds

        def change(x: torch.Tensor) -> torch.Tensor:
            z = d.encode(x)[..., features]
            return x + torch.where(z > above, -3.0 * z, 0.0) @ d.W_dec[features]

        return self._traced(seed, change)

    def nnsight_kernel(self, seed: int) -> np.ndarray:
        """This project's operation on what nnsight hands out."""
        return self._traced(seed, lambda x: self.op.apply(x, 1.0, StepContext(SITE, 0, 0.0)))

    def measure(self, rounds: int, until: float) -> dict[str, list[float]]:
        """CPU seconds of each way, by round; each round draws one seed in every way, in turning order."""
        ways: list[tuple[str, Callable[[int], np.ndarray]]] = [
            ("plain", self.plain),
            ("intervene", self.intervene),
            ("nnsight", self.nnsight),
            ("nnsight, kernel", self.nnsight_kernel),
        ]
        images = {name: way(0) for name, way in ways}  # warm
        self.difference = max(np.abs(images["intervene"].astype(int) - images[name]).max() for name in list(images)[2:])
        if self.difference > 1 or not (images["intervene"] != images["plain"]).any():
            raise SystemExit(f"The edited images differ by {self.difference} levels, or the edit changed nothing.")
        times: dict[str, list[float]] = defaultdict(list)
        for i in range(1, rounds + 1):
            if time.monotonic() > until and i > 1:
                break
            for name, way in ways[i % len(ways) :] + ways[: i % len(ways)]:
                start = time.process_time()
                way(i)
                times[name].append(time.process_time() - start)
        return times

    def config(self) -> dict[str, Any]:
        """What was measured."""
        return {
            "unet_parameters": sum(p.numel() for p in self.pipe.unet.parameters()),
            "images_at_a_time": self.n_images,
            "dictionary": tuple(self.dictionary.W_dec.shape),
            "features": len(self.features),
            "rows_on": self.density,
            "largest_difference": int(self.difference),
        }

    def _images(self, seed: int) -> tuple[list[str], list[int]]:
        return [PROMPT] * self.n_images, [self.n_images * seed + i for i in range(self.n_images)]

    def _traced(self, seed: int, change: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
        pipe, model = self.traced.pipeline, self.traced
        arguments: Any = call_kwargs(pipe, *self._images(seed), steps=self.steps, guidance=GUIDANCE)
        prompt = arguments.pop("prompt")
        module = model.unet.up_blocks[1].attentions[1]
        with torch.no_grad(), no_progress_bar(pipe), model.generate(prompt, **arguments) as tracer:
            for _ in tracer.iter[: self.steps]:
                x = module.output[0]
                edited = change(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
                module.output = (edited,)
            images = tracer.result.images.save()
        return (np.asarray(images, dtype=np.float32) * 255).round().clip(0, 255).astype(np.uint8)

    def _rows(self, n: int) -> torch.Tensor:
        """Rows of the site over steps, branches and tokens of n images, shuffled."""
        parts = []
        for seed in range(n):
            found = record_run(self.pipe, SITE, [PROMPT], [1000 + seed], steps=2, guidance=GUIDANCE)
            parts.append(next(iter(found.values())).value.flatten(0, 3))
        rows = torch.cat(parts)
        return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def _dictionary(rows: torch.Tensor, d_sae: int) -> TopKDictionary:
    mean = rows.mean(0)
    centred = rows - mean
    atoms = torch.nn.functional.normalize(centred.repeat(-(-d_sae // len(rows)), 1)[:d_sae], dim=-1)
    return TopKDictionary(atoms.T.clone(), torch.zeros(d_sae), atoms, mean, k=K)


def _targets(d: TopKDictionary, rows: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Features that are on in about one row of twenty, their means, and in how many rows they are on."""
    z = d.encode(rows)
    share = (z > 0).float().mean(0)
    features = (share - 0.05).abs().argsort()[:n].sort().values
    return features, z.mean(0)[features], float(share[features].mean())


def summary(times: dict[str, list[float]]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows of times and ratios of paired times."""
    rows = []
    for what, seconds in times.items():
        q1, median, q3 = np.quantile(seconds, (0.25, 0.5, 0.75))
        rows.append({"what": what, "n": len(seconds), "median_cpu_s": median, "q1_cpu_s": q1, "q3_cpu_s": q3})
    ratios = {}
    pairs = [("intervene", "plain"), ("nnsight", "plain"), ("nnsight, kernel", "plain")]
    for way, of in [*pairs, ("intervene", "nnsight"), ("intervene", "nnsight, kernel")]:
        q1, median, q3 = np.quantile(np.array(times[way]) / np.array(times[of]), (0.25, 0.5, 0.75))
        name = f"{way}_over_{of}".replace(", ", "_")
        ratios |= {name: float(median), f"{name}_q1": float(q1), f"{name}_q3": float(q3)}
    return rows, ratios


if __name__ == "__main__":
    main()
