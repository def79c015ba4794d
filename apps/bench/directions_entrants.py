"""The finders that ``denoscope bench directions`` compares, and how each is asked for a concept.

Three kinds, by what picks the vector that stands for a concept: the finder itself (``named``), the training rows among
the finder's vectors (``read``), or the judge among the edits (``tried``). Every edit at a site has the same length in
units of the site, so that a strength means the same for all; an adapter's strength counts in the change that was
trained. Finders on a Jacobian take no part: what they find belongs to one noisy sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

if TYPE_CHECKING:
    from activations_store import ActivationStore
    from probe.directions import Direction
    from probe.interventions import Intervention
    from probe.model import PipelineEps

Concept = tuple[str, str]
Edit = Callable[[int, float], Sequence["Intervention"]]


@dataclass(frozen=True)
class Found:
    """What a finder found.

    Attributes:
        edit: the interventions of (component, strength).
        k: components.
        direction: the vectors, where they are rows of the store's site; else None.
    """

    edit: Edit
    k: int
    direction: Direction | None = None


@dataclass(frozen=True)
class World:
    """What the finders are given.

    Attributes:
        model: canvas.
        store: labelled training rows of one site, without the rows that score.
        site: its full name.
        sizes: (n_steps,) root mean square length of the site's rows.
        steps: of generations.
        k: vectors of a finder that is not asked for a concept.
        iterations: of finders that are trained.
        samples: clean samples of full captions, for finders without labels.
        seed: of everything random.
    """

    model: PipelineEps
    store: ActivationStore
    site: str
    sizes: np.ndarray
    steps: int
    k: int
    iterations: int
    samples: torch.Tensor
    seed: int

    def at_site(self, direction: Direction, *, branch: str = "cond", inject: str = "both") -> Found:
        """Edits of one length: strength 1 is the root mean square length of the site's rows (of its map, for maps)."""
        if direction.site.endswith(":prompt"):
            from probe.interventions.guide import text_embedding

            size = text_embedding(self.model.pipe, "").float().square().sum(1).mean().sqrt().reshape(1)
        else:
            size = torch.from_numpy(self.sizes)
            size = size if len(size) == direction.n_rows else size.mean().reshape(1)
        tokens = direction.basis.shape[2] if direction.basis.ndim == 4 else 1
        scale = (size * tokens**0.5)[:, None].expand(direction.n_rows, direction.k)
        scaled = replace(direction, scale=scale, steps=None)

        def edit(component: int, strength: float) -> Sequence[Intervention]:
            return (scaled.intervention(component, strength, unit="std", branch=branch, inject=inject),)

        readable = direction.site == self.site and direction.basis.ndim == 3
        return Found(edit, direction.k, direction if readable else None)


@dataclass(frozen=True)
class Entrant:
    """One finder of the bench.

    Attributes:
        name: in the table.
        kind: see the module.
        find: called with the world and, for ``named``, the concept; else with None.
        rows_only: needs nothing but labelled rows, so that it can be fitted to shuffled labels.
        strengths: that are tried, if not the bench's.
    """

    name: str
    kind: Literal["named", "read", "tried"]
    find: Callable[[World, Concept | None], Found]
    rows_only: bool = False
    strengths: tuple[float, ...] | None = None


def entrants() -> dict[str, Entrant]:
    """All finders, by name, the random controls among them."""
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
        Entrant("concept vector", "named", _concept_vector(None)),
        Entrant("concept vector, prompt", "named", _concept_vector("unet:prompt")),
        Entrant("Asyrp", "named", _asyrp),
        Entrant("prompt difference", "named", _text_difference),
        Entrant("prompt PCA", "named", _text_pca),
        Entrant("random in the prompt", "tried", _random_prompt, strengths=(0.7, 1.5)),
        Entrant("NoiseCLR", "tried", _noise_clr, strengths=(1.0,)),
        Entrant("token sliders", "tried", _token_sliders, strengths=(1.0,)),
        Entrant("adapter sliders", "tried", _adapter_sliders, strengths=(4.0,)),
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


# Finders on the model


def _scenes(world: World, n: int, concept: Concept) -> list[dict[str, str]]:
    """The factor values of n captions that do not show a concept."""
    from apps.prompts import balanced
    from probe.canvas import FACTORS

    factor, value = concept
    others = [v for v in FACTORS[factor] if v != value]
    made = balanced(n, seed=world.seed + 7, within={factor: others})
    return [{f: made.labels[f][i] for f in FACTORS} for i in range(n)]


def _concept_vector(site: str | None) -> Callable[[World, Concept | None], Found]:
    def find(world: World, concept: Concept | None) -> Found:
        from probe.canvas import caption, partial_caption
        from probe.directions import ConceptVector, self_generated

        assert concept is not None
        scenes = _scenes(world, 16, concept)
        shown = [caption(scene | {concept[0]: concept[1]}) for scene in scenes]
        sources = [partial_caption({f: v for f, v in scene.items() if f != concept[0]}) for scene in scenes]
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


def _asyrp(world: World, concept: Concept | None) -> Found:
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
    prompts = [caption(scene) for scene in _scenes(world, 16, concept)]
    return world.at_site(finder.fit(world.model, prompts).direction_, inject="x0")


def _text_difference(world: World, concept: Concept | None) -> Found:
    from probe.canvas import caption
    from probe.directions import TextDifference

    assert concept is not None
    scenes = _scenes(world, 16, concept)
    pairs = [(caption(scene | {concept[0]: concept[1]}), caption(scene)) for scene in scenes]
    return world.at_site(TextDifference().fit(world.model, pairs).direction_)


def _text_pca(world: World, concept: Concept | None) -> Found:
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


def _noise_clr(world: World, _: Concept | None) -> Found:
    from probe.directions import NoiseCLR

    finder = NoiseCLR(k=world.k, at_once=world.k, iterations=world.iterations, view="map", seed=world.seed)
    return world.at_site(finder.fit(world.model, world.samples).direction_)


def _one_prompt(world: World) -> tuple[torch.Tensor, str]:
    """Samples of a caption that names nothing, and the caption."""
    from probe.canvas import partial_caption
    from probe.directions import self_generated

    prompt = partial_caption({})
    return self_generated(world.model, [prompt] * 32, range(32), steps=world.steps), prompt


def _token_sliders(world: World, _: Concept | None) -> Found:
    from probe.directions import TokenSliders

    finder = TokenSliders(k=world.k, iterations=world.iterations, view="map", orthogonal=True, seed=world.seed)
    return world.at_site(finder.fit(world.model, *_one_prompt(world)).direction_)


def _adapter_sliders(world: World, _: Concept | None) -> Found:
    from probe.directions import AdapterSliders

    finder = AdapterSliders(k=world.k, iterations=world.iterations, seed=world.seed)
    adapter = finder.fit(world.model, *_one_prompt(world)).adapter_
    return Found(adapter.interventions, adapter.k)


def _random_prompt(world: World, _: Concept | None) -> Found:
    from probe.directions import Direction
    from probe.interventions.guide import text_embedding

    shape = text_embedding(world.model.pipe, "").shape
    generator = torch.Generator().manual_seed(world.seed)
    return world.at_site(Direction("unet:prompt", torch.randn(1, world.k, *shape, generator=generator)))
