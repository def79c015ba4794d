"""Settings of the unlearning benchmark on UnlearnCanvas: the names of ``unlearn_config``, with published values.

SAeUron (Cywinski & Deja 2025, arXiv 2501.18052): dictionaries of two attention blocks, 16 times as wide as the rows, 32
features on for a row, BatchTopK in training, one for all steps, the conditional branch only; styles 1 feature with
gamma -1, objects a search over feature counts and gammas on prompts apart from those that are scored. ESD (Gandikota et
al. 2023): its paper's values for Stable Diffusion. UCE's guides and the grids of the other methods are this project's
choice; the projections and controls are those of canvas.

The paper records 83,200 prompts, 2.7 TB a site; its author reports like results for a thousand, which is what is
recorded here. These settings were not run at full size: who does should look at the validation scores first.
"""

from __future__ import annotations

from apps.unlearning.candidates import Candidate, Direction, Features, NormMatched, Phrase, Plain, Rewrite, Tuned
from probe.unlearning import ESDSetting, Setting
from sae import TrainConfig

N_PROMPTS = 1000
"""Labelled prompts that are recorded, balanced over objects and styles."""
VALIDATION_TARGET, VALIDATION_RETAIN = 20, 38
"""Validation images of a setting that ask for the target, and that do not."""

OBJECT_SITE = "unet.up_blocks.1.attentions.1:out"
STYLE_SITE = "unet.up_blocks.1.attentions.2:out"
SITES = (OBJECT_SITE, STYLE_SITE)
"""Sites that are recorded."""


def _dictionary(site: str, epochs: int) -> TrainConfig:
    return TrainConfig(
        site=site, architecture="batchtopk", expansion=16, k=32, batch_size=4096, lr=4e-4, epochs=epochs,
        branches=("cond",), dead_after=10_000_000,
    )  # fmt: skip


DICTIONARIES: dict[str, TrainConfig] = {"object": _dictionary(OBJECT_SITE, 5), "style": _dictionary(STYLE_SITE, 10)}
"""Dictionaries by name."""

PHRASES = {"object": "{}", "style": "{} style"}
"""How a prompt says a concept, its label in the place of the braces."""
_SITE = {"object": OBJECT_SITE, "style": STYLE_SITE}
_GUIDE = {"object": "thing", "style": "Seed Images"}
_OBJECT_SEARCH = [
    Features(("object",), Setting(n_features=n, multiplier=gamma))
    for n in (1, 3, 10, 20, 30)
    for gamma in (-5.0, -10.0, -20.0, -30.0)
]

CANDIDATES: dict[str, dict[str, tuple[Candidate, ...]]] = {
    "no_edit": {factor: (Plain(),) for factor in PHRASES},
    "random_direction": {factor: (Plain(),) for factor in PHRASES},
    "negative_prompt": {factor: (Phrase(phrase),) for factor, phrase in PHRASES.items()},
    "mean_difference": {f: tuple(Direction((site,), strength=s) for s in (1.0, 2.0, 4.0)) for f, site in _SITE.items()},
    "lda": {f: tuple(Direction((site,), strength=s) for s in (1.0, 2.0, 4.0)) for f, site in _SITE.items()},
    "uce": {f: (Rewrite(_GUIDE[f], phrase=phrase, tokens="last"),) for f, phrase in PHRASES.items()},
    "esd": {factor: (Tuned(ESDSetting(), phrase),) for factor, phrase in PHRASES.items()},
    "saeuron": {
        "object": tuple(_OBJECT_SEARCH),
        "style": (Features(("style",), Setting(n_features=1, multiplier=-1.0)),),
    },
    "norm_scaled": {
        f: tuple(Features((f,), Setting(n_features=2, multiplier=m, relative=False)) for m in (-0.3, -1.0))
        for f in PHRASES
    },
    "patch_replacement": {
        f: tuple(Features((f,), Setting(n_features=n, multiplier=-1.0, relative=False)) for n in (1, 4))
        for f in PHRASES
    },
    "norm_matched": {f: tuple(NormMatched((f,), rho) for rho in (-0.1, -0.3)) for f in PHRASES},
}
"""For each method and factor, the settings that validation chooses from; none: the method does not run."""
