"""probe.directions: finders trained through a frozen denoiser, on a closed form whose answers are known."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from planted_pipeline import D_SITE, D_TEXT, Planted

from probe.directions import (
    AdapterSliders,
    Asyrp,
    ConceptVector,
    NoiseCLR,
    PromptContrast,
    TextDifference,
    TextPCA,
    TokenSliders,
    load_direction,
    random_adapter,
    random_direction,
    save_direction,
    self_generated,
)
from probe.directions.noise_clr import contrast
from probe.directions.slider_space import at_right_angles, principal
from probe.errors import InvalidDirection, NotFitted
from probe.interventions import Recipe, intervene
from probe.interventions.guide import text_embedding
from probe.model import fingerprint, generate

SEEDS = [0, 1, 2]
SOURCE = "a blue star"


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten().float(), b.flatten().float(), dim=0))


@pytest.fixture(scope="module", params=SEEDS)
def planted(request) -> Planted:
    return Planted(request.param)


# Concept vectors


def test_a_concept_vector_is_what_the_prompt_leaves_out(planted):
    c = normal(7, D_SITE)
    x = planted.samples(planted.h(SOURCE) + c, 64, 1)
    found = ConceptVector(iterations=80, batch=32, lr=0.3).fit(planted.model, x, SOURCE)
    assert found.direction_.site == "unet.mid_block:out" and found.direction_.basis.shape == (1, 1, D_SITE)
    vector = found.direction_.basis[0, 0]
    assert (vector - c).norm() / c.norm() < 0.1
    assert float(found.direction_.scales) == pytest.approx(float(vector.norm()))
    about = found.direction_.provenance
    assert about["loss"]["last"] < about["loss"]["first"] and len(found.loss_) == 80


def test_a_concept_vector_in_the_text_embedding(planted):
    c = normal(8, D_SITE)
    x = planted.samples(planted.h(SOURCE) + c, 64, 1)
    found = ConceptVector(site="unet:prompt", iterations=100, batch=32, lr=0.1).fit(planted.model, x, SOURCE)
    assert found.direction_.site == "unet:prompt" and found.direction_.basis.shape == (1, 1, D_TEXT)
    assert (planted.w @ found.direction_.basis[0, 0] - c).norm() / c.norm() < 0.15
    whole = ConceptVector(site="unet:prompt", view="map", iterations=2, batch=2).fit(planted.model, x, SOURCE)
    assert whole.direction_.basis.shape == (1, 1, 32, D_TEXT)


def test_the_learned_vector_does_to_generations_what_it_was_learned_for(planted, tmp_path):
    c = normal(7, D_SITE)
    x = planted.samples(planted.h(SOURCE) + c, 64, 1)
    found = ConceptVector(iterations=80, batch=32, lr=0.3).fit(planted.model, x, SOURCE).direction_
    again = load_direction(save_direction(found, tmp_path / "d"))
    assert again.hash == found.hash
    means = []
    for edits in ([], [again.intervention()], [random_direction(again, 0).intervention()]):
        with intervene(planted.model.pipe, edits):
            means.append(self_generated(planted.model, [SOURCE] * 32, range(32), steps=5, guidance=1.0).mean(0))
    moved, random = means[1] - means[0], means[2] - means[0]
    wanted = planted.m @ c
    assert cosine(moved, wanted) > 0.99 and float(moved.norm() / wanted.norm()) == pytest.approx(1.0, abs=0.15)
    assert abs(cosine(random, wanted)) < 0.9 * cosine(moved, wanted)


def test_fits_repeat_and_seeds_matter():
    planted = Planted(0)
    x = planted.samples(planted.h(SOURCE), 8, 1)
    seen: list[tuple[int, int]] = []
    fits = [
        ConceptVector(iterations=3, batch=2, seed=s).fit(planted.model, x, SOURCE, lambda i, n: seen.append((i, n)))
        for s in (0, 0, 1)
    ]
    assert fits[0].direction_.hash == fits[1].direction_.hash != fits[2].direction_.hash
    assert seen[:3] == [(1, 3), (2, 3), (3, 3)]


# Contrast


@pytest.mark.parametrize("k", [2, 4])
def test_the_contrast_of_simplex_corners_is_its_least_value(k):
    corners = torch.eye(k) - 1 / k
    f = corners[:, None].expand(k, 3, k)
    assert float(contrast(f, 0.5)) == pytest.approx(-(1 + 1 / (k - 1)) / 0.5, rel=1e-5)
    assert float(contrast(torch.ones(k, 3, 5), 0.5)) == pytest.approx(0.0, abs=1e-5)


def test_contrastive_directions_spread_to_the_corners_of_a_simplex(planted):
    x = planted.samples(planted.h(SOURCE), 8, 1)
    found = NoiseCLR(k=4, at_once=4, batch=2, iterations=100, lr=0.05).fit(planted.model, x)
    assert found.direction_.basis.shape == (1, 4, D_TEXT) and found.direction_.site == "unet:prompt"
    changes = found.direction_.basis[0] @ planted.w.T @ planted.m.T
    unit = torch.nn.functional.normalize(changes, dim=1)
    off = (unit @ unit.T)[~torch.eye(4, dtype=torch.bool)]
    assert (off + 1 / 3).abs().max() < 0.1
    assert found.loss_[-10:].mean() == pytest.approx(-(1 + 1 / 3) / 0.5, rel=0.03)


def test_a_contrastive_direction_guides_and_adds():
    planted = Planted(0)
    x = planted.samples(planted.h(SOURCE), 8, 1)
    found = NoiseCLR(k=3, at_once=2, batch=2, iterations=5, view="map").fit(planted.model, x)
    assert found.direction_.basis.shape == (1, 3, 32, D_TEXT)
    edits = [
        found.guide(planted.model, 1, 3.0, steps=range(1, 4)),
        found.direction_.intervention(1, 3.0, branch="cond"),
    ]
    images = [generate(planted.model.pipe, [SOURCE], [0], steps=4, interventions=e) for e in ([], edits[:1], edits[1:])]
    assert not np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])


# Asymmetric edits


def test_an_asymmetric_change_is_the_difference_of_the_prompts(planted):
    objective = PromptContrast(planted.model, "a red cup", SOURCE)
    found = Asyrp(objective=objective, iterations=60, batch=2, lr=0.3, levels=(-3.0, 1.0)).fit(planted.model, SOURCE)
    wanted = planted.h("a red cup") - planted.h(SOURCE)
    assert found.direction_.basis.shape == (2, 1, D_SITE)
    for row in found.direction_.basis[:, 0]:
        assert (row - wanted).norm() / wanted.norm() < 0.05
    assert found.loss_[-1] < 0.01 * found.loss_[0]


def test_an_asymmetric_change_is_injected_as_it_was_trained(planted):
    objective = PromptContrast(planted.model, "a red cup", SOURCE)
    found = Asyrp(objective=objective, iterations=2, batch=1, weight=0.1).fit(planted.model, [SOURCE, "a cup"])
    edit = found.edit(strength=2.0)
    assert edit.inject == "x0" and found.direction_.frame == "per_step"
    assert found.direction_.timesteps is not None and found.direction_.provenance["parameters"]["objective"] == {
        "objective": "PromptContrast",
        "positive": "a red cup",
        "negative": SOURCE,
    }
    images = [
        generate(planted.model.pipe, [SOURCE], [0], steps=10, guidance=1.0, interventions=e) for e in ([], [edit])
    ]
    assert not np.array_equal(images[0], images[1])
    one = Asyrp(objective=objective, iterations=1, batch=1, per_step=False, view="map").fit(planted.model, SOURCE)
    assert one.direction_.basis.shape == (1, 1, 1, D_SITE) and one.direction_.frame == "global"


# Sliders from one prompt


def varied(planted: Planted) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples that vary along two directions that the model can make, and these directions."""
    axes = torch.linalg.qr(planted.m @ normal(3, D_SITE, 2)).Q.T
    weights = normal(4, 40, 2)
    weights = torch.linalg.qr(weights - weights.mean(0)).Q * torch.tensor([20.0, 10.0])
    return (planted.m @ planted.h(SOURCE) + weights @ axes).reshape(-1, 4, 4, 4), axes


