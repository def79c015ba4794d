"""The judge of a model's images, and what it says of them in a few words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from apps.errors import NoJudge

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from probe.canvas import Judge, Verdict


def shipped_judge() -> Judge:
    """The judge in the package.

    Raises:
        NoJudge: this installation has no weights of it.
    """
    from probe.canvas import shipped_judge

    try:
        return shipped_judge()
    except FileNotFoundError as error:
        raise NoJudge(
            "The judge's weights are not part of this installation. Train them with: python -m probe.canvas.train"
        ) from error


def judge_of(pipe: DiffusionPipeline) -> Judge | None:
    """The judge of canvas's images; None for other models, whose images no judge here knows."""
    from probe.model import model_name

    return shipped_judge() if model_name(pipe) == "canvas" else None


def read_outs(verdict: Verdict, *, concept: tuple[str, str] | None = None) -> list[str]:
    """What the judge sees in each image, on two lines.

    Args:
        verdict: of N images.
        concept: (factor, value) whose probability is told too.

    Returns:
        N texts such as ``"red star\\nneon, dark"``; images that show nothing known begin with
        ``"artifact:"``.
    """
    from probe.canvas import FACTORS

    seen = {factor: verdict.labels(factor) for factor in FACTORS}
    texts = []
    for i, artifact in enumerate(verdict.is_artifact):
        first = f"{seen['colour'][i]} {seen['object'][i]}"
        second = f"{seen['style'][i]}, {seen['background'][i]}"
        if concept is not None:
            factor, value = concept
            second += f", {value} {verdict.probs[factor][i, FACTORS[factor].index(value)]:.0%}"
        texts.append(("artifact: " if artifact else "") + f"{first}\n{second}")
    return texts


def only_known(prompts: Sequence[str]) -> list[dict[str, str] | None]:
    """The factor values of each prompt; None where it is not a canvas caption."""
    from probe.canvas import SceneError, parse_caption

    found: list[dict[str, str] | None] = []
    for prompt in prompts:
        try:
            found.append(parse_caption(prompt))
        except SceneError:
            found.append(None)
    return found
