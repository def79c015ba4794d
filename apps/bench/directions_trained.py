"""Finders of ``denoscope bench directions`` that are trained through the model, or ask its text encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from apps.bench.directions_world import Concept, Found, World, scenes


def concept_vector(site: str | None) -> Callable[[World, Concept | None], Found]:
    """At the world's site, or in the text embedding."""

    def find(world: World, concept: Concept | None) -> Found:
        from probe.canvas import caption, partial_caption
        from probe.directions import ConceptVector, self_generated

        assert concept is not None
        drawn = scenes(world, 16, concept)
        shown = [caption(scene | {concept[0]: concept[1]}) for scene in drawn]
        sources = [partial_caption({f: v for f, v in scene.items() if f != concept[0]}) for scene in drawn]
        x = self_generated(world.model, shown, range(16), steps=world.steps)
        finder = ConceptVector(
            site=site or world.site,
            view="map" if site else "tokens",
            iterations=world.iterations,
            lr=0.1,
            seed=world.seed,
        )
        return world.at_site(finder.fit(world.model, x, sources).direction_)

    return find


def asyrp(world: World, concept: Concept | None) -> Found:
    """What naming the concept does to the posterior mean, as one vector for all steps."""
    from probe.canvas import caption, partial_caption
    from probe.directions import Asyrp, PromptContrast
    from probe.model.schedule import schedule

    assert concept is not None
    contrast = PromptContrast(world.model, partial_caption({concept[0]: concept[1]}), partial_caption({}))
    levels = [a for a in schedule(world.model.pipe, world.steps)[1] if np.isfinite(a)]
    finder = Asyrp(
        objective=contrast, site=world.site, iterations=max(1, world.iterations // 6), levels=levels, per_step=False,
        lr=0.2, seed=world.seed,
    )  # fmt: skip
    prompts = [caption(scene) for scene in scenes(world, 16, concept)]
    return world.at_site(finder.fit(world.model, prompts).direction_, inject="x0")


def text_difference(world: World, concept: Concept | None) -> Found:
    """Captions with the concept less the same captions without it."""
    from probe.canvas import caption
    from probe.directions import TextDifference

    assert concept is not None
    drawn = scenes(world, 16, concept)
    pairs = [(caption(scene | {concept[0]: concept[1]}), caption(scene)) for scene in drawn]
    return world.at_site(TextDifference().fit(world.model, pairs).direction_)


def text_pca(world: World, concept: Concept | None) -> Found:
    """The principal direction over a factor's words that the concept's word lies farthest along."""
    from probe.canvas import FACTORS, partial_caption
    from probe.directions import TextPCA
    from probe.interventions.guide import text_embedding

    assert concept is not None
    factor, value = concept
    words = [partial_caption({factor: word}) for word in FACTORS[factor]]
    found = TextPCA(k=3).fit(world.model, words).direction_
    rows = torch.stack([text_embedding(world.model.pipe, word).flatten() for word in words]).double()
    along = ((rows - rows.mean(0)) @ found.flat[0].T / found.scales[0])[FACTORS[factor].index(value)]
    component = int(along.abs().argmax())
    chosen = found[component]
    return world.at_site(replace(chosen, basis=chosen.basis * float(torch.sign(along[component]))))


def noise_clr(world: World, _: Concept | None) -> Found:
    """What differs among the samples, without a word."""
    from probe.directions import NoiseCLR

    finder = NoiseCLR(k=world.k, at_once=world.k, iterations=world.iterations, view="map", seed=world.seed)
    return world.at_site(finder.fit(world.model, world.samples).direction_)


def _one_prompt(world: World) -> tuple[torch.Tensor, str]:
    """Samples of a caption that names nothing, and the caption."""
    from probe.canvas import partial_caption
    from probe.directions import self_generated

    prompt = partial_caption({})
    return self_generated(world.model, [prompt] * 32, range(32), steps=world.steps), prompt


def token_sliders(world: World, _: Concept | None) -> Found:
    """What varies among the samples of a caption that names nothing, as vectors in the text embedding."""
    from probe.directions import TokenSliders

    finder = TokenSliders(k=world.k, iterations=world.iterations, view="map", orthogonal=True, seed=world.seed)
    return world.at_site(finder.fit(world.model, *_one_prompt(world)).direction_)


def adapter_sliders(world: World, _: Concept | None) -> Found:
    """The same, as changes of weights."""
    from probe.directions import AdapterSliders

    finder = AdapterSliders(k=world.k, iterations=world.iterations, seed=world.seed)
    adapter = finder.fit(world.model, *_one_prompt(world)).adapter_
    return Found((adapter.interventions,), adapter.k)