@pytest.mark.parametrize("orthogonal", [False, True])
def test_token_sliders_move_along_what_varies(planted, orthogonal):
    x, axes = varied(planted)
    found = TokenSliders(k=2, iterations=80, batch=8, lr=0.1, orthogonal=orthogonal).fit(planted.model, x, SOURCE)
    np.testing.assert_allclose(found.variance_, [0.8, 0.2], rtol=1e-5)
    for i in range(2):
        assert abs(cosine(found.axes_[i], axes[i])) > 0.999
        moved = planted.m @ planted.w @ found.direction_.basis[0, i]
        assert cosine(moved, found.axes_[i]) > 0.99
    if orthogonal:
        assert abs(cosine(*found.direction_.basis[0])) < 1e-5
    assert found.loss_[-10:].mean() < -0.98


def test_adapter_sliders_move_along_what_varies(planted):
    """The change of W moves the mean by M up (down e): the least loss has up along +-M^-1 p, whatever down is."""
    x, _ = varied(planted)
    found = AdapterSliders(k=2, layers=("text",), iterations=80, batch=8, lr=0.1).fit(planted.model, x, SOURCE)
    e = text_embedding(planted.model.pipe, SOURCE).mean(0)
    site = "unet.text:weight"
    for i in range(2):
        sign = torch.sign(found.adapter_.down[site][i, 0] @ e)
        best = torch.linalg.lstsq(planted.m, found.axes_[i].float()[:, None]).solution
        assert cosine(sign * found.adapter_.up[site][i], best) > 0.99
        assert cosine(planted.m @ found.adapter_.change(site, i) @ e, found.axes_[i]) > 0.998
    assert found.loss_[-10:].mean() < -0.998
    edits = found.adapter_.interventions(1)
    drawn = [self_generated(planted.model, [SOURCE], [0], steps=3, guidance=1.0)]
    with intervene(planted.model.pipe, edits):
        drawn.append(self_generated(planted.model, [SOURCE], [0], steps=3, guidance=1.0))
    assert cosine(drawn[1] - drawn[0], found.axes_[1]) > 0.998  # in generations too


