"""``denoscope lens``: look at what a model attends to, computes, and needs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from apps.commands._options import Commands, add_command, add_group, add_model, add_sampling, positive, steps_range

_EXAMPLES = """
denoscope lens attention --prompt "a red star on dark background in flat style" --words star red --out star.png
denoscope lens segment --images canvas:4 --out segments.png
denoscope lens trace --help
"""
_ATTENTION = """
denoscope lens attention --prompt "a red star on dark background in flat style" --words star red --out star.png
denoscope lens attention --images canvas:4 --words object --gradient --out objects.png
denoscope lens attention --prompt "a red star" --words star --seeds 0 --by layer --out layers.png
"""
_FEATURES = """
denoscope lens features --images one.png two.png --site up_blocks.1 --point 0.5,0.3 --out matches.png
"""
_SEGMENT = """
denoscope lens segment --images canvas:4 --out segments.png
"""
_TRACE = """
denoscope lens trace --prompt "a red star on dark background in flat style"
    --corrupt "a red cup on dark background in flat style" --seeds 0 1 --concept object=star --windows 0-4 5-9
    --sites down_blocks.1 mid_block up_blocks.0 up_blocks.1 --out trace.png
"""
_PATCH = _TRACE.replace("lens trace", "lens patch").replace("trace.png", "patch.png")
_DRIFT = """
denoscope lens drift --prompt "a red star in neon style" --sites "down_blocks.*" "up_blocks.*" --out drift.png
"""
_TEXT = """
denoscope lens text --prompt "a red star on dark background in flat style" --seeds 0 1 2 3 --out layers.png
"""
_PROBE = """
denoscope lens probe runs/x --factor object colour --out probe.png
denoscope lens probe runs/x --sites mid_block up_blocks.1 --out probe.png --dry-run
"""
_HYPERFEATURES = """
denoscope lens hyperfeatures --pairs canvas:48 --out mixing.png
denoscope lens hyperfeatures --pairs points.csv --sites mid_block up_blocks.0 up_blocks.1 --out mixing.png --dry-run
"""
_INVERT = """
denoscope lens invert --images canvas:4 --edit "a blue cup on white background in neon style" --out again.png
"""


def add_parser(commands: Commands) -> None:
    """Declare the command and its lenses."""
    lenses = add_group(
        commands,
        "lens",
        "lenses",
        "LENS",
        summary="attention maps, features, segments, probes, tracing, drift, text layers, inversion",
        about="Look at what a model attends to, computes, and needs. Every lens writes a PNG and, beside it, the "
        "numbers as JSON. What each lens is, and how well it does on canvas: docs/lenses.md.",
        example=_EXAMPLES,
    )

    def lens(name: str, summary: str, about: str, example: str, *, model: bool = True) -> argparse.ArgumentParser:
        made = add_command(lenses, name, run, summary=summary, about=about, example=example)
        made.set_defaults(lens=name)
        if model:
            add_model(made)
        made.add_argument("--out", type=Path, required=True, help="PNG file to write; numbers go to the same name.json")
        made.add_argument("--force", action="store_true", help="replace OUT if it exists")
        return made

    words = lens(
        "attention",
        "where words look",
        "Cross-attention maps of words, averaged over layers, heads and steps, while the model draws or on given "
        "images. With --gradient only the attention that makes the image more likely.",
        _ATTENTION,
    )
    _drawn(words, required=False)
    _given(words, required=False)
    words.add_argument("--log-snr", type=float, nargs="+", default=[2.0], help="noise levels of --images, averaged")
    words.add_argument("--words", nargs="+", required=True, help="words of the prompt; on canvas also factors: object")
    words.add_argument("--sites", nargs="+", help="cross-attention modules (default: all)")
    words.add_argument(
        "--by",
        choices=("layer", "step", "head"),
        help="a map for each of these instead of the mean; head: of one of --sites",
    )
    words.add_argument("--gradient", action="store_true", help="gradient x attention, on --images")

    features = lens(
        "features",
        "points of one image in others",
        "What a site computes for noised images, and the nearest neighbours of points of the first in the others.",
        _FEATURES,
    )
    _given(features)
    _noised(features)
    features.add_argument("--point", type=_point, action="append", help="X,Y in the first image, each from 0 to 1")

    cut = lens(
        "segment",
        "segments without words",
        "Recursive normalised cut of what a site computes for noised images.",
        _SEGMENT,
    )
    _given(cut)
    _noised(cut)
    cut.add_argument("--limit", type=float, default=0.2, help="largest normalised cut that still splits, from 0 to 2")
    cut.add_argument("--alpha", type=float, default=2.0, help="exponent of the affinity: larger cuts finer")
    cut.add_argument("--max-segments", type=positive, help="no more than these")

    for name, summary, about, example in (
        ("trace", "which site, when restored, brings the clean image back",
         "A corrupted generation with one site's values taken from the clean one, for every site and window of steps, "
         "beside the same with the values of a foreign prompt.", _TRACE),
        ("patch", "which site, when corrupted, takes the clean image away",
         "A clean generation with one site's values taken from the corrupted one, for every site and window of steps, "
         "beside the same with the values of a foreign prompt.", _PATCH),
    ):  # fmt: skip
        trace = lens(name, summary, about, example)
        _drawn(trace)
        trace.add_argument("--corrupt", help="the other prompt")
        trace.add_argument("--noise", type=float, help="or: noise on the text embedding, in its standard deviations")
        trace.add_argument("--null", default="", help="the foreign prompt (default: the empty one)")
        trace.add_argument("--sites", nargs="+", required=True, help="modules of the denoiser")
        trace.add_argument("--windows", type=steps_range, nargs="+", help="steps, such as 0-4 5-9 (default: each step)")
        trace.add_argument("--concept", help="FACTOR=LABEL whose probability is measured, on canvas (default: pixels)")

    drift = lens(
        "drift",
        "how fast activations change over steps",
        "Cosine and linear CKA of a site's activations between the steps of a generation.",
        _DRIFT,
    )
    _drawn(drift)
    drift.add_argument("--sites", nargs="+", required=True, help="modules of the denoiser")

    text = lens(
        "text",
        "images from every layer of the text encoder",
        "The prompt encoded by the first layers alone, with the encoder's final normalisation.",
        _TEXT,
    )
    _drawn(text)
    text.add_argument("--layers", type=int, nargs="+", help="0 for the tokens alone (default: all)")
    text.add_argument("--encoder", default="text_encoder", help="of a model with several")

    probe = lens(
        "probe",
        "where in the network, and when, a label can be read",
        "Linear probes of a store's labels at every site and step: each sample is the mean over its cells, half of the "
        "samples teach, the other half is asked. Beside it the same with shuffled labels.",
        _PROBE,
        model=False,
    )
    probe.add_argument("run_folder", metavar="RUN", type=Path, help="run folder with a store, or the store")
    probe.add_argument("--factor", nargs="+", help="labelled factors (default: all of the store)")
    probe.add_argument("--sites", nargs="+", help="sites of the store (default: all)")
    probe.add_argument("--branch", default="cond", help="guidance branch")
    probe.add_argument("--shuffles", type=positive, default=3, help="probes of shuffled labels beside each probe")
    _foretells(probe)

    mixed = lens(
        "hyperfeatures",
        "one descriptor of all sites and levels, learned from matched points",
        "Learned mixing of what all sites compute for noised images, so that points that correspond are alike. The "
        "weights say which site and level know what corresponds. Half of the pairs teach, the other half is asked, "
        "beside the best single site and level.",
        _HYPERFEATURES,
    )
    mixed.add_argument(
        "--pairs",
        required=True,
        help="canvas:N, or a CSV file with a line a point: first, second (image files), x1, y1, x2, y2 (from 0 to 1)",
    )
    mixed.add_argument("--sites", nargs="+", default=["down_blocks.*", "up_blocks.*"], help="modules of the denoiser")
    mixed.add_argument("--log-snr", type=float, nargs="+", default=[4.0, 2.0, 0.0, -2.0], help="noise levels")
    mixed.add_argument("--iterations", type=positive, default=400, help="steps of the optimiser, a pair each")
    mixed.add_argument("--seed", type=int, default=0, help="of the renders of canvas:N, and of the optimiser")
    mixed.add_argument("--batch-size", type=positive, default=16, help="images at a time")
    _foretells(mixed)

    invert = lens(
        "invert",
        "the noise of given images, and what it draws",
        "Images drawn again from their own noise, with the error told, and with another prompt.",
        _INVERT,
    )
    _given(invert)
    invert.add_argument("--method", choices=("edit-friendly", "ddim"), default="edit-friendly", help="how")
    invert.add_argument("--steps", type=positive, help="denoising steps (default: 50)")
    invert.add_argument("--edit", help="another prompt")
    invert.add_argument("--guidance", type=float, default=2.0, help="of the other prompt")


def run(options: argparse.Namespace) -> None:
    """Ask the lens."""
    from apps.lenses import ask as lenses
    from apps.lenses import learned, over_steps

    lens: dict[str, Any] = {
        "attention": lenses.attention,
        "features": lenses.features,
        "segment": lenses.segment,
        "trace": over_steps.tracing,
        "patch": over_steps.tracing,
        "drift": over_steps.drifting,
        "text": lenses.text,
        "probe": learned.probing,
        "hyperfeatures": learned.mixing,
        "invert": lenses.invert,
    }
    lens[options.lens](options)


def _drawn(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument("--prompt", action="append", default=[], required=required, help="a prompt; may be repeated")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds of each prompt")
    add_sampling(parser)


def _given(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument("--images", nargs="+", required=required, help="canvas:N, or image files")
    parser.add_argument("--caption", default="", help="of image files")
    parser.add_argument("--seed", type=int, default=0, help="of the renders of canvas:N")
    if required:
        parser.add_argument("--batch-size", type=positive, default=16, help="images at a time")


def _foretells(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="say how much there is to do and how long, and stop")


def _point(text: str) -> tuple[float, float]:
    """X,Y in [0, 1]."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a point such as 0.5,0.3") from error
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise argparse.ArgumentTypeError(f"{text!r}: both numbers lie between 0 and 1")
    return x, y


def _noised(lens: argparse.ArgumentParser) -> None:
    """Where and under how much noise features of given images are read."""
    lens.add_argument("--log-snr", type=float, default=2.0, help="noise level at which features are read")
    lens.add_argument("--site", default="up_blocks.1", help="where features are read")
    lens.add_argument("--draws", type=positive, default=4, help="noises that are averaged")
