"""Concept scores: the formula against a loop, the planted truth, saving and loading."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sae_world import OBJECTS, SITE, STYLES, World, plant

from activations_store.errors import UnknownLabel
from sae import ConceptScores, SAEConfig, TopKSAE, score_concepts
from sae.errors import CorruptFile, EmptySelection, NewerFormat, UnknownConcept


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return plant(tmp_path_factory.mktemp("store") / "planted", n_samples=21, n_steps=3, samples_per_shard=8)


@pytest.fixture(scope="module")
def sae(world: World) -> TopKSAE:
    """A dictionary that holds the planted features themselves."""
    made = TopKSAE(SAEConfig(d_in=24, d_sae=40, k=4, site=SITE))
    with torch.no_grad():
        made.W_dec.copy_(torch.from_numpy(world.features))
        made.W_enc.copy_(torch.from_numpy(world.features.T))
        made.b_dec.copy_(torch.from_numpy(world.mean))
    return made


@pytest.fixture(scope="module")
def scores(world: World, sae: TopKSAE) -> ConceptScores:
    return score_concepts(sae, world.store, "object")


def test_mu_and_score_equal_a_loop(world: World, sae: TopKSAE, scores: ConceptScores) -> None:
    x = world.store.site(SITE).read(branch="cond")[:, :, 0]
    with torch.no_grad():
        z = sae.encode(torch.from_numpy(x)).double().numpy()  # (n, steps, tokens, d_sae)
    assert scores.concepts == OBJECTS
    assert scores.steps == (0, 1, 2)
    for c, name in enumerate(OBJECTS):
        inside, outside = world.objects == c, world.objects != c
        assert scores.counts[c] == inside.sum()
        for t in range(3):
            mu = np.array([z[inside, t, :, i].mean() for i in range(40)])
            rest = np.array([z[outside, t, :, i].mean() for i in range(40)])
            np.testing.assert_allclose(scores.mu[t, c], mu, rtol=1e-5, atol=1e-7)
            expected = [mu[i] / (mu.sum() + 1e-8) - rest[i] / (rest.sum() + 1e-8) for i in range(40)]
            np.testing.assert_allclose(scores.score(name)[t], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores.mean_activation, scores.mu.mean(1))
    assert scores.mean_activation.shape == (3, 40)


def test_planted_feature_ranks_first(scores: ConceptScores) -> None:
    for c, name in enumerate(OBJECTS):
        assert scores.top(name, 1)[0] == c
        for t in range(3):
            assert scores.top(name, 1, step=t)[0] == c
    assert len(scores.top("cat", 5)) == 5


def test_several_factors_in_one_pass_equal_one_by_one(world: World, sae: TopKSAE, scores: ConceptScores) -> None:
    both = score_concepts(sae, world.store, ["object", "style"])
    assert list(both) == ["object", "style"]
    assert both["style"].concepts == STYLES
    np.testing.assert_array_equal(both["object"].mu, scores.mu)


def test_save_and_load(scores: ConceptScores, tmp_path: Path) -> None:
    again = ConceptScores.load(scores.save(tmp_path / "scores"))
    np.testing.assert_array_equal(again.mu, scores.mu)
    np.testing.assert_array_equal(again.counts, scores.counts)
    assert (again.factor, again.concepts, again.steps, again.branch) == ("object", OBJECTS, (0, 1, 2), "cond")
    assert again.metadata == scores.metadata
    assert again.metadata["store"]["fingerprint"]["name"] == "planted"


def test_damaged_scores_are_refused(scores: ConceptScores, tmp_path: Path) -> None:
    with pytest.raises(UnknownConcept, match="holds no concept scores"):
        ConceptScores.load(tmp_path)
    folder = scores.save(tmp_path / "scores")
    raw = bytearray((folder / "mu.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "mu.safetensors").write_bytes(raw)
    with pytest.raises(CorruptFile, match="SHA-256 differs"):
        ConceptScores.load(folder)
    info = json.loads((folder / "scores.json").read_text())
    (folder / "scores.json").write_text(json.dumps(info | {"d_sae": 41}))
    with pytest.raises(CorruptFile, match=r"expected \(3, 4, 41\)"):
        ConceptScores.load(folder)
    (folder / "scores.json").write_text(json.dumps(info | {"format": 2}))
    with pytest.raises(NewerFormat, match="format 2"):
        ConceptScores.load(folder)


def test_unknown_names_list_what_there_is(world: World, sae: TopKSAE, scores: ConceptScores) -> None:
    with pytest.raises(UnknownConcept, match="bell, boat, cat, cup"):
        scores.score("dog")
    with pytest.raises(UnknownConcept, match=r"steps \[0, 1, 2\]"):
        scores.top("cat", 1, step=7)
    with pytest.raises(UnknownLabel, match="object"):
        score_concepts(sae, world.store, "colour")


def test_single_concept_has_no_score(world: World, sae: TopKSAE) -> None:
    only = np.flatnonzero(world.objects == 2)
    scores = score_concepts(sae, world.store, "object", samples=only, steps=[1])
    assert scores.concepts == ("cat",)
    assert scores.mu.shape == (1, 1, 40)
    with pytest.raises(EmptySelection, match="nothing to compare"):
        scores.score("cat")