def test_adapters_are_saved_with_recipes_and_have_controls(tmp_path):
    planted = Planted(0)
    x, _ = varied(planted)
    found = AdapterSliders(k=2, layers=("text",), iterations=1, batch=2, orthogonal=True).fit(planted.model, x, SOURCE)
    down = found.adapter_.down["unet.text:weight"]
    assert abs(float((down[0] * down[1]).sum())) < 1e-5 and found.adapter_.k == 2
    recipe = Recipe(found.adapter_.interventions(1, 2.0), fingerprint(planted.model.pipe))
    recipe.save(tmp_path / "r")
    assert Recipe.load(tmp_path / "r", planted.model.pipe).interventions[0].strength == 2.0
    control = random_adapter(found.adapter_, 0)
    norms = [float(a.change("unet.text:weight", 1).norm()) for a in (control, found.adapter_)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4) and control.hash != found.adapter_.hash
    with pytest.raises(InvalidDirection, match="component 2; there are 2"):
        found.adapter_.interventions(2)
    with pytest.raises(NotFitted):
        _ = AdapterSliders().adapter_


def test_right_angles_and_principal_axes_against_linear_algebra():
    d = normal(0, 3, 2, 5)
    made = at_right_angles(d).flatten(1)
    gram = made @ made.T
    torch.testing.assert_close(gram, torch.diag(d.flatten(1).square().sum(1)), atol=1e-5, rtol=1e-5)
    assert cosine(made[0], d[0]) == pytest.approx(1.0, abs=1e-6)  # the first keeps its course
    features = normal(1, 50, 6).double()
    axes, share = principal(features, 2)
    values, vectors = torch.linalg.eigh(torch.cov(features.T))
    np.testing.assert_allclose(share, (values.flip(0) / values.sum())[:2], rtol=1e-6)
    assert abs(cosine(axes[0], vectors[:, -1])) > 0.9999
    with pytest.raises(InvalidDirection, match="cannot be orthogonal"):
        at_right_angles(torch.ones(3, 2))


# Prompts


