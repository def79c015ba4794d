"""Concept recovery against planted truth and against nothing."""

import numpy as np
import pytest
import torch
from sae_world import OBJECTS, SITE, World, plant
from scipy.stats import mannwhitneyu, rankdata
from sklearn.metrics import f1_score, roc_auc_score

from sae import SAEConfig, TopKSAE, make_sae
from sae.architectures.timed import TimedSAE
from sae.data import select
from sae.errors import EmptySelection, ShapeMismatch
from sae.evaluation.detectors import FeatureDetector, baselines, mean_maps, pooled
from sae.evaluation.localisation import localise
from sae.evaluation.recovery import recover
from sae.evaluation.separation import auc, best_threshold, correlations, rank_test


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return plant(tmp_path_factory.mktemp("store") / "planted", n_features=16)


@pytest.fixture(scope="module")
def truth(world: World) -> TopKSAE:
    """The planted dictionary: fewer features than dimensions, so that a linear encoder reads them exactly."""
    sae = TopKSAE(SAEConfig(d_in=24, d_sae=16, k=16, site=SITE))
    with torch.no_grad():
        sae.W_dec.copy_(torch.from_numpy(world.features))
        sae.W_enc.copy_(torch.from_numpy(np.linalg.pinv(world.features)))
        sae.b_enc.fill_(-1e-4)  # rounding is not an activation
        sae.b_dec.copy_(torch.from_numpy(world.mean))
    return sae


@pytest.fixture(scope="module")
def split() -> np.ndarray:
    return np.arange(48) % 3 > 0


def test_the_planted_dictionary_is_recovered_whole(world: World, truth: TopKSAE, split: np.ndarray) -> None:
    chosen = select(world.store, SITE, branches=["cond"])
    seen: list[tuple[int, int]] = []
    scores = pooled(FeatureDetector(truth), world.store, chosen, progress=lambda *at: seen.append(at))
    assert seen[-1] == (48, 48)
    found = recover(scores, {"object": world.store.labels("object")}, split, shuffles=10)
    assert [c.concept for c in found.concepts] == sorted(OBJECTS)
    assert [c.unit for c in found.concepts] == [OBJECTS.index(c.concept) for c in found.concepts]
    assert found.auc == (1.0, 1.0, 1.0)
    assert found.f1 == (1.0, 1.0, 1.0)
    assert found.recovered.value == found.found == 4
    assert found.units_per_concept == 1.0
    assert found.correlation.value > 0.8  # strengths follow the mask's size, the concept does not
    assert found.false_discovery_rate < 0.25
    assert found.recovered_shuffled == 0.0

    where = localise(
        FeatureDetector(truth),
        world.store,
        chosen,
        found.concepts,
        np.asarray(world.store.labels("object")),
        world.mask,
        split,
    )
    assert [c.iou for c in where.concepts] == [1.0] * 4
    assert where.iou == (1.0, 1.0, 1.0)
    assert where.everywhere == pytest.approx(world.mask[~split].mean(), abs=0.03)


def test_units_that_know_nothing_find_the_nominal_share() -> None:
    """5 % of the concepts pass a test at 5 %, though the best of 200 units was chosen for each."""
    rng = np.random.default_rng(0)
    found, shuffled, n = 0, 0.0, 0
    for seed in range(6):
        labels = {f"f{i}": rng.integers(5, size=240).astype(str) for i in range(12)}
        result = recover(
            rng.normal(size=(2, 240, 100)), labels, np.arange(240) % 2 > 0, shuffles=4, resamples=2, seed=seed
        )
        found, shuffled, n = found + result.found, shuffled + result.found_shuffled, n + len(result.concepts)
        assert result.recovered.value == 0
        assert result.auc.value == pytest.approx(0.5, abs=0.03)
    assert found / n == pytest.approx(0.05, abs=0.03)
    assert shuffled / n == pytest.approx(0.05, abs=0.02)


def test_the_false_discovery_rate_counts_what_shuffled_labels_find() -> None:
    """One factor is in the scores, one is noise: about a twentieth of the noise concepts is found."""
    rng = np.random.default_rng(1)
    real, noise = rng.integers(10, size=400), rng.integers(10, size=400)
    scores = rng.normal(size=(1, 400, 60))
    scores[0, np.arange(400), real] += 3
    labels = {"real": real.astype(str), "noise": noise.astype(str)}
    result = recover(scores, labels, np.arange(400) % 2 > 0, shuffles=30, resamples=2)
    assert 10 <= result.found <= 13
    assert result.false_discovery_rate == pytest.approx(result.found_shuffled / result.found)
    assert result.false_discovery_rate == pytest.approx(20 * 0.05 / 10, abs=0.06)


