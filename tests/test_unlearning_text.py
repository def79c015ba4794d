"""Rows of a text encoder in a store, and a dictionary of them (apps/unlearning/text_dictionary.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apps.prompts import LabelledPrompts
from apps.unlearning.text_dictionary import caption_variants, text_dictionary
from probe.canvas import FACTORS, caption
from probe.errors import InvalidRequest
from probe.interventions import AddDirection, Intervention, intervene
from probe.interventions.guide import text_embedding, text_embeddings
from probe.unlearning import Setting, saeuron
from probe.unlearning.text_rows import text_rows, text_store

SITE = "text_encoder.encoder.layers.0"
WORDS = ("star", "moon", "cup")
STYLES = ("flat", "neon")
PROMPTS = LabelledPrompts(
    tuple(f"a {o} in {s}" for o in WORDS for s in STYLES),
    {"object": tuple(o for o in WORDS for _ in STYLES), "style": STYLES * len(WORDS)},
)


@pytest.fixture
def pipe(tiny_pipe: Any) -> Any:
    return tiny_pipe


def test_rows_in_a_store_are_those_of_the_encoder(pipe: Any, tmp_path: Path) -> None:
    store = text_store(pipe, [SITE], PROMPTS.prompts, tmp_path / "s", labels=PROMPTS.labels)
    stored = store.site(f"{SITE}:out").read()
    seen: list[torch.Tensor] = []
    layer = pipe.text_encoder.get_submodule("encoder.layers.0")
    handle = layer.register_forward_hook(lambda _m, _a, out: seen.append(out if torch.is_tensor(out) else out[0]))
    for prompt in PROMPTS.prompts:
        text_embedding(pipe, prompt)
    handle.remove()
    assert stored.shape[1:3] == (1, 1)
    np.testing.assert_allclose(stored[:, 0, 0], torch.cat(seen).detach().numpy(), atol=1e-5)
    assert store.labels("object").tolist() == list(PROMPTS.labels["object"])


def test_a_store_is_continued_and_another_one_refused(pipe: Any, tmp_path: Path) -> None:
    from activations_store.errors import StoreError

    first = text_store(pipe, [SITE], PROMPTS.prompts, tmp_path)
    assert text_store(pipe, [SITE], PROMPTS.prompts, tmp_path).hashes == first.hashes
    with pytest.raises(StoreError):
        text_store(pipe, [SITE], (*PROMPTS.prompts[:-1], "a red star"), tmp_path)


def test_other_sites_are_refused(pipe: Any, tmp_path: Path) -> None:
    op = AddDirection(torch.ones(16))
    with pytest.raises(InvalidRequest, match="text encoder"):
        text_store(pipe, ["unet.mid_block"], PROMPTS.prompts, tmp_path)
    with pytest.raises(InvalidRequest, match="text encoder"):
        text_rows(pipe, SITE, [], op)


def test_prompts_together_are_prompts_one_by_one(pipe: Any) -> None:
    together = text_embeddings(pipe, PROMPTS.prompts)
    alone = torch.stack([text_embedding(pipe, prompt) for prompt in PROMPTS.prompts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_a_word_s_features_are_found_and_edited(pipe: Any, tmp_path: Path) -> None:
    """Pushing a word's features changes the embedding of its prompts more than that of others."""
    from sae import TrainConfig, score_concepts

    config = TrainConfig(site=f"{SITE}:out", d_sae=64, k=4, rows=60_000, batch_size=256, holdout=0.0, lr=3e-3)
    made = text_dictionary(pipe, config, PROMPTS, tmp_path / "rows", tmp_path / "sae")
    scores = score_concepts(made.sae, made.store, "object")
    edits = saeuron(
        scores, "star", dictionary=made.sae, site=SITE, setting=Setting(2, -1.0, branch="cond", relative=False)
    )
    moved = {}
    for word in WORDS:
        with intervene(pipe, edits):
            after = text_embedding(pipe, f"a {word} in flat")
        moved[word] = float((after - text_embedding(pipe, f"a {word} in flat")).norm())
    assert moved["star"] > 3 * max(moved["moon"], moved["cup"])
    # the edit is at the layer that was recorded, so the prompt's pass alone is edited
    assert all(isinstance(edit, Intervention) and edit.branch == "cond" for edit in edits)


def test_variants_of_captions_say_what_their_labels_say() -> None:
    names = {"object": "star", "style": "mosaic", "colour": "red", "background": "dark"}
    made = caption_variants(LabelledPrompts((caption(names),) * 3, {f: (names[f],) * 3 for f in FACTORS}))
    assert len(made.prompts) == 9
    assert made.prompts[0] == caption(names)
    for i, text in enumerate(made.prompts):
        words = text.replace(",", " ").split()
        for factor in FACTORS:
            assert made.labels[factor][i] in ("", names[factor])
            assert (names[factor] in words) == (made.labels[factor][i] == names[factor])