def test_the_difference_of_prompt_pairs_exchanges_a_word(tiny_pipe):
    from probe.interventions.guide import text_embedding
    from probe.model import PipelineEps

    model = PipelineEps(tiny_pipe)
    pairs = [("a red star", "a blue star"), ("a red cup", "a blue cup")]
    rows = {p: text_embedding(tiny_pipe, p) for pair in pairs for p in pair}
    found = TextDifference().fit(model, pairs)
    each = torch.stack([rows[a] - rows[b] for a, b in pairs])
    torch.testing.assert_close(found.direction_.basis[0, 0], each.mean(0))
    assert found.agreement_ == pytest.approx(cosine(each[0], each[1]), abs=1e-5)
    one = TextDifference().fit(model, pairs[:1])
    assert math.isnan(one.agreement_)
    edit = one.direction_.intervention(strength=1.0, branch="cond")
    images = [
        generate(tiny_pipe, [p], [0], steps=3, interventions=e)
        for p, e in (("a red star", []), ("a blue star", [edit]), ("a blue star", []))
    ]
    difference = np.abs(images[0].astype(int) - images[1]).max()
    assert difference <= 1 < np.abs(images[0].astype(int) - images[2]).max()  # the word was exchanged, to rounding
    mean = TextDifference(view="mean").fit(model, pairs)
    torch.testing.assert_close(mean.direction_.basis[0, 0], each.mean((0, 1)))


def test_text_directions_inside_the_text_encoder(tiny_pipe):
    from probe.model import PipelineEps

    model = PipelineEps(tiny_pipe)
    found = TextDifference(site="text_encoder.encoder.layers.0").fit(model, [("a red star", "a blue star")])
    assert found.direction_.site == "text_encoder.encoder.layers.0:out"
    edit = found.direction_.intervention(strength=1.0, branch="cond")
    images = [
        generate(tiny_pipe, [p], [0], steps=3, interventions=e)
        for p, e in (("a red star", []), ("a blue star", [edit]))
    ]
    assert np.abs(images[0].astype(int) - images[1]).max() <= 1


def test_principal_directions_over_words_against_the_dense_answer(tiny_pipe):
    from probe.interventions.guide import text_embedding
    from probe.model import PipelineEps

    prompts = [f"a {w} star" for w in ("red", "blue", "green", "flat", "neon")]
    found = TextPCA(k=2).fit(PipelineEps(tiny_pipe), prompts)
    x = torch.stack([text_embedding(tiny_pipe, p).flatten() for p in prompts]).double()
    _, s, vt = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    assert abs(cosine(found.direction_.basis[0, 0], vt[0])) > 0.9999
    np.testing.assert_allclose(found.direction_.scales[0].numpy(), (s[:2] / 2).numpy(), rtol=1e-4)
    np.testing.assert_allclose(found.explained_variance_ratio_, (s**2 / (s**2).sum())[:2].numpy(), rtol=1e-5)


# Requests that cannot be met


def test_impossible_requests():
    planted = Planted(0)
    model, x = planted.model, planted.samples(planted.h(SOURCE), 4, 0)
    for finder, inputs, message in [
        (ConceptVector(iterations=0), (x, SOURCE), "at least one of each"),
        (ConceptVector(), (x[:, :2], SOURCE), "samples"),
        (ConceptVector(view=cast("Any", "mean")), (x, SOURCE), "view"),
        (NoiseCLR(k=1), (x,), "at least two"),
        (NoiseCLR(batch=8), (x,), "samples"),
        (Asyrp(objective=PromptContrast(model, "a", "b")), ([],), "0 prompts"),
        (TokenSliders(k=4), (x, SOURCE), "samples"),
        (TokenSliders(k=2), (x[:1].expand(4, -1, -1, -1), SOURCE), "fewer than 2 principal"),
        (AdapterSliders(k=2, layers=("attn2.to_k",)), (x, SOURCE), "0 linear layers"),
        (TextDifference(), ([],), "0 prompts"),
        (TextDifference(), ([("a", "a")],), "the same to the text encoder"),
        (TextPCA(k=3), (["a", "b"],), "fewer than 3"),
    ]:
        with pytest.raises(InvalidDirection, match=message):
            finder.fit(model, *inputs)