def test_numbers_agree_with_scikit_learn_and_scipy() -> None:
    rng = np.random.default_rng(2)
    x = rng.integers(6, size=(80, 5)).astype(np.float64)  # many ties
    member = rng.random((3, 80)) < 0.3
    ours = auc(rankdata(x, axis=0), member)
    assert ours == pytest.approx(np.array([[roc_auc_score(m, x[:, j]) for j in range(5)] for m in member]))
    area, p = rank_test(rankdata(x[:, :3], axis=0), member.T)
    assert area == pytest.approx(np.diag(ours[:, :3]))
    tests = [mannwhitneyu(x[m, i], x[~m, i], alternative="greater", method="asymptotic") for i, m in enumerate(member)]
    assert p == pytest.approx([t.pvalue for t in tests], rel=1e-9)
    assert rank_test(np.full((9, 1), 5.0), np.arange(9)[:, None] < 4)[1] == 1.0
    assert correlations(x, member) == pytest.approx(np.corrcoef(np.vstack([member, x.T]))[:3, 3:])
    for m in member:
        threshold = best_threshold(x[:, 0], m)
        tried = [f1_score(m, x[:, 0] > t) for t in (-1, *(np.unique(x[:, 0]) + 0.5))]
        assert f1_score(m, x[:, 0] > threshold) == pytest.approx(max(tried))


def test_pooling_and_maps_equal_dense_numbers(world: World, truth: TopKSAE) -> None:
    chosen = select(world.store, SITE, samples=[1, 5, 7], steps=[0, 2])
    x = world.store.site(SITE).read(sample=[1, 5, 7], step=[0, 2])  # (3, 2, 2, 16, 24)
    detectors = [FeatureDetector(truth), *baselines(world.store, chosen, 5)]
    assert [d.n_units for d in detectors] == [16, 48, 10, 48]
    for detector in detectors:
        maps_by_branch = [torch.from_numpy(np.ascontiguousarray(x[:, :, b])) for b in range(2)]
        z = np.stack([np.stack([*detector.by_step(m, chosen.log_snr)], 1) for m in maps_by_branch], 2)
        scores = pooled(detector, world.store, chosen)
        np.testing.assert_allclose(scores[0], z.mean((1, 2, 3)), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(scores[1], z.max(3).mean((1, 2)), rtol=1e-4, atol=1e-5)
        maps = mean_maps(detector, world.store, chosen, np.array([4, 1]))
        np.testing.assert_allclose(maps, z.mean((1, 2))[..., [4, 1]], rtol=1e-4, atol=1e-5)
    pca, _, neurons = detectors[1:]
    rows = x.reshape(-1, 24)
    variance = (rows - rows.mean(0)) @ pca.directions[:24].numpy().T
    np.testing.assert_allclose(np.sort(variance.var(0))[::-1], variance.var(0), rtol=1e-3, atol=1e-9)
    assert torch.equal(neurons.directions[24:], -torch.eye(24))


def test_a_dictionary_with_time_is_read_step_by_step(world: World) -> None:
    chosen = select(world.store, SITE, samples=[2, 3], branches=["cond"])
    config = SAEConfig(24, 32, 3, site=SITE, time="per_step", levels=chosen.log_snr, groups=(0, 0, 1, 1))
    timed = make_sae(config, seed=1)
    assert isinstance(timed, TimedSAE)
    x = torch.from_numpy(world.store.site(SITE).read(sample=[2, 3], branch="cond")[:, :, 0])
    with torch.no_grad():
        by_hand = torch.stack([timed.at(level).encode(x[:, t]) for t, level in enumerate(chosen.log_snr)], 1)
    scores = pooled(FeatureDetector(timed), world.store, chosen)
    np.testing.assert_allclose(scores[0], by_hand.mean((1, 2)).numpy(), rtol=1e-4, atol=1e-5)


def test_the_truth_beats_what_was_there_before(world: World, truth: TopKSAE, split: np.ndarray) -> None:
    chosen = select(world.store, SITE, branches=["cond"])
    labels = {"object": world.store.labels("object")}
    value = {
        d.name: recover(pooled(d, world.store, chosen), labels, split, shuffles=1, resamples=2).auc.value
        for d in (FeatureDetector(truth), *baselines(world.store, chosen, 2))
    }
    assert value["features"] > max(value["random"], value["neurons"])


def test_what_cannot_be_scored_is_refused(world: World) -> None:
    scores = np.zeros((2, 48, 3), np.float32)
    labels = {"object": world.store.labels("object")}
    with pytest.raises(EmptySelection, match="two samples with it"):
        recover(scores, labels, np.ones(48, bool))
    with pytest.raises(ShapeMismatch, match="48 samples were scored"):
        recover(scores, {"object": ["a"]}, np.ones(48, bool))
    nothing = recover(scores, labels, np.arange(48) % 2 > 0, shuffles=2)  # silent units
    assert nothing.found == 0
    assert np.isnan(nothing.false_discovery_rate)
    assert nothing.auc.value == 0.5
    chosen = select(world.store, SITE)
    with pytest.raises(ShapeMismatch, match="a cell each"):
        localise(baselines(world.store, chosen, 2)[0], world.store, chosen, (), np.array([]), np.zeros((2, 2)), scores)


def test_samples_without_a_label_are_left_out() -> None:
    rng = np.random.default_rng(3)
    names = np.array(["a", "b", ""] * 40)
    scores = np.where(names == "a", 1.0, np.where(names == "b", 0.0, 9.0))[None, :, None] + 0.1 * rng.random(
        (1, 120, 1)
    )
    found = recover(scores, {"f": names}, np.arange(120) % 2 > 0, shuffles=0)
    assert {c.concept: c.auc for c in found.concepts} == {"a": 1.0, "b": 0.0}
