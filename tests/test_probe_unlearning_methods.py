"""Unlearning methods without a dictionary, each against its equations; and all methods on canvas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import build_tiny_pipeline
from intervention_support import HERE, STEPS, D, draw
from unlearning_support import TIMES, Scores, dictionary, planted_scores, rows

from probe.capture import CapturePlan, collect
from probe.errors import InvalidRequest, UnknownConcept
from probe.interventions import (
    Intervention,
    ProjectOut,
    Recipe,
    Replace,
    TopKDictionary,
    text_embedding,
)
from probe.interventions.ops import StepContext
from probe.interventions.units import site_scale
from probe.model import generate, load_pipeline
from probe.unlearning import (
    ConceptMoments,
    ESDSetting,
    Setting,
    concept_steerer,
    deactivate,
    esd,
    lda,
    mean_difference,
    negative_prompt,
    no_edit,
    norm_matched,
    norm_scaled,
    patch_replacement,
    random_controls,
    saeuron,
    uce,
)
from probe.unlearning.tokens import concept_embedding, last_token
from probe.unlearning.uce import cross_attention_weights

# Controls and baselines of the prompt


def test_no_edit_is_the_unedited_model(tiny_pipe):
    np.testing.assert_array_equal(draw(tiny_pipe, no_edit()), draw(tiny_pipe, ()))


def test_random_controls_move_every_row_as_far(tiny_pipe):
    edits = (
        Intervention("mid_block", ProjectOut(torch.ones(1, D)), steps=[0], branch="cond"),
        *saeuron(planted_scores(), "moon", dictionary=dictionary(), site="mid_block", timesteps=TIMES),
    )
    x = rows(9)
    for edit, control in zip(edits, random_controls(edits), strict=True):
        assert (control.steps, control.branch, control.where) == (edit.steps, edit.branch, edit.where)
        moved, pushed = (e.op.apply(x, 1.0, HERE) - x for e in (edit, control))
        torch.testing.assert_close(pushed.norm(dim=-1), moved.norm(dim=-1), rtol=1e-4, atol=1e-5)
        cosine = torch.nn.functional.cosine_similarity(pushed.flatten(0, 1).double(), moved.flatten(0, 1).double())
        assert cosine.abs().max() < 0.9
    assert (draw(tiny_pipe, random_controls(edits)) != draw(tiny_pipe, edits)).any()


def test_negative_prompt(tiny_pipe):
    (edit,) = negative_prompt(tiny_pipe, "a star")
    assert edit.branch == "uncond" and str(edit.where) == "unet:prompt"
    torch.testing.assert_close(edit.op.apply(torch.zeros(1, 32, 16), 1.0, HERE)[0], text_embedding(tiny_pipe, "a star"))
    # a prompt whose negative is itself has nothing to be guided by: any guidance gives the same picture
    edits = negative_prompt(tiny_pipe, "a red star")
    low, high = (generate(tiny_pipe, ["a red star"], [0], steps=3, guidance=w, interventions=edits) for w in (2.0, 9.0))
    assert np.abs(low.astype(int) - high).max() <= 1


# Projections


def two_groups(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(n_steps, rows, d) of two Gaussians that share a covariance; their difference and the covariance."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(6, 6))
    delta = rng.normal(size=(2, 6))
    noise = rng.normal(size=(2, 2, 40_000, 6)) @ mix
    return noise[0] + delta[:, None], noise[1], delta, mix.T @ mix


def test_moments_are_those_of_the_rows():
    concept, rest, _, _ = two_groups()
    found = ConceptMoments.of(concept[:, :500], rest[:, :900], (999, 500))
    np.testing.assert_allclose(found.mean, concept[:, :500].mean(1), atol=1e-12)
    np.testing.assert_allclose(found.rest, rest[:, :900].mean(1), atol=1e-12)
    for step in range(2):
        within = sum(
            np.cov(group[step].T, bias=True) * n for group, n in ((concept[:, :500], 500), (rest[:, :900], 900))
        )
        np.testing.assert_allclose(found.within[step], within / 1400, atol=1e-10)


def test_projections_find_the_planted_directions():
    concept, rest, delta, covariance = two_groups()
    moments = ConceptMoments.of(concept, rest, (999, 500))
    x = torch.tensor(concept[:, :200], dtype=torch.float32)
    for step in range(2):
        here = StepContext("s", step, (999.0, 500.0)[step])
        for make, covector in ((mean_difference, delta[step]), (lda, np.linalg.solve(covariance, delta[step]))):
            (edit,) = make(moments, "mid_block")
            op = edit.op
            assert isinstance(op, ProjectOut)
            found = torch.as_tensor(op.covectors)[step, 0].numpy()
            cosine = found @ covector / np.linalg.norm(found) / np.linalg.norm(covector)
            assert cosine > 0.995
            new = op.apply(x[step][None], 1.0, here)[0].numpy()
            score = new @ found
            np.testing.assert_allclose(score, moments.rest[step] @ found, atol=2e-3 * np.abs(found).sum())
            moved = new - x[step].numpy()
            along = moments.mean[step] - moments.rest[step]
            residual = moved - np.outer(moved @ along / (along @ along), along)
            assert np.abs(residual).max() < 1e-3 * np.abs(moved).max()
            # the concept's mean is moved to that of the rest
            np.testing.assert_allclose(
                op.apply(torch.tensor(concept[step][None], dtype=torch.float32), 1.0, here)[0].mean(0).numpy(),
                moments.rest[step],
                atol=1e-3,
            )


@pytest.fixture(scope="module")
def store(tiny_pipe, tmp_path_factory):
    prompts = ["a red star", "a blue moon", "the green cup", "a green star"]
    plan = CapturePlan.for_pipeline(
        tiny_pipe, "mid_block", prompts, seeds=range(4), labels={"object": [p.split()[-1] for p in prompts]},
        steps=STEPS, guidance=2.0, batch_size=2,
    )  # fmt: skip
    return collect(tiny_pipe, plan, tmp_path_factory.mktemp("store") / "s", save_images=False)


def test_moments_of_a_store(store):
    site = store.sites[0]
    values = store.site(site).read(branch="cond")[:, :, 0].astype(np.float64)  # (samples, steps, tokens, channels)
    by_step = lambda which: values[which].transpose(1, 0, 2, 3).reshape(STEPS, -1, D)  # noqa: E731
    expected = ConceptMoments.of(by_step([0, 3]), by_step([1, 2]), tuple(store.spec.timesteps))
    found = ConceptMoments.from_store(store, site, "object", "star")
    for name in ("mean", "rest", "within"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-6)
    assert found.timesteps == expected.timesteps
    with pytest.raises(UnknownConcept, match="the store has cup, moon, star"):
        ConceptMoments.from_store(store, site, "object", "sun")


def test_norm_matched_addition_moves_by_rho_of_the_sites_norm(store):
    site, direction = store.sites[0], torch.linspace(0, 1, D)
    (edit,) = norm_matched(store, site, direction, -0.25, branch="cond")
    assert (edit.strength, edit.branch) == (-0.25, "cond")
    values = store.site(site).read().astype(np.float64)
    for step, t in enumerate(store.spec.timesteps):
        rms = np.sqrt((values[:, step] ** 2).sum(-1).mean())
        x = rows(4)
        moved = edit.op.apply(x, -0.25, StepContext("s", step, float(t))) - x
        torch.testing.assert_close(moved.norm(dim=-1), torch.full((2, 4), 0.25 * float(rms)), rtol=1e-3, atol=1e-5)
        assert float(moved[0, 0] @ direction) < 0
    std, _ = site_scale(store, site, "std")
    expected = np.sqrt(values.transpose(1, 0, 2, 3, 4).reshape(STEPS, -1, D).var(1).mean(1))
    np.testing.assert_allclose(std, expected, rtol=1e-3)


# Weights


def weight_of(edit: Intervention) -> torch.Tensor:
    assert isinstance(edit.op, Replace)
    return edit.op.value[0]


def test_last_token_of_a_phrase(tiny_pipe):
    assert last_token(tiny_pipe, "a star") == 5  # start, then one token a letter: a s t a r
    rest = concept_embedding(tiny_pipe, "a star", "from_last")
    assert rest.shape == (27, 16) and torch.equal(rest[:1], concept_embedding(tiny_pipe, "a star"))
    for bad in ("", "star " * 40):
        with pytest.raises(InvalidRequest, match="expected 1 to 30"):
            last_token(tiny_pipe, bad)


def test_uce_maps_the_erased_to_the_guide_and_keeps_the_retained(tiny_pipe):
    edits = uce(tiny_pipe, ["star"], "cup", ["moon", "red"], lam=1e-9)
    originals = cross_attention_weights(tiny_pipe, ("to_k", "to_v"))
    assert len(edits) == len(originals)
    star, cup, moon = (concept_embedding(tiny_pipe, word)[0] for word in ("star", "cup", "moon"))
    for edit in edits:
        W0 = originals[edit.where.path]
        W = edit.op.apply(torch.zeros(1, *W0.shape), 1.0, StepContext("w", -1, float("nan")))[0]
        torch.testing.assert_close(W @ star, W0 @ cup, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(W @ moon, W0 @ moon, rtol=1e-3, atol=1e-4)


def test_uce_minimises_its_objective(tiny_pipe):
    lam, s_e, s_r = 0.5, 2.0, 0.3
    edit = uce(tiny_pipe, ["star"], "cup", ["moon"], lam=lam, erase_scale=s_e, retain_scale=s_r)[0]
    W0 = cross_attention_weights(tiny_pipe, ("to_k", "to_v"))[edit.where.path].double()
    star, cup, moon = (concept_embedding(tiny_pipe, word)[0].double() for word in ("star", "cup", "moon"))
    W = edit.op.apply(torch.zeros(1, *W0.shape), 1.0, StepContext("w", -1, float("nan")))[0].double().requires_grad_()
    loss = s_e * (W @ star - W0 @ cup).square().sum() + s_r * (W @ moon - W0 @ moon).square().sum()
    (loss + lam * (W - W0).square().sum()).backward()
    assert W.grad is not None and float(W.grad.abs().max()) < 1e-5
    with pytest.raises(InvalidRequest, match="lam above 0"):
        uce(tiny_pipe, ["star"], "cup", lam=0.0)


def test_esd_learns_its_target_and_leaves_the_pipeline_alone(tiny_pipe):
    before = {name: weight.clone() for name, weight in tiny_pipe.unet.state_dict().items()}
    losses: list[float] = []
    setting = ESDSetting(iterations=32, lr=1e-2, eta=2.0, layers="x-strict")
    edits = esd(tiny_pipe, "a star", setting=setting, steps=2, progress=lambda i, loss: losses.append(loss))
    assert np.mean(losses[-8:]) < 0.7 * np.mean(losses[:8])
    assert len(edits) == len(cross_attention_weights(tiny_pipe, ("to_k", "to_v")))
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_pipe.unet.state_dict().items())
    setting = replace(setting, iterations=2)
    edits, again = (esd(tiny_pipe, "a star", setting=setting, steps=2) for _ in range(2))
    assert all(torch.equal(weight_of(a), weight_of(b)) for a, b in zip(edits, again, strict=True))


def test_esd_without_guidance_away_has_nothing_to_learn(tiny_pipe):
    for edit in esd(tiny_pipe, ["a star", "a moon"], setting=ESDSetting(iterations=2, eta=0.0), steps=2):
        original = tiny_pipe.unet.get_submodule(edit.where.path.partition(".")[2]).weight
        # Adam's first steps are as long as the rate, however small the gradient
        assert float((weight_of(edit) - original).abs().max()) <= 3 * 5e-5
    with pytest.raises(InvalidRequest, match="at least 1 iteration"):
        ESDSetting(iterations=0)


# All of them on canvas


@pytest.fixture(scope="module")
def canvas():
    return load_pipeline("canvas")


def canvas_methods(pipe) -> dict[str, tuple[Intervention, ...]]:
    """Every method with what can be had in a moment: random dictionaries, random moments, a few iterations."""
    g = torch.Generator().manual_seed(0)

    def random_dictionary(d: int) -> TopKDictionary:
        W = torch.nn.functional.normalize(torch.randn(4 * d, d, generator=g), dim=-1)
        return TopKDictionary(W.T.clone(), torch.zeros(4 * d), W, torch.zeros(d), k=8)

    of_mid, of_text = random_dictionary(128), random_dictionary(64)
    mu = torch.rand(STEPS, 2, 512, generator=g).numpy() * 0.1
    scores, times = Scores(("star", "moon"), mu), (999, 666, 333)
    sae = {"dictionary": of_mid, "site": "mid_block", "timesteps": times}
    groups = torch.randn(2, STEPS, 300, 128, generator=g).double().numpy()
    moments = ConceptMoments.of(groups[0] + 0.5, groups[1], times)
    layer = "text_encoder.encoder.layers.1"
    found = {
        "saeuron": saeuron(scores, "star", setting=Setting(3, -10.0), **sae),
        "norm_scaled": norm_scaled(scores, "star", setting=Setting(3, -1.0), **sae),
        "patch_replacement": patch_replacement(scores, "star", setting=Setting(3), **sae),
        "mean_difference": mean_difference(moments, "mid_block"),
        "lda": lda(moments, "mid_block"),
        "negative_prompt": negative_prompt(pipe, "a star"),
        "uce": uce(pipe, ["star"], "thing", ["moon"], tokens="from_last"),
        "esd": esd(pipe, "a star", setting=ESDSetting(iterations=2, lr=1e-2), steps=2),
        "concept_steerer": concept_steerer(pipe, "a star", dictionary=of_text, site=layer),
        "deactivate": deactivate(pipe, ["a star"], ["a moon"], dictionary=of_text, site=layer, gated=False),
    }
    return found | {"random": random_controls(found["mean_difference"])}


def test_every_method_edits_canvas_and_replays(canvas, tmp_path):
    settings = {"steps": 2, "guidance": 2.0}
    prompt = ["a red star on dark background in neon style"]
    plain = generate(canvas, prompt, [0], **settings)
    for name, edits in canvas_methods(canvas).items():
        images = generate(canvas, prompt, [0], interventions=edits, **settings)
        assert (images != plain).any(), name
        folder = Recipe.of(canvas, edits, {"method": name}).save(tmp_path / name)
        again = generate(canvas, prompt, [0], interventions=Recipe.load(folder, canvas).interventions, **settings)
        np.testing.assert_array_equal(again, images, err_msg=name)
    np.testing.assert_array_equal(generate(canvas, prompt, [0], **settings), plain)


def test_methods_leave_a_fresh_pipeline_as_it_was():
    pipe = build_tiny_pipeline()
    from probe.model.fingerprint import weights_hash

    before = weights_hash(pipe)
    for edits in (uce(pipe, ["star"], "cup"), esd(pipe, "a star", setting=ESDSetting(iterations=1), steps=2)):
        draw(pipe, edits)
    assert weights_hash(pipe) == before
