"""Finders of ``denoscope directions`` that need a model: what they are fitted to, what that costs, how good it is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.directions.cost import Cost, counted, fitted
from apps.directions.methods import METHODS, components_of
from apps.errors import InvalidOption

if TYPE_CHECKING:
    import torch

    from apps.progress import Progress
    from probe.interventions import Intervention
    from probe.model import PipelineEps

DEFAULT_SAMPLES = 16
DEFAULT_SITE = "mid_block"


@dataclass(frozen=True)
class Fit:
    """A finder and what it will be fitted to.

    Attributes:
        finder: not fitted yet.
        inputs: makes the arguments of ``fit`` after the model; given False, stand-ins that cost nothing, where drawing
            samples would.
        draws: samples that making the inputs draws.
        counts: the finder's field that says how often it iterates; None if it does not.
    """

    finder: Any
    inputs: Callable[[bool], tuple[Any, ...]]
    draws: int = 0
    counts: str | None = None

    def cost(self, model: PipelineEps, options: argparse.Namespace) -> Cost:
        """What making the inputs and fitting will cost; for finders on a Jacobian at most, as they stop by themselves.

        Draws one sample, and fits for one and for two iterations.
        """
        total = Cost()
        if self.draws:
            with counted(model.pipe) as one:
                _drawn(model, options, 1)
            total = Cost(**{name: value * self.draws for name, value in vars(one).items()})
        with counted(model.pipe) as made:
            given = self.inputs(False)
        total += made
        if self.counts is None:
            return total
        once, twice = (
            fitted(model.pipe, lambda n=n: replace(self.finder, **{str(self.counts): n}).fit(model, *given))[1]
            for n in (1, 2)
        )
        return total + once.extrapolated(twice, getattr(self.finder, self.counts))


def fit_of(options: argparse.Namespace, model: PipelineEps) -> Fit:
    """What the options of a method on a model describe.

    Raises:
        InvalidOption: they do not fit together, or the model.
    """
    return {"jacobian": _on_point, "trained": _trained, "prompts": _on_prompts}[METHODS[options.method].group](
        options, model
    )


def edits_of(finder: Any, component: int, strength: float, branch: str) -> tuple[Intervention, ...]:
    """The edits that a recipe of a fitted finder holds."""
    from probe.directions import AdapterSliders, Asyrp

    if isinstance(finder, AdapterSliders):
        return finder.adapter_.interventions(component, strength)
    if isinstance(finder, Asyrp):
        return (finder.edit(strength, branch=branch),)
    direction = finder.direction_
    branch = "both" if direction.site.startswith("sampler:") else branch  # the state is that of both branches
    return (direction.intervention(component, strength, branch=branch),)


def quality(finder: Any) -> str:
    """A table or a line on a fitted finder."""
    from apps.progress import table
    from probe.directions import TextDifference, TextPCA

    if isinstance(finder, TextDifference):
        return f"agreement of the pairs: {finder.agreement_:.3f}"
    if isinstance(finder, TextPCA):
        return f"variance explained: {finder.explained_variance_ratio_.sum():.1%}"
    if "singular_" in vars(finder):
        header = ["point", "singular values", "gap", "residual", "iterations"]
        rows = [
            [str(i), " ".join(f"{s:.3g}" for s in f.s.tolist()), f"{f.gap:.3f}", f"{f.residual:.1e}", f"{f.iterations}"]
            for i, f in enumerate(finder.singular_)
        ]
        return table(header, rows)
    n = max(1, len(finder.loss_) // 10)
    return f"loss: {finder.loss_[:n].mean():.4g} at first, {finder.loss_[-n:].mean():.4g} at last"


def _on_point(options: argparse.Namespace, model: PipelineEps) -> Fit:
    from probe.directions import HJacobian, LocalEdit, Pullback, trajectory
    from probe.model import generation_defaults

    default = generation_defaults(model.pipe)
    steps = options.steps or default.steps
    at = steps // 2 if options.at_step is None else options.at_step
    if len(options.prompt) != 1 or not 0 <= at < steps:
        raise InvalidOption(
            f"directions: {options.method} at step {at} of {steps}, of {len(options.prompt)} prompts; expected one "
            f"prompt and --at-step from 0 to {steps - 1}."
        )
    common: dict[str, Any] = {"k": components_of(options), "seed": options.seed or 0}
    if options.iterations:
        common["max_iter"] = options.iterations
    mask = None if options.mask is None else mask_of(options.mask, tuple(model.sample_shape))
    site = options.site or DEFAULT_SITE
    if options.method == "h-jacobian":
        finder: Any = HJacobian(site=site, mask=mask, **common)
    elif options.method == "pullback":
        finder = Pullback(feature=site, **common)
    else:
        assert mask is not None
        null_rank = 5 if options.null_rank is None else options.null_rank
        finder = LocalEdit(mask=mask, null_rank=null_rank, **common)

    def inputs(_: bool) -> tuple[Any, ...]:
        guidance = default.guidance if options.guidance is None else options.guidance
        point = trajectory(model, options.prompt[0], options.seed or 0, steps=steps, guidance=guidance)[at]
        if not isfinite(point.log_snr):
            raise InvalidOption(f"directions: step {at} starts from pure noise; choose a later --at-step.")
        return ([point],)

    return Fit(finder, inputs, counts="max_iter")


def _trained(options: argparse.Namespace, model: PipelineEps) -> Fit:
    import torch

    from probe import directions as d

    common: dict[str, Any] = {"seed": options.seed or 0}
    common |= {"iterations": options.iterations} if options.iterations else {}
    common |= {"view": options.view} if options.view else {}
    shown, without = options.prompt, options.without
    if options.method in ("concept-vector", "asyrp"):
        if len(without) not in (1, len(shown)):
            raise InvalidOption(f"directions: {len(shown)} --prompt and {len(without)} --without; give one for each.")
        common["site"] = options.site or DEFAULT_SITE
    if options.method == "asyrp":
        if len(shown) > 1:
            raise InvalidOption(f"directions: asyrp has one --prompt for its objective, not {len(shown)}.")
        contrast = d.PromptContrast(model, shown[0], without[0])
        return Fit(d.Asyrp(objective=contrast, **common), lambda _: (list(without),), counts="iterations")
    n = options.samples or DEFAULT_SAMPLES
    k: dict[str, Any] = {"k": components_of(options)} if options.method != "concept-vector" else {}
    if options.method == "noise-clr":
        finder: Any = d.NoiseCLR(**common, **k, at_once=min(4, k["k"]), batch=min(4, n))
        rest: tuple[Any, ...] = ()
    elif options.method == "concept-vector":
        finder = d.ConceptVector(**common)
        rest = ([without[i % len(shown) % len(without)] for i in range(n)],)
    else:
        if len(shown) > 1:
            raise InvalidOption(f"directions: {options.method} takes the samples of one --prompt, not {len(shown)}.")
        cls = d.TokenSliders if options.method == "token-sliders" else d.AdapterSliders
        finder, rest = cls(**common, **k), (shown[0],)

    def inputs(real: bool) -> tuple[Any, ...]:
        x = _drawn(model, options, n) if real else torch.randn(n, *model.sample_shape)
        return (x, *rest)

    return Fit(finder, inputs, draws=n, counts="iterations")


def _on_prompts(options: argparse.Namespace, model: PipelineEps) -> Fit:
    from probe.directions import TextDifference, TextPCA

    view: dict[str, Any] = {"view": options.view} if options.view else {}
    if options.method == "text-pca":
        return Fit(TextPCA(k=components_of(options), **view), lambda _: (list(options.prompt),))
    if len(options.prompt) != len(options.without):
        raise InvalidOption(
            f"directions: {len(options.prompt)} --prompt and {len(options.without)} --without; give them in pairs."
        )
    pairs = list(zip(options.prompt, options.without, strict=True))
    return Fit(TextDifference(**view), lambda _: (pairs,))


def _drawn(model: PipelineEps, options: argparse.Namespace, n: int) -> torch.Tensor:
    """Clean samples of the prompts in turn."""
    from apps.progress import bar
    from probe.directions import self_generated

    first = options.seed or 0
    prompts = [options.prompt[i % len(options.prompt)] for i in range(n)]
    with bar("draw samples", "sample") as progress:
        return self_generated(
            model, prompts, range(first, first + n), steps=options.steps, guidance=options.guidance, progress=progress
        )


def mask_of(text: str, shape: tuple[int, ...]) -> torch.Tensor:
    """What ``--mask`` means: left, top, right and bottom of a box in shares of the image, or an image file whose bright
    half may change; as weights (height, width) of the sample's cells.

    Raises:
        InvalidOption: neither.
    """
    import numpy as np
    import torch

    if len(shape) != 3:
        raise InvalidOption(f"--mask: samples of this model {shape} are no maps.")
    height, width = shape[1:]
    if Path(text).is_file():
        from PIL import Image

        from apps.images import read_image

        image = Image.fromarray(read_image(Path(text))).convert("L").resize((width, height), Image.Resampling.BOX)
        return torch.from_numpy((np.asarray(image) > 127).astype(np.float64))
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidOption(
            f"--mask {text}: expected an image file, or left,top,right,bottom in shares of the image, such as "
            "0.25,0.25,0.75,0.75."
        ) from error
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise InvalidOption(f"--mask {text}: expected 0 <= left < right <= 1, and the same for top and bottom.")
    x, y = (torch.arange(n, dtype=torch.float64).add(0.5) / n for n in (width, height))
    return (((x > left) & (x < right))[None] & ((y > top) & (y < bottom))[:, None]).double()


def fit(plan: Fit, model: PipelineEps, progress: Progress) -> Any:
    """The fitted finder."""
    from probe.directions.optimised import OptimisedFinder

    extra = {"progress": progress} if isinstance(plan.finder, OptimisedFinder) else {}
    return plan.finder.fit(model, *plan.inputs(True), **extra)
