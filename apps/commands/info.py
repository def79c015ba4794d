"""``denoscope info``: what words tell about images, in nats and as maps; and sites about labels (``info_site``)."""

from __future__ import annotations

import argparse
from pathlib import Path

from apps.commands import info_site
from apps.commands._options import Commands, add_command, add_group, add_model, load_model, positive

_EXAMPLE = """
denoscope info mi --images canvas:16 --words object colour --out runs/info
denoscope info cmi --images photos --words animal --absent animal=thing --out runs/photos --dry-run
denoscope info pid --images canvas:16 --words object colour --context --out runs/pid
denoscope info nll --images canvas:32 --out runs/nll
denoscope info classify --images canvas:16 --words colour --out runs/colour
denoscope info site runs/demo --tell object style --out runs/site
"""
_QUESTIONS = {
    "mi": (
        "what caption and words tell over nothing said",
        "Mutual information of the image with its caption, and with each word alone.",
        "denoscope info mi --images canvas:16 --words object colour --out runs/info",
    ),
    "cmi": (
        "what a word tells given the rest of its caption",
        "Conditional mutual information of a word: what the caption tells over the caption without it.",
        "denoscope info cmi --images photos --words animal --absent animal=thing --out runs/photos --dry-run\n"
        'denoscope info cmi --images cat.png --caption "a cat on grass" --words cat grass --others "a dog in snow" '
        "--out runs/cat",
    ),
    "pid": (
        "what two words tell alone, in common, and only together",
        "Partial information decomposition of two words.",
        "denoscope info pid --images canvas:16 --words object colour --context --out runs/pid",
    ),
    "nll": (
        "how likely images are, with and without their captions",
        "Negative log-likelihood in nats and bits a dimension.",
        "denoscope info nll --images canvas:32 --out runs/nll",
    ),
    "classify": (
        "the label of an image by denoising error",
        "Posterior of every value of a label, and what the image tells of it.",
        "denoscope info classify --images canvas:16 --words colour --out runs/colour",
    ),
}
_ALL = (
    " Denoiser evaluations and time are told first; a stopped run goes on when the same command is given again. OUT "
    "gets the errors (a store), WHAT.json, and for words WHAT.png and WHAT.html with maps by every method. Models of "
    "discrete tokens and guidance-distilled ones are refused."
)
SHOWN = 8


def add_parser(commands: Commands) -> None:
    """Declare the command and its questions."""
    parts = add_group(
        commands,
        "info",
        "questions",
        "WHAT",
        summary="what words tell about images, and sites about labels, in nats",
        about="Information in nats: of words about images, by the model's own denoising errors, and of a site's "
        "activations about labels or prompts, by a small denoiser that is trained for them.",
        example=_EXAMPLE,
    )
    for what, (summary, about, example) in _QUESTIONS.items():
        part = add_command(parts, what, run, summary=summary, about=about + _ALL, example=example, resumable=True)
        part.set_defaults(what=what, form="standard", measure="mmi", context=False, template=None)
        _add_options(part, what)
    info_site.add_parser(parts)


def _add_options(part: argparse.ArgumentParser, what: str) -> None:
    add_model(part)
    part.add_argument("--images", required=True, help="canvas:N, a folder with metadata.csv, or an image file")
    part.add_argument("--n", type=positive, help="the first N images of the folder only")
    part.add_argument("--caption", default="", help="of an image file")
    part.add_argument("--words", nargs="+", default=[], help="labels (or words of --caption) to weigh (default: all)")
    part.add_argument("--others", nargs="+", default=[], help="captions for the null of an image file")
    part.add_argument("--absent", nargs="+", default=[], metavar="LABEL=TEXT", help="what a left-out word becomes")
    if what == "classify":
        part.add_argument("--template", help="what the model is told, with {} for the class")
    if what in ("mi", "cmi"):
        part.add_argument(
            "--form", choices=("standard", "orthogonal"), default="standard", help="of the printed numbers"
        )
    if what == "pid":
        part.add_argument("--measure", choices=("mmi", "pointwise_min", "i_min"), default="mmi", help="of redundancy")
        part.add_argument("--context", action="store_true", help="given the rest of the caption")
    part.add_argument("--nodes", type=positive, default=32, help="noise levels of each image")
    part.add_argument("--batch-size", type=positive, default=32, help="samples in a denoiser call")
    part.add_argument("--seed", type=int, default=0, help="of renders, noise and nulls")
    part.add_argument("--out", type=Path, required=True, help="folder for tables and results")
    part.add_argument("--dry-run", action="store_true", help="tell the cost and stop")


