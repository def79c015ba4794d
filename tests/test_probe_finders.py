"""Finders with labels on stores, against dense answers and planted truth (V23); and what all finders refuse."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from seeded import SEEDS, normal
from sklearn.linear_model import Ridge
from toy_store import SITE, cosine, dense_pca, write_store

from activations_store import ActivationStore
from activations_store.errors import UnknownLabel, UnknownSite
from probe.directions import (
    CAV,
    ICA,
    LDA,
    PCA,
    Direction,
    LogisticProbe,
    MeanDifference,
    RidgeProbe,
)
from probe.directions.rows import SiteRows
from probe.errors import InvalidDirection, NotFitted
from probe.model.analytic import GaussianMixture

# Contrasts


def labelled(tmp_path, seed: int, d: int = 5) -> tuple[ActivationStore, torch.Tensor, torch.Tensor]:
    """6,000 samples of 4 rows from two Gaussian classes of one covariance, 1.2 apart: (store, mu_1 - mu_0, S)."""
    root = normal(seed, d, d)
    covariance = root @ root.T / d + 0.2 * torch.eye(d).double()
    gap = normal(seed + 1, d)
    gap *= 1.2 / (gap @ torch.linalg.solve(covariance, gap)).sqrt()
    model = GaussianMixture(torch.stack([torch.zeros(d), gap]), covariance)
    labels = torch.arange(6000) % 2
    x, _ = model.sample(24_000, torch.Generator().manual_seed(seed), labels.repeat_interleave(4))
    names = np.array(["cup", "star"])[labels.numpy()]
    store = write_store(tmp_path / "s", x.reshape(6000, 1, 4, d).numpy(), {"object": names})
    return store, gap, covariance


@pytest.mark.parametrize("seed", SEEDS)
def test_v23_mean_difference_and_discriminants(tmp_path, seed):
    store, gap, covariance = labelled(tmp_path, seed)
    best = torch.linalg.solve(covariance, gap)
    options: dict[str, Any] = {"site": SITE, "factor": "object", "positive": "star", "view": "tokens"}
    difference = MeanDifference(**options).fit(store)
    assert cosine(difference.direction_.flat, gap) > 0.998
    np.testing.assert_allclose(difference.direction_.flat[0, 0], gap, atol=0.08)
    readers = [LDA(**options, shrinkage=0.0), LogisticProbe(**options, C=100.0), RidgeProbe(**options, penalty=0.0)]
    separation = 2 * float((gap @ best).sqrt())  # d' of the optimal reader of four rows: AUC = Phi(d' / sqrt 2)
    for reader in readers:
        reader.fit(store)
        assert cosine(reader.direction_.flat, best) > 0.998, type(reader).__name__
        assert abs(reader.auc_[0] - NormalDist().cdf(separation / 2**0.5)) < 3 * reader.auc_se_[0] + 1e-3
    assert cosine(difference.direction_.flat, readers[0].direction_.flat) < 0.99
    assert difference.auc_[0] < readers[0].auc_[0]
    std = float((gap @ covariance @ gap + (gap @ gap) ** 2 / 4).sqrt() / gap.norm())
    assert float(difference.direction_.scales[0, 0]) == pytest.approx(std, rel=0.03)


@pytest.mark.parametrize("seed", SEEDS)
def test_ridge_equals_scikit_learn(tmp_path, small_blocks, seed):
    x = np.random.default_rng(seed).normal(size=(80, 1, 1, 6)).astype(np.float32)
    store = write_store(tmp_path / "s", x, {"side": ["a", "b"] * 40})
    found = RidgeProbe(site=SITE, factor="side", positive="a", penalty=0.3, holdout=0.25).fit(store)
    rng_a, rng_b = (np.random.default_rng(0).permutation(np.arange(i, 80, 2))[10:] for i in range(2))
    rows_ = np.concatenate([x[np.sort(rng_a), 0, 0], x[np.sort(rng_b), 0, 0]]).astype(np.float64)
    y = np.r_[np.ones(30), -np.ones(30)]
    total = np.cov(rows_.T, bias=True)
    exact = Ridge(alpha=0.3 * 60 * np.trace(total) / 6).fit(rows_, y).coef_
    np.testing.assert_allclose(found.direction_.flat[0, 0], exact, rtol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_other_attributes_are_left_out(tmp_path, seed):
    """Two attributes whose directions overlap, labelled independently."""
    rng = np.random.default_rng(seed)
    u, v = np.eye(6)[0], np.array([0.8, 0.6, 0, 0, 0, 0])
    a, b = rng.integers(0, 2, (2, 4000))
    x = rng.normal(size=(4000, 6)) + 3 * a[:, None] * u + 3 * b[:, None] * v
    store = write_store(tmp_path / "s", x[:, None, None], {"a": a, "b": b})
    plain = MeanDifference(site=SITE, factor="b", positive="1").fit(store).direction_
    clean = MeanDifference(site=SITE, factor="a", positive="1", against=[plain]).fit(store)
    assert abs(cosine(clean.direction_.flat, plain.flat)) < 1e-6
    left = u - (u @ v) * v
    assert cosine(clean.direction_.flat, left) > 0.99
    assert clean.direction_.provenance["parameters"]["against"] == [plain.hash]
    with pytest.raises(InvalidDirection, match="zero"):
        every = Direction(SITE, torch.eye(6)[None])
        MeanDifference(site=SITE, factor="a", positive="1", against=[every]).fit(store)


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_of_a_map_share_their_samples_label(tmp_path, seed):
    rng = np.random.default_rng(seed)
    label = np.arange(200) % 2
    x = rng.normal(size=(200, 2, 3, 4))
    x[:, 1, 1, 2] += 4 * label  # one token, one channel, step 1
    store = write_store(tmp_path / "s", x, {"object": label})
    options: dict[str, Any] = {"site": SITE, "factor": "object", "positive": "1"}
    whole = MeanDifference(**options, view="map").fit(store)
    assert int(whole.direction_.flat[1, 0].argmax()) == 1 * 4 + 2 and whole.direction_.basis.shape == (2, 1, 3, 4)
    tokens = MeanDifference(**options, view="tokens").fit(store)
    assert int(tokens.direction_.flat[1, 0].argmax()) == 2
    assert tokens.auc_[1] > 0.9 > 0.75 > tokens.auc_[0]
    mean = MeanDifference(**options, view="mean", steps=(1,)).fit(store)
    torch.testing.assert_close(mean.direction_.flat[0], tokens.direction_.flat[1], rtol=1e-4, atol=1e-5)
    assert mean.direction_.timesteps == (800,)


def test_the_record_of_rows_names_their_content(tmp_path):
    values = np.random.default_rng(0).normal(size=(6, 2, 3, 4)).astype(np.float32)
    other = values.copy()
    other[5, 1, 2, 3] += 1e-3
    found = [
        SiteRows(write_store(tmp_path / str(i), each), SITE, "cond", "tokens").record()
        for i, each in enumerate((values, values, other))
    ]
    assert found[0] == found[1]
    assert {key for key in found[0] if found[0][key] != found[2][key]} == {"shards_sha256"}


def test_a_store_with_holes_gives_what_is_there(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 1, 2, 3)).astype(np.float32)
    x[7, 0, 1, 0] = np.nan
    store = write_store(tmp_path / "s", x, {"o": np.arange(40) % 2})
    got = SiteRows(store, SITE, "cond", "tokens").gather(0)
    assert len(got[0]) == 79 and (got[0] == 7).sum() == 1
    assert len(SiteRows(store, SITE, "cond", "map").gather(0)[0]) == 39
    found = PCA(site=SITE, view="tokens", n_components=2).fit(store)
    exact = dense_pca(x.reshape(-1, 3)[np.isfinite(x.reshape(-1, 3)).all(1)].astype(np.float64), 2)
    np.testing.assert_allclose(found.explained_variance_[0], exact[1], rtol=1e-5)
    with pytest.raises(InvalidDirection, match="1 maps of step 0"):
        PCA(site=SITE, view="map", n_components=2, max_side=5).fit(write_store(tmp_path / "t", x[5:10]))


def test_samples_without_a_label_are_left_out(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 1, 1, 3)).astype(np.float32)
    labels = np.array(["a", "b", ""])[np.arange(60) % 3]
    x[labels == ""] += 1000
    store = write_store(tmp_path / "s", x, {"o": labels})
    options: dict[str, Any] = {"site": SITE, "factor": "o", "positive": "a"}
    rest, named = MeanDifference(**options).fit(store), MeanDifference(**options, negative="b").fit(store)
    assert torch.equal(rest.direction_.basis, named.direction_.basis) and rest.direction_.flat.norm() < 3


# Concept activation vectors


@pytest.mark.parametrize("seed", SEEDS)
def test_cav_knows_a_concept_from_chance(tmp_path, seed):
    rng = np.random.default_rng(seed)
    label = np.arange(240) % 3
    x = rng.normal(size=(240, 1, 1, 12))
    x[:, 0, 0, 4] += 3 * (label == 0)
    store = write_store(tmp_path / "s", x, {"object": label, "chance": rng.permutation(label)})
    options: dict[str, Any] = {"site": SITE, "positive": "0", "repeats": 12, "seed": seed}
    found = CAV(factor="object", **options).fit(store)
    assert found.accuracy_.mean() > 0.85 and 0.3 < found.random_accuracy_.mean() < 0.7
    assert found.p_value_[0] == pytest.approx(1 / 13)
    assert cosine(found.direction_.flat, np.eye(12)[4]) > 0.85
    chance = CAV(factor="chance", **options).fit(store)
    assert chance.p_value_[0] > 0.05
    along, across = np.tile(np.eye(12)[4], (30, 1)), rng.normal(size=(30, 12)) * (np.arange(12) != 4)
    assert found.score(along).score.mean() == 1.0 and found.score(along).p_value < 0.02
    assert found.score(across).p_value > 0.02
    assert abs(found.score(across).score.mean() - 0.5) < 0.3


# Requests that cannot be met


def test_impossible_requests(tmp_path):
    x = np.random.default_rng(0).normal(size=(8, 1, 2, 3))
    store = write_store(tmp_path / "s", x, {"object": ["cup", "star"] * 4})
    contrast: dict[str, Any] = {"site": SITE, "factor": "object", "positive": "star"}
    for finder, error, message in [
        (PCA(site="other:out"), UnknownSite, "toy.layer"),
        (PCA(site=SITE, n_components=4), InvalidDirection, "at most 3"),
        (PCA(site=SITE, view="rows"), InvalidDirection, "expected one of mean, tokens, map"),  # type: ignore[arg-type]
        (MeanDifference(**dict(contrast, factor="style")), UnknownLabel, "object"),
        (MeanDifference(**dict(contrast, positive="moon")), InvalidDirection, "there are cup, star"),
        (MeanDifference(**contrast, holdout=0.9), InvalidDirection, "at least two to learn from"),
        (MeanDifference(**contrast, holdout=0.0), InvalidDirection, "between 0 and 1"),
        (LDA(**contrast, shrinkage=2.0), InvalidDirection, "shrinkage 2.0"),
        (CAV(**contrast, view="tokens"), InvalidDirection, "one row a sample"),
        (ICA(site=SITE, n_components=9), InvalidDirection, "9 components"),
    ]:
        with pytest.raises(error, match=message):
            finder.fit(store)
    with pytest.raises(NotFitted, match="PCA has no direction_ yet; call fit first"):
        _ = PCA(site=SITE).direction_
    with pytest.raises(AttributeError):
        _ = PCA(site=SITE).nothing


def test_provenance_names_every_parameter_and_what_was_read(tmp_path):
    x = np.random.default_rng(0).normal(size=(20, 1, 2, 3))
    store, other = write_store(tmp_path / "s", x), write_store(tmp_path / "t", x + 1)
    base = PCA(site=SITE, n_components=2).fit(store).direction_
    assert base.provenance["parameters"] == {
        "site": SITE,
        "branch": "cond",
        "view": "mean",
        "steps": None,
        "n_components": 2,
        "joint": False,
        "max_side": 4096,
    }
    assert base.hash == PCA(site=SITE, n_components=2).fit(store).direction_.hash
    assert base.hash != PCA(site=SITE, n_components=2).fit(other).direction_.hash
