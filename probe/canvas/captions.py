"""Other ways to say a canvas caption: what the denoiser is trained on beside the canonical form of ``world.caption``.

Most training captions are canonical. Some put the words in another order, and some leave clauses out, so that the
trained model also follows "a star in neon style" or "a red thing": a caption without a word is then a meaningful
condition, which information estimates and unlearning targets need.
"""

from collections.abc import Mapping

import numpy as np

from probe.canvas.world import FACTORS, caption

PARAPHRASES = (
    "a {style} style {colour} {object} on {background} background",
    "{colour} {object}, {style} style, {background} background",
    "in {style} style, a {colour} {object} on {background} background",
)
ANYTHING = "thing"  # stands for an object that is not named
_CANONICAL, _PARAPHRASED = 0.7, 0.15  # shares; the rest leaves clauses out


def paraphrase(names: Mapping[str, str], form: int) -> str:
    """One of the other word orders of a full caption; ``form`` indexes ``PARAPHRASES``."""
    return PARAPHRASES[form].format_map(names)


def partial_caption(names: Mapping[str, str]) -> str:
    """The canonical caption of the factors that are given; any may be missing.

    Example:
        ``partial_caption({"object": "star", "style": "neon"})`` is ``"a star in neon style"``.
    """
    words = ["a", names.get("colour", ""), names.get("object", ANYTHING)]
    words += [f"on {names['background']} background"] if "background" in names else []
    words += [f"in {names['style']} style"] if "style" in names else []
    return " ".join(word for word in words if word)


def training_caption(names: Mapping[str, str], rng: np.random.Generator) -> str:
    """A caption drawn for training; three draws of ``rng`` at most."""
    u = rng.random()
    if u < _CANONICAL:
        return caption(names)
    if u < _CANONICAL + _PARAPHRASED:
        return paraphrase(names, int(rng.integers(len(PARAPHRASES))))
    keep = rng.random(len(FACTORS)) < (0.85, 0.6, 0.6, 0.6)
    return partial_caption({f: names[f] for f, kept in zip(FACTORS, keep, strict=True) if kept})
