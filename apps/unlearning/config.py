"""Settings of the unlearning benchmark: what is recorded, which dictionaries are learned, which settings are tried.

Every setting of a method below is tried for every target of its factor on validation prompts and seeds, and the best by
the rule of ``probe.unlearning.balanced`` is scored. The lists themselves were chosen with validation images too, never
with the scored ones.
"""

from __future__ import annotations

from apps.unlearning.candidates import (
    Candidate,
    Direction,
    Features,
    NormMatched,
    Phrase,
    Plain,
    Rewrite,
    TextFeatures,
    TextSteering,
    Tuned,
)
from probe.unlearning import ESDSetting, Setting
from sae import TrainConfig

N_PROMPTS = 480
"""Labelled prompts that are recorded, balanced over all factor values; the first seeds from 0 on."""

OBJECT_SITE = "unet.up_blocks.0.attentions.1:out"
STYLE_SITE = "unet.up_blocks.1:out"
CROSS_ATTENTION = {
    f"cross-{name}": f"unet.{path}.transformer_blocks.0.attn2:out"
    for name, path in {
        "down1": "down_blocks.1.attentions.0",
        "down2": "down_blocks.2.attentions.0",
        "mid": "mid_block.attentions.0",
        "up0a": "up_blocks.0.attentions.0",
        "up0b": "up_blocks.0.attentions.1",
        "up1a": "up_blocks.1.attentions.0",
        "up1b": "up_blocks.1.attentions.1",
    }.items()
}
"""What every cross-attention of the denoiser adds to its rows, by the name of its dictionary: the only places where a
prompt enters the picture.
"""
TEXT = {
    "text-layer0": "text_encoder.encoder.layers.0:out",
    "text-final": "text_encoder.final_layer_norm:out",
}
"""Layers of the text encoder with a dictionary."""

SITES = (OBJECT_SITE, STYLE_SITE, *CROSS_ATTENTION.values())
"""Sites that are recorded: those of the dictionaries and of the projections."""

VALIDATION_TARGET, VALIDATION_RETAIN = 16, 24
"""Validation images of a setting that ask for the target, and that do not."""


def _dictionary(site: str, expansion: int, k: int, lr: float) -> TrainConfig:
    return TrainConfig(
        site=site, expansion=expansion, k=k, rows=800_000, batch_size=2048, lr=lr, branches=("uncond", "cond")
    )


DICTIONARIES: dict[str, TrainConfig] = {
    "attention": _dictionary(OBJECT_SITE, 2, 8, 1.6e-3),
    "block": _dictionary(STYLE_SITE, 1, 8, 2.6e-3),
    **{
        name: TrainConfig(
            site=site, d_sae=512, k=8, rows=600_000, batch_size=2048, lr=4.5e-3, branches=("uncond", "cond")
        )
        for name, site in CROSS_ATTENTION.items()
    },
    **{
        name: TrainConfig(site=site, d_sae=256, k=4, rows=600_000, batch_size=2048, lr=6.4e-3, branches=("cond",))
        for name, site in TEXT.items()
    },
}
"""Dictionaries by name. Those of the text encoder learn from captions, all others from recorded activations."""

PHRASES = {"object": "a {}", "style": "a thing in {} style"}
"""How a prompt says a concept, its label in the place of the braces."""


def _features(dictionary: str, counts: tuple[int, ...], multipliers: tuple[float, ...]) -> tuple[Features, ...]:
    return tuple(
        Features((dictionary,), Setting(n_features=n, multiplier=m, relative=False))
        for n in counts
        for m in multipliers
    )


def _across(names: tuple[str, ...], *settings: tuple[int, float]) -> tuple[Features, ...]:
    """At several sites at once: (features of each site, multiplier), only features that are the concept's own."""
    return tuple(Features(names, Setting(n_features=n, multiplier=m, relative=False, margin=2.0)) for n, m in settings)