def run(options: argparse.Namespace) -> None:
    """Estimate, measure, reduce, show."""
    import warnings

    from apps.information.report import save
    from apps.information.request import Request, answer, columns_of
    from apps.information.subject import lens_maps, read_subject
    from apps.progress import Clock, bar
    from apps.runs import Run
    from apps.stages import Stages
    from probe.capture.noising import encode, image_size
    from probe.capture.size import human_bytes
    from probe.information import (
        Column,
        Nodes,
        TruncatedWindow,
        adaptive_nodes,
        check_pipeline,
        collect_table,
        estimate,
        open_table,
    )
    from probe.model import PipelineEps, fingerprint

    pipe = load_model(options)
    check_pipeline(pipe)
    model = PipelineEps(pipe)
    subject = read_subject(
        options.images,
        image_size(pipe, model.sample_shape),
        n=options.n,
        seed=options.seed,
        caption=options.caption,
        words=options.words,
        others=options.others,
        absent=_absent(options.absent),
    )
    given = {k: getattr(options, k) for k in ("what", "form", "measure", "context", "template", "seed")}
    request = Request(**given)
    x = encode(pipe, subject.images, model.sample_shape)
    columns = columns_of(request, subject, x)
    clock = Clock()

    def placed() -> dict:
        some = min(len(x), 8)
        pilot = [Column("empty"), Column("caption", subject.captions[:some])]
        found = adaptive_nodes(
            model, x[:some], pilot, options.nodes, pilot=16, seed=options.seed, batch=options.batch_size
        )
        return found.record()

    stages = Stages(Run(options.out), lambda _: None, 1)
    about = {"images": options.images, "n": options.nodes, "seed": options.seed, "captions": subject.captions}
    nodes = Nodes.from_record(stages.do("nodes", "nodes", about | {"model": fingerprint(pipe)["weights_hash"]}, placed))
    cost = estimate(model, x, columns, nodes, batch=options.batch_size)
    print(
        f"{len(x)} images x {nodes.n} noise levels x {len(columns)} conditions = {cost.evaluations} denoiser "
        f"evaluations, about {cost.seconds:.0f} s, {human_bytes(cost.bytes)}"
    )
    if options.dry_run:
        return
    name = "words" if request.what in ("mi", "cmi") else request.what
    path = options.out / "tables" / name
    with bar(request.what, "evaluation") as progress:
        collect_table(path, model, x, columns, nodes, seed=options.seed, batch=options.batch_size, progress=progress)
    table = open_table(path)
    lenses = {}
    if request.what in ("mi", "cmi", "pid"):
        levels = table.log_snr[0, :: max(1, nodes.n // 6)].tolist()
        lenses = lens_maps(model, subject, list(subject.words), levels, options.batch_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncatedWindow)  # said once, below
        found = answer(request, subject, table, x, lenses)
    config = given | about | {"model": fingerprint(pipe), "nodes": nodes.record(), "table": str(name)}
    for line in save(options.out, request.what, found, subject, config, shown=SHOWN, device=options.device):
        print(line)
    if found.missing is not None and found.missing > 0.01:
        print(
            f"The model's own levels end at log SNR {nodes.window[0]:.3g} and {nodes.window[1]:.3g}; at least "
            f"{found.missing:.2g} nats lie beyond. Absolute nats of a network are a ranking: see docs/information.md."
        )
    print(f"({clock})")


def _absent(given: list[str]) -> dict[str, str]:
    from apps.errors import InvalidOption

    for text in given:
        if "=" not in text:
            raise InvalidOption(f"--absent {text}: expected LABEL=TEXT, such as animal=thing.")
    return dict(text.split("=", 1) for text in given)
