"""Captions beside the canonical form."""

import numpy as np
import pytest

from probe.canvas.captions import PARAPHRASES, paraphrase, partial_caption, training_caption
from probe.canvas.world import FACTORS, caption, parse_caption

NAMES = {"object": "star", "style": "neon", "colour": "red", "background": "dark"}


def test_paraphrases_name_every_factor() -> None:
    for form in range(len(PARAPHRASES)):
        words = paraphrase(NAMES, form).replace(",", "").split()
        assert set(NAMES.values()) <= set(words)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (("object", "style"), "a star in neon style"),
        (("colour",), "a red thing"),
        (("background", "object"), "a star on dark background"),
        ((), "a thing"),
    ],
)
def test_partial_caption_leaves_out_what_is_missing(keep: tuple[str, ...], expected: str) -> None:
    assert partial_caption({k: NAMES[k] for k in keep}) == expected


def test_partial_caption_of_everything_is_canonical() -> None:
    assert partial_caption(NAMES) == caption(NAMES)
    assert parse_caption(partial_caption(NAMES)) == {f: NAMES[f] for f in FACTORS}


def test_training_captions_are_mostly_canonical_and_reproducible() -> None:
    texts = [training_caption(NAMES, np.random.default_rng(seed)) for seed in range(1000)]
    again = [training_caption(NAMES, np.random.default_rng(seed)) for seed in range(1000)]
    assert texts == again
    share = texts.count(caption(NAMES)) / len(texts)
    # 70 % are drawn as canonical and 0.15 * 0.85 * 0.6^3 = 3 % keep every clause by chance; four sigma are 6 %.
    assert abs(share - 0.73) < 0.06
