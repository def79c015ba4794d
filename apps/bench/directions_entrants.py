"""The finders that ``denoscope bench directions`` compares, and those that fit on a store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from apps.bench.directions_world import Concept, Entrant, Found, World


def entrants() -> dict[str, Entrant]:
    """All finders, by name, the random controls among them."""
    from apps.bench import directions_local as local
    from apps.bench import directions_trained as trained
    from probe import directions as d

    contrasts: dict[str, tuple[Any, dict[str, Any]]] = {
        "mean difference": (d.MeanDifference, {}),
        "LDA": (d.LDA, {"shrinkage": 0.1}),
        "logistic probe": (d.LogisticProbe, {"C": 0.01}),
        "ridge probe": (d.RidgeProbe, {"penalty": 0.1}),
        "CAV": (d.CAV, {"repeats": 4, "C": 0.01}),
    }
    components: dict[str, tuple[Any, dict[str, Any]]] = {
        "PCA": (d.PCA, {"n_components": 24}),
        "ICA": (d.ICA, {"n_components": 24, "max_rows": 4000, "max_iter": 200, "view": "tokens"}),
        "NMF": (d.NMF, {"n_components": 24, "max_rows": 2000, "max_iter": 200, "view": "tokens"}),
    }
    found = [
        *(Entrant(name, "named", _contrast(*spec), rows_only=True) for name, spec in contrasts.items()),
        *(Entrant(name, "read", _component(*spec)) for name, spec in components.items()),
        Entrant("dictionary", "read", _dictionary),
        Entrant("random, 24", "read", _random_24),
        Entrant("concept vector", "named", trained.concept_vector(None)),
        Entrant("concept vector, prompt", "named", trained.concept_vector("unet:prompt")),
        Entrant("Asyrp", "named", trained.asyrp),
        Entrant("prompt difference", "named", trained.text_difference),
        Entrant("prompt PCA", "named", trained.text_pca),
        Entrant("random in the prompt", "tried", _random_prompt, strengths=(0.7, 1.5)),
        Entrant("NoiseCLR", "tried", trained.noise_clr, strengths=(1.0,)),
        Entrant("token sliders", "tried", trained.token_sliders, strengths=(1.0,)),
        Entrant("adapter sliders", "tried", trained.adapter_sliders, strengths=(5.0, 20.0)),
        Entrant("h Jacobian", "tried", local.h_jacobian, strengths=local.MAP_STRENGTHS),
        Entrant("random maps", "tried", local.random_maps, strengths=local.MAP_STRENGTHS),
        Entrant("pullback", "tried", local.pullback, strengths=local.STATE_STRENGTHS),
        Entrant("local edit", "tried", local.local_edit, strengths=local.STATE_STRENGTHS),
        Entrant("random in the state", "tried", local.random_state, strengths=local.STATE_STRENGTHS),
        Entrant("latent SVD", "named", local.latent_svd, strengths=(1.0,)),
    ]
    return {entrant.name: entrant for entrant in found}


# Finders on a store


def _contrast(cls: Any, options: Mapping[str, Any]) -> Callable[[World, Concept | None], Found]:
    def find(world: World, concept: Concept | None) -> Found:
        assert concept is not None
        finder = cls(site=world.site, factor=concept[0], positive=concept[1], holdout=0.1, **options)
        return world.at_site(finder.fit(world.store).direction_)

    return find


def _component(cls: Any, options: Mapping[str, Any]) -> Callable[[World, Concept | None], Found]:
    def find(world: World, _: Concept | None) -> Found:
        return world.at_site(cls(site=world.site, **options).fit(world.store).direction_)

    return find


def _dictionary(world: World, _: Concept | None) -> Found:
    """The decoder columns of a dictionary trained on the same rows."""
    from tempfile import TemporaryDirectory

    from probe.directions import DictionaryColumns
    from sae import TrainConfig, train

    plan = TrainConfig(site=world.site, expansion=2, k=8, rows=60_000, batch_size=256, seed=world.seed, holdout=0.0)
    with TemporaryDirectory() as folder:
        sae = train(world.store, plan, f"{folder}/sae").sae
    finder = DictionaryColumns(site=world.site, dictionary=sae, features=range(sae.W_dec.shape[0]), view="tokens")
    return world.at_site(finder.fit(world.store).direction_)


def _random_24(world: World, _: Concept | None) -> Found:
    return _random_rows(world, 24)


def _random_rows(world: World, k: int) -> Found:
    from probe.directions import Direction

    generator = torch.Generator().manual_seed(world.seed)
    width = world.store.site(world.site).spec.channels
    return world.at_site(Direction(world.site, torch.randn(1, k, width, generator=generator)))


def _random_prompt(world: World, _: Concept | None) -> Found:
    from probe.directions import Direction
    from probe.interventions.guide import text_embedding

    shape = text_embedding(world.model.pipe, "").shape
    generator = torch.Generator().manual_seed(world.seed)
    return world.at_site(Direction("unet:prompt", torch.randn(1, world.k, *shape, generator=generator)))
