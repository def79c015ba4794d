"""Dictionaries of a text encoder's layers: few and exact features for the words of a prompt.

A caption names its concept, so in a layer of the text encoder a concept is a handful of features, on at its word and at
every later position that has read it. The rows are few (one pass over the prompts), and a dictionary trains in seconds.
An edit of them never sees a prompt that was not written in words: an attack on the embedding goes around it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from apps.prompts import LabelledPrompts

if TYPE_CHECKING:
    from activations_store import ActivationStore
    from probe.model.pipeline import Pipeline
    from sae import Dictionary, TrainConfig, TrainProgress


class TextDictionary(NamedTuple):
    """A trained dictionary and the rows that it was trained on, labelled for ``sae.score_concepts``."""

    sae: Dictionary
    store: ActivationStore


def text_dictionary(
    pipe: Pipeline,
    config: TrainConfig,
    prompts: LabelledPrompts,
    rows: Path,
    out: Path,
    *,
    progress: Callable[[TrainProgress], None] | None = None,
) -> TextDictionary:
    """Record a layer of the text encoder and train its dictionary; what is there already is taken or continued.

    Args:
        pipe: the pipeline.
        config: of the dictionary; its site is the output of a module of the text encoder.
        prompts: labelled texts.
        rows: folder of the store of rows.
        out: folder of the dictionary.
        progress: of the training.

    Raises:
        probe.errors.UnknownSite, InvalidRequest: the site is none of a text encoder.
        activations_store.errors.PlanMismatch, sae.errors.RunMismatch: a folder holds rows of other prompts, or a
            dictionary of another configuration.
    """
    from probe.unlearning.text_rows import text_store
    from sae import train

    store = text_store(pipe, [config.site], prompts.prompts, rows, labels=prompts.labels)
    return TextDictionary(train(store, config, out, progress=progress).sae, store)


def caption_variants(captions: LabelledPrompts, *, seed: int = 0) -> LabelledPrompts:
    """Canvas captions, each also in another word order and with some clauses left out (label "" where one is).

    Args:
        captions: full captions.
        seed: decides which clauses are left out.
    """
    import numpy as np

    from probe.canvas.captions import PARAPHRASES, paraphrase, partial_caption

    rng = np.random.default_rng(seed)
    texts: list[str] = []
    labels: dict[str, list[str]] = {factor: [] for factor in captions.labels}

    def add(text: str, names: dict[str, str]) -> None:
        texts.append(text)
        for factor, values in labels.items():
            values.append(names.get(factor, ""))

    for i, caption in enumerate(captions.prompts):
        names = {factor: values[i] for factor, values in captions.labels.items()}
        partial = {factor: value for factor, value in names.items() if rng.random() < _KEPT}
        add(caption, names)
        add(paraphrase(names, i % len(PARAPHRASES)), names)
        add(partial_caption(partial), partial)
    return LabelledPrompts(tuple(texts), {factor: tuple(values) for factor, values in labels.items()})


_KEPT = 0.6  # chance that a clause stays, as in the model's own training captions