def _directions(site: str, *names: str) -> tuple[Direction, ...]:
    """At one site, and where features are edited."""
    sites = tuple(CROSS_ATTENTION[name] for name in names)
    alone = tuple(Direction((site,), strength=strength) for strength in (1.0, 2.0, 4.0))
    return (*alone, *(Direction(sites, strength=strength, branch="cond") for strength in (1.0, 2.0)))


def _esd(*settings: tuple[str, int, float]) -> tuple[Tuned, ...]:
    """(phrase, iterations, learning rate)."""
    return tuple(Tuned(ESDSetting(iterations=iterations, lr=lr), phrase) for phrase, iterations, lr in settings)


_OBJECT_SITES, _STYLE_SITES = ("cross-up0a", "cross-up0b"), ("cross-up1a", "cross-up1b")

_DIRECTIONS: dict[str, tuple[Candidate, ...]] = {
    "object": _directions(OBJECT_SITE, *_OBJECT_SITES),
    "style": _directions(STYLE_SITE, *CROSS_ATTENTION),
}

CANDIDATES: dict[str, dict[str, tuple[Candidate, ...]]] = {
    "no_edit": {"object": (Plain(),), "style": (Plain(),)},
    "random_direction": {"object": (Plain(),), "style": (Plain(),)},
    "negative_prompt": {factor: (Phrase(phrase), Phrase("{}")) for factor, phrase in PHRASES.items()},
    "mean_difference": _DIRECTIONS,
    "lda": _DIRECTIONS,
    "uce": {
        "object": (
            *(Rewrite(guide, phrase="a red {}") for guide in ("thing", "heart", "house")),
            Rewrite("thing"),
            Rewrite("heart", erase_scale=10.0),
        ),
        "style": (
            *(Rewrite(guide) for guide in ("flat", "clay")),
            Rewrite("flat", phrase=PHRASES["style"]),
            Rewrite("flat", erase_scale=10.0),
        ),
    },
    "esd": {
        "object": _esd(("a red {}", 300, 3e-4), (PHRASES["object"], 300, 3e-4), (PHRASES["object"], 100, 1e-3)),
        "style": _esd(*(("a red thing in {} style", *rest) for rest in ((300, 1e-3), (100, 1e-3), (100, 3e-3)))),
    },
    "saeuron": {
        "object": _across(_OBJECT_SITES, (8, -1.0), (8, -2.0), (8, -4.0)),
        "style": (
            *_across(tuple(CROSS_ATTENTION), (8, -0.75), (8, -1.0), (8, -1.25), (8, -1.5)),
            *_across(_STYLE_SITES, (8, -1.0), (8, -1.5)),
        ),
    },
    "norm_scaled": {
        "object": _across(_OBJECT_SITES, (8, -0.1), (8, -0.3), (8, -1.0)),
        "style": _across(tuple(CROSS_ATTENTION), (8, -0.1), (8, -0.3), (8, -1.0)),
    },
    "patch_replacement": {
        "object": (*_features("attention", (1, 2, 4), (-1.0,)), *_across(_OBJECT_SITES, (2, -1.0))),
        "style": (*_features("block", (1, 2, 4), (-1.0,)), *_across(tuple(CROSS_ATTENTION), (2, -1.0))),
    },
    "norm_matched": {
        "object": tuple(NormMatched(_OBJECT_SITES, rho) for rho in (-2.0, -2.5, -3.0)),
        "style": (
            *(NormMatched(tuple(CROSS_ATTENTION), rho) for rho in (-2.0, -2.5)),
            NormMatched(tuple(CROSS_ATTENTION), -2.0, branch="cond"),
        ),
    },
    "concept_steerer": {
        factor: tuple(TextSteering("text-layer0", phrase, strength) for strength in (-0.3, -0.6, -1.0))
        for factor, phrase in (("object", "a red {}"), ("style", "a red thing on white background in {} style"))
    },
    "deactivate": {
        factor: tuple(TextFeatures("text-layer0", phrase, 16, gamma) for gamma in (-1.0, -2.0, -6.0))
        for factor, phrase in PHRASES.items()
    },
}
"""For each method and factor, the settings that validation chooses from; none: the method does not run."""
