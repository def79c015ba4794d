"""Finders of ``denoscope bench directions`` whose vectors belong to one noisy sample, and how they serve others.

    h Jacobian    the basis of one point is used for all prompts and steps, as in the paper's own edits
    pullback      left vectors of one point, carried to the point of every prompt through the bottleneck
    local edit    the basis of one point, used for all prompts at its step
    latent SVD    every prompt has its own pair: the same prompt and seed with the concept in it

The points are those of generations in the middle of their steps; the one that serves others is of a sample that is not
judged. Edits of the state are made once, at the step of the point.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from apps.bench.directions_world import Concept, Edit, Found, World

if TYPE_CHECKING:
    from probe.directions import Point

MAP_STRENGTHS = (0.1, 0.25, 0.5)
"""In lengths of the site's maps: those that the output depends on most destroy the image at 1."""
STATE_STRENGTHS = (0.25, 0.5, 1.0)
"""In lengths of the state."""
BOTTLENECK = "mid_block"


def h_jacobian(world: World, _: Concept | None) -> Found:
    """The vectors of the site that move the predicted noise most."""
    from probe.directions import HJacobian

    finder = HJacobian(site=world.site, k=world.k, tol=1e-3, seed=world.seed)
    finder.fit(world.model, [_point(world, world.prompts[0], 900)])
    return replace(world.at_site(finder.direction_), products=finder.products_)


def pullback(world: World, _: Concept | None) -> Found:
    """The vectors of the state that move the bottleneck most, where every prompt is."""
    from probe.directions import Pullback

    def fitted(prompt: str, seed: int, k: int) -> Pullback:
        finder = Pullback(feature=BOTTLENECK, k=k, tol=1e-3, seed=world.seed)
        return finder.fit(world.model, [_point(world, prompt, seed)])

    first = fitted(world.prompts[0], 900, world.k)
    products, edits = first.products_, list[Edit]()
    for prompt, seed in zip(world.prompts, world.seeds, strict=True):
        own = fitted(prompt, seed, 2 * world.k)
        products += own.products_
        edits.append(world.at_state(own.transport(first.feature_direction_)))
    return Found(tuple(edits), world.k, products=products)


def local_edit(world: World, _: Concept | None) -> Found:
    """The vectors of the state that move the middle of the image and leave its rim."""
    from probe.directions import LocalEdit

    height, width = world.model.sample_shape[-2:]
    mask = torch.zeros(height, width)
    mask[height // 4 : -(height // 4), width // 4 : -(width // 4)] = 1
    finder = LocalEdit(mask=mask, k=world.k, tol=1e-3, seed=world.seed)
    finder.fit(world.model, [_point(world, world.prompts[0], 900)])
    return Found((world.at_state(finder.direction_),), world.k, products=finder.products_)


def latent_svd(world: World, concept: Concept | None) -> Found:
    """Half of the singular triplets of the state, from the same prompt and seed with the concept in it."""
    from tempfile import TemporaryDirectory

    from activations_store import ActivationStore
    from probe.canvas import caption, parse_caption
    from probe.capture import CapturePlan, collect
    from probe.directions import LatentSVD

    assert concept is not None
    shown = [caption(parse_caption(prompt) | {concept[0]: concept[1]}) for prompt in world.prompts]
    pairs = [prompt for pair in zip(world.prompts, shown, strict=True) for prompt in pair]
    plan = CapturePlan.for_pipeline(
        world.model.pipe, "unet:in", pairs, seeds=[seed for seed in world.seeds for _ in range(2)], steps=world.steps,
        record_steps=(world.steps // 2,), branches=("cond",), images=False,
    )  # fmt: skip
    edits: list[Edit] = []
    with TemporaryDirectory() as folder:
        collect(world.model.pipe, plan, folder)
        store = ActivationStore.open(folder)
        for i in range(len(world.prompts)):
            rank = world.model.sample_shape[-1] // 2
            change = LatentSVD().write(store, source=2 * i, target=2 * i + 1, step=0, rank=rank)
            edits.append(lambda _, strength, change=change: (change.intervention(strength=strength, unit="raw"),))
    return Found(tuple(edits), 1)


def random_maps(world: World, _: Concept | None) -> Found:
    """Control: random maps at the site."""
    from probe.directions import Direction
    from probe.directions.points import Point, site_value

    z = torch.zeros(1, *world.model.sample_shape)
    shape = site_value(world.model, Point(z, world.model.log_snr_range[0]), world.site).flatten(2).mT.shape[1:]
    generator = torch.Generator().manual_seed(world.seed)
    return world.at_site(Direction(world.site, torch.randn(1, world.k, *shape, generator=generator)))


def random_state(world: World, _: Concept | None) -> Found:
    """Control: random changes of the state, at the same step."""
    from probe.directions import Direction

    channels, height, width = world.model.sample_shape
    generator = torch.Generator().manual_seed(world.seed)
    basis = torch.randn(1, world.k, height * width, channels, generator=generator)
    return Found((world.at_state(Direction("sampler:x_t", basis, steps=(world.steps // 2,))),), world.k)


def _point(world: World, prompt: str, seed: int) -> Point:
    """The point in the middle of a generation."""
    from probe.directions import trajectory
    from probe.model import generation_defaults

    guidance = generation_defaults(world.model.pipe).guidance
    return trajectory(world.model, prompt, seed, steps=world.steps, guidance=guidance)[world.steps // 2]
