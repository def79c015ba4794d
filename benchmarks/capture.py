"""What capture costs: `python -m benchmarks.capture --out FILE`.

Three ways to generate the same images with the same model, on a Stable-Diffusion-shaped pipeline with random weights:

    plain     the pipeline alone
    capture   `probe.capture.collect`: four sites at every step and branch to a store on disk, images saved as PNG
    nnsight   nnsight's cache of the same four modules at every step, in float16, to memory

The ways take turns image by image, so that a machine that slows down slows all of them: while one collection runs,
its progress callback generates the image it has just recorded in the two other ways. A shard holds one batch, so the
store writes each batch in the background of the next one, and a capture's time contains that. A ratio is the median
over images of (time of a way / time of plain for the same image). Setting a collection up (one
denoiser call that shows the shapes, the model's fingerprint, the store's metadata) is paid once and listed apart.

The ratio that is quoted is that of CPU seconds of the whole process, the writing thread included: it is what capture
costs, and holds on a machine that has other work too. The wall-clock ratio beside it says little on such a machine
(see `load` in the file): its quartiles show how much.
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
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from nnsight import DiffusionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from activations_store import ActivationStore
from apps.measurement import Measurement
from probe.capture import CapturePlan, collect
from probe.model import load_pipeline
from probe.model.generate import call_kwargs, no_progress_bar, run_batch

SITES = ("down_blocks.1.attentions.1", "mid_block", "up_blocks.1.attentions.1", "up_blocks.2.attentions.1")
GUIDANCE = 5.0


def main(argv: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capture", description="What capture costs.")
    parser.add_argument("--quick", action="store_true", help="64 channels and 4 images, in two minutes")
    parser.add_argument("--width", type=int, default=160, help="channels of the first level; then twice and four times")
    parser.add_argument("--images", type=int, default=10, help="images drawn in each way")
    parser.add_argument("--steps", type=int, default=6, help="denoising steps")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop earlier after so long, with what there is")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(argv)
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    logging.disable(logging.WARNING)
    width, n = (64, 4) if options.quick else (options.width, options.images)
    channels = (width, 2 * width, 4 * width)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        build(channels).save_pretrained(model)
        turns = Turns(model, n, options.steps, time.monotonic() + 60 * options.minutes)
        turns.run(Path(folder) / "store")
        difference = turns.check(Path(folder) / "store")
        spec = ActivationStore.open(Path(folder) / "store").spec
    rows, ratios = turns.summary()
    config = {
        "unet_channels": channels,
        "unet_parameters": turns.n_parameters,
        "sites": SITES,
        "images": len(turns.pairs),
        "steps": options.steps,
        "guidance": GUIDANCE,
        "store_mb_an_image": spec.n_bytes / n / 1e6,
        "largest_difference_to_nnsight": difference,
        "threads": torch.get_num_threads(),
        "load": [load_before, os.getloadavg()[0]],
        "nnsight": version("nnsight"),
        "quick": options.quick,
    }
    Measurement("capture", rows, ratios, config=config).write(options.out)
    for row in rows:
        print(f"{row['what']:<16} {row['median_s']:8.3f} s ({row['q1_s']:.3f} to {row['q3_s']:.3f})")
    for name, value in ratios.items():
        print(f"{name}: {value:.4f}")


def build(channels: tuple[int, int, int]) -> StableDiffusionPipeline:
    """A Stable-Diffusion-shaped pipeline with random weights: 256 x 256 images from 32 x 32 latents."""
    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer: Any = CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[], model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=len(pieces),
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=4,
        num_attention_heads=8,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=32,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=channels,
        cross_attention_dim=512,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        sample_size=256,
    )
    # Random weights let values grow from step to step until float16 does not hold them; small outputs do not.
    unet.conv_out.weight.data.mul_(0.1)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )


class _TimeIsUp(Exception):
    """Ends the collection."""


class Turns:
    """The three ways, one image each in turn.

    Args:
        model: folder of the pipeline; nnsight gets a copy of its own, because it changes the modules it wraps.
        n: images.
        steps: denoising steps.
        until: time of the monotonic clock after which no image is begun.
    """

    def __init__(self, model: Path, n: int, steps: int, until: float) -> None:
        self._until = until
        self.pipe = load_pipeline(model)
        self.n_parameters = sum(p.numel() for p in self.pipe.unet.parameters())
        self.traced = DiffusionModel(str(model), dispatch=True, safety_checker=None)
        for module in (self.traced.pipeline.unet, self.traced.pipeline.vae, self.traced.pipeline.text_encoder):
            module.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.cached: dict[int, Any] = {}
        self.plan = CapturePlan.for_pipeline(
            self.pipe,
            SITES,
            [f"a picture of {letter}" for letter in "abcdefghijklmnopqrstuvwxyz"[:n]],
            steps=steps,
            guidance=GUIDANCE,
            batch_size=1,
            max_samples_per_shard=1,
        )
        self._wall: dict[str, list[float]] = defaultdict(list)
        self._cpu: dict[str, list[float]] = defaultdict(list)
        self._mark = (0.0, 0.0)

    def run(self, out: Path) -> None:
        """One collection, with the other ways in its pauses."""
        self.plain(0)  # warm
        self.nnsight(0)
        self._begin()
        try:
            collect(self.pipe, self.plan, out, progress=self._turn)
            self._end("finish")
        except _TimeIsUp:
            pass

    @property
    def pairs(self) -> list[float]:
        """Ratio of capture to plain, image by image."""
        return [a / b for a, b in zip(self._wall["capture"], self._wall["plain"], strict=True)]

    def plain(self, i: int) -> None:
        """The pipeline alone."""
        run_batch(self.pipe, [self.plan.prompts[i]], [self.plan.seeds[i]], steps=self.plan.steps, guidance=GUIDANCE)

    def nnsight(self, i: int) -> None:
        """nnsight's cache of the same modules."""
        pipe, model = self.traced.pipeline, self.traced
        arguments = call_kwargs(
            pipe, [self.plan.prompts[i]], [self.plan.seeds[i]], steps=self.plan.steps, guidance=GUIDANCE
        )
        prompt = arguments.pop("prompt")
        modules = [f"model.unet.{site}" for site in SITES]
        with torch.no_grad(), no_progress_bar(pipe), model.generate(prompt, **arguments) as tracer:
            cache = tracer.cache(modules=modules, dtype=torch.float16)
        self.cached = {i: cache}  # the last one only: memory is what this way costs

    def check(self, out: Path) -> float:
        """Largest difference between what the store and nnsight hold of the last image, of the store's largest value.

        They run the same weights, so it is that of float16 rounding, or the two recorded different things.
        """
        store, largest = ActivationStore.open(out), 0.0
        (i, cache), *_ = self.cached.items()
        for site, name in zip(SITES, self.plan.sites, strict=True):
            recorded = store.site(name).read(sample=i)[0].astype(np.float32)
            for step, output in enumerate(cache[f"model.unet.{site}"].output):
                tensor = output[0] if isinstance(output, tuple) else output
                rows = tensor.float().flatten(2).transpose(1, 2).numpy()
                largest = max(largest, float(np.abs(rows - recorded[step]).max() / np.abs(recorded).max()))
        if not largest < 2e-3:
            raise SystemExit(f"The store and nnsight differ by {largest:.3g} of the largest value.")
        return largest

    def summary(self) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """Rows of times, and the ratios of paired times; the first image of the collection counts as its set-up."""
        rows, ratios = [], {}
        for what, seconds in self._wall.items():
            q1, median, q3 = np.quantile(seconds, (0.25, 0.5, 0.75))
            row = {"what": what, "n": len(seconds), "median_s": median, "q1_s": q1, "q3_s": q3}
            rows.append(row | {"median_cpu_s": float(np.median(self._cpu[what]))})
        for way in ("capture", "nnsight"):
            wall, cpu = (np.array(t[way]) / np.array(t["plain"]) for t in (self._wall, self._cpu))
            q1, median, q3 = np.quantile(wall, (0.25, 0.5, 0.75))
            ratios[f"{way}_over_plain"] = np.median(cpu)
            ratios |= {f"{way}_over_plain_wall": median}
            ratios |= {f"{way}_over_plain_wall_q1": q1, f"{way}_over_plain_wall_q3": q3}
        return rows, {name: float(value) for name, value in ratios.items()}

    def _turn(self, done: int, total: int) -> None:
        i = done - 1
        self._end("first" if i == 0 else "capture")
        if time.monotonic() > self._until and i > 1:
            self._wall["capture"].pop()  # it has no partner
            self._cpu["capture"].pop()
            raise _TimeIsUp
        ways: list[tuple[str, Callable[[int], None]]] = [("plain", self.plain), ("nnsight", self.nnsight)]
        for name, way in ways[:: 1 if i % 2 else -1]:
            self._begin()
            way(i)
            self._end("" if i == 0 else name)
        self._begin()

    def _begin(self) -> None:
        self._mark = (time.perf_counter(), time.process_time())

    def _end(self, what: str) -> None:
        wall, cpu = time.perf_counter() - self._mark[0], time.process_time() - self._mark[1]
        if what:
            self._wall[what].append(wall)
            self._cpu[what].append(cpu)


if __name__ == "__main__":
    main()
