"""The methods of ``denoscope directions``: what each needs and takes, so that an option without use is one clear error.

Those on a store read recorded rows. Those on a model run it: along one generation (Jacobians), for many iterations
(training), or its text encoder alone (prompts).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Literal

from apps.errors import InvalidOption

Group = Literal["labels", "components", "dictionary", "pair", "jacobian", "trained", "prompts"]


@dataclass(frozen=True)
class Method:
    """One finder of the command.

    Attributes:
        group: what it is fitted to.
        needs: options without which it cannot run.
        takes: further options that it has a use for.
        strength: of the recipe, if none is given.
    """

    group: Group
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    strength: float = 2.0

    @property
    def on_model(self) -> bool:
        """Whether it needs a model rather than a store."""
        return self.group in ("jacobian", "trained", "prompts")


_LABELS = Method("labels", ("factor", "positive"), ("site", "negative", "view"))
_COMPONENTS = Method("components", (), ("site", "view", "components"))
_POINT = ("seed", "steps", "guidance", "at_step", "components", "iterations")
_SAMPLES = ("samples", "seed", "steps", "guidance", "iterations")
METHODS: dict[str, Method] = {
    **dict.fromkeys(("mean-difference", "lda", "logistic", "ridge", "cav"), _LABELS),
    **dict.fromkeys(("pca", "ica", "nmf"), _COMPONENTS),
    "dictionary": Method("dictionary", ("feature",), ("sae", "view")),
    "latent-svd": Method("pair", ("source", "target"), ("at_step", "rank"), 1.0),
    "h-jacobian": Method("jacobian", ("prompt",), ("site", "mask", *_POINT), 5.0),
    "pullback": Method("jacobian", ("prompt",), ("site", *_POINT), 4.0),
    "local-edit": Method("jacobian", ("prompt", "mask"), ("null_rank", *_POINT), 6.0),
    "concept-vector": Method("trained", ("prompt", "without"), ("site", "view", *_SAMPLES), 1.0),
    "asyrp": Method("trained", ("prompt", "without"), ("site", "view", "seed", "iterations"), 1.0),
    "noise-clr": Method("trained", ("prompt",), ("view", "components", *_SAMPLES), 1.0),
    "token-sliders": Method("trained", ("prompt",), ("view", "components", *_SAMPLES), 1.0),
    "adapter-sliders": Method("trained", ("prompt",), ("components", *_SAMPLES), 1.0),
    "text-difference": Method("prompts", ("prompt", "without"), ("view",), 1.0),
    "text-pca": Method("prompts", ("prompt",), ("view", "components"), 2.0),
}
_OPTIONS = frozenset(option for method in METHODS.values() for option in (*method.needs, *method.takes))
_FLAGS = {"at_step": "--at-step", "null_rank": "--null-rank"}
_SHOWN = {
    "feature": "--feature, the number of a feature",
    "factor": "--factor and --positive, such as object and star",
    "positive": "--factor and --positive, such as object and star",
    "prompt": "--prompt (or --prompts)",
    "without": "--without, the prompt without the concept",
    "mask": "--mask, such as 0.25,0.25,0.75,0.75",
    "source": "--source and --target, numbers of two samples",
    "target": "--source and --target, numbers of two samples",
}


def chosen(options: argparse.Namespace) -> Method:
    """The method, after a check of the options.

    Raises:
        InvalidOption: an option is missing, or has no use for the method.
    """
    method = METHODS[options.method]
    for name in _OPTIONS - {*method.needs, *method.takes}:
        if getattr(options, name) not in (None, []):
            flag = _FLAGS.get(name, f"--{name}")
            raise InvalidOption(f"directions: {options.method} has no use for {flag}; leave it out.")
    for name in method.needs:
        if getattr(options, name) in (None, []):
            raise InvalidOption(f"directions: {options.method} needs {_SHOWN[name]}.")
    return method


def components_of(options: argparse.Namespace) -> int:
    """How many vectors the method will find; raises InvalidOption for a ``--component`` outside."""
    method = METHODS[options.method]
    n = (options.components or 5) if "components" in method.takes else max(1, len(options.feature))
    if not 0 <= options.component < n:
        raise InvalidOption(f"directions: --component {options.component}; expected 0 to {n - 1}.")
    return n


def overview() -> str:
    """The methods by what they are fitted to, for the help."""
    titles: dict[Group, str] = {
        "labels": "a store with labels",
        "components": "a store",
        "dictionary": "a store and a dictionary of it",
        "pair": "a store with the sampler's state (unet:in)",
        "jacobian": "a model at a point of one generation",
        "trained": "a model, by training",
        "prompts": "a model's text encoder",
    }
    lines = ["methods, by what they need:"]
    for group, title in titles.items():
        lines.append(f"  {title:<44}{', '.join(name for name, m in METHODS.items() if m.group == group)}")
    return "\n".join(lines)
