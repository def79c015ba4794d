"""Lenses over sites and steps: causal tracing, activation patching, and how activations drift from step to step."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import numpy as np

from apps.commands._options import load_model, new_file
from apps.errors import InvalidOption
from apps.lenses.sheets import drawn_grid, largest, number_table, save, stacked
from apps.progress import bar

if TYPE_CHECKING:
    from probe.lenses.tracing import Measure
    from probe.model.pipeline import Pipeline


def tracing(options: argparse.Namespace) -> None:
    """Causal tracing (``trace``) and activation patching (``patch``)."""
    from probe.lenses import trace
    from probe.model import generation_defaults

    out, pipe = new_file(options.out, force=options.force), load_model(options)
    steps = options.steps or generation_defaults(pipe).steps
    windows = options.windows or [(s,) for s in range(steps)]
    prompts, seeds = drawn_grid(options)
    if (options.corrupt is None) == (options.noise is None):
        raise InvalidOption("lens trace: give --corrupt PROMPT or --noise SCALE, one of them.")
    corruption = options.noise if options.corrupt is None else [options.corrupt] * len(prompts)
    print(f"{4 + 2 * len(options.sites) * len(windows)} generations or more of {len(prompts)} images each")
    with bar("tracing", "run") as progress:
        found = trace(
            pipe, prompts, corruption, seeds, options.sites, windows=windows, null=[options.null] * len(prompts),
            measure=_probability(pipe, options.concept), into="corrupted" if options.lens == "trace" else "clean",
            steps=options.steps, guidance=options.guidance, progress=progress,
        )  # fmt: skip
    columns = ["-".join(dict.fromkeys((str(w[0]), str(w[-1])))) for w in found.windows]
    verb = "restored" if options.lens == "trace" else "lost"
    effect, null = found.mean(), np.nanmean(found.null, axis=2)
    sheets = [
        number_table(values, found.sites, columns, title=title, signed=True, top=largest(effect, null))
        for values, title in (
            (effect, f"share of the effect that is {verb}, by steps"),
            (
                null,
                f"the same with the values of {options.null!r}"
                if options.null
                else "the same with the values of the empty prompt",
            ),
        )
    ]
    record = {
        "sites": found.sites,
        "windows": found.windows,
        "effect": found.effect,
        "null": found.null,
        "null_prompt": options.null,
        "clean": found.clean,
        "corrupted": found.corrupted,
        "into": found.into,
        "prompts": prompts,
        "seeds": seeds,
    }
    save(out, stacked(sheets), record)


def drifting(options: argparse.Namespace) -> None:
    """Likeness of a site's activations between steps."""
    from probe.lenses import drift

    out, pipe = new_file(options.out, force=options.force), load_model(options)
    prompts, seeds = drawn_grid(options)
    found = drift(pipe, options.sites, prompts, seeds, steps=options.steps, guidance=options.guidance)
    change = found.between_neighbours()
    steps = [f"{i}-{i + 1}" for i in range(len(found.timesteps) - 1)]
    table = np.stack([values.mean(0) for values in change.values()])
    record = {
        "timesteps": found.timesteps,
        "cosine": {site: values.mean(0) for site, values in found.cosine.items()},
        "cka": found.cka,
        "prompts": prompts,
        "seeds": seeds,
    }
    save(out, number_table(table, list(change), steps, title="1 - cosine from one step to the next"), record)


def _probability(pipe: Pipeline, concept: str | None) -> Measure | None:
    """The judge's probability of FACTOR=LABEL; None, the distance of pixels, without one."""
    if concept is None:
        return None
    from apps.judging import judge_of
    from probe.canvas import FACTORS

    factor, _, label = concept.partition("=")
    judge = judge_of(pipe)
    if judge is None or label not in FACTORS.get(factor, ()):
        raise InvalidOption(f"--concept {concept}: expected FACTOR=LABEL of canvas, such as object=star.")
    column = FACTORS[factor].index(label)
    return lambda images: judge(images).probs[factor][:, column].astype(np.float64)
