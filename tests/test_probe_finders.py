"""probe.directions: finders on stores, against dense answers and planted truth (V22, V23)."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.linear_model import Ridge

from activations_store import ActivationStore, SiteSpec, StoreSpec, StoreWriter
from activations_store.errors import UnknownLabel, UnknownSite
from probe.directions import (
    CAV,
    ICA,
    LDA,
    NMF,
    PCA,
    DictionaryColumns,
    Direction,
    LatentSVD,
    LogisticProbe,
    MeanDifference,
    RidgeProbe,
    rows,
)
from probe.directions.rows import SiteRows
from probe.errors import InvalidDirection, NotFitted
from probe.interventions import TopKDictionary
from probe.model import noised, x0_hat
from probe.model.analytic import Gaussian, GaussianMixture

SITE = "toy.layer:out"
SEEDS = [0, 1, 2]


def write_store(
    folder: Path, values: np.ndarray, labels: dict[str, Any] | None = None, site=SITE, grid=None, per_shard=None
) -> ActivationStore:
    """A store of values (samples, steps, tokens, channels), float32, with one branch."""
    n, steps, tokens, channels = values.shape
    spec = StoreSpec(
        (SiteSpec(site, tokens, channels, grid, dtype="float32"),),
        n_samples=n,
        timesteps=tuple(range(900, 900 - 100 * steps, -100)),
        log_snr=tuple(float(i) for i in range(steps)),
        branches=("cond",),
        samples_per_shard=per_shard or max(1, n // 3),
    )
    table = {"sample": np.arange(n), "prompt": ["x"] * n, "seed": np.arange(n)}
    table |= {f"label_{name}": [str(v) for v in given] for name, given in (labels or {}).items()}
    with StoreWriter.create(
        folder, spec, pa.table(table), fingerprint={"model_class": "Toy"}, plan={}, allow_nonfinite=True
    ) as writer:
        for shard in range(spec.n_shards):
            r = spec.shard_samples(shard)
            writer.write_shard(shard, {site: values[r.start : r.stop, :, None].astype(np.float32)})
    return ActivationStore.open(folder)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a, b) -> float:
    a, b = (torch.as_tensor(np.asarray(x)).double().flatten() for x in (a, b))
    return float(a @ b / a.norm() / b.norm())


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(rows, "_BLOCK_BYTES", 2048)


# Principal components


def dense_pca(x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    centred = x - x.mean(0)
    _, s, vt = np.linalg.svd(centred, full_matrices=False)
    return vt[:k], s[:k] ** 2 / (len(x) - 1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("view", ["mean", "tokens", "map"])
def test_streamed_pca_equals_the_dense_answer(tmp_path, small_blocks, seed, view):
    x = np.random.default_rng(seed).normal(size=(50, 2, 4, 5)) * np.array([5, 4, 3, 2, 1.0]) + 30
    store = write_store(tmp_path / "s", x)
    found = PCA(site=SITE, view=view, n_components=3).fit(store)
    for step in range(2):
        flat = {"mean": x[:, step].mean(1), "tokens": x[:, step].reshape(-1, 5), "map": x[:, step].reshape(50, -1)}
        vectors, variance = dense_pca(flat[view].astype(np.float32).astype(np.float64), 3)
        np.testing.assert_allclose(found.explained_variance_[step], variance, rtol=1e-5)
        for i in range(3):
            assert abs(cosine(found.direction_.flat[step, i], vectors[i])) > 1 - 1e-7
        scale = np.sqrt(variance * (len(flat[view]) - 1) / len(flat[view]))
        np.testing.assert_allclose(found.direction_.scales[step], scale, rtol=1e-4)
    assert found.direction_.basis.shape[2:] == ((4, 5) if view == "map" else (5,))
    assert found.direction_.timesteps == (900, 800)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("joint", [False, True])
def test_gram_and_covariance_agree(tmp_path, seed, joint):
    x = np.random.default_rng(seed).normal(size=(12, 2, 4, 5)) * (1 + np.arange(20)).reshape(4, 5)
    store = write_store(tmp_path / "s", x + np.arange(2)[:, None, None] * 100)
    options: dict[str, Any] = {"site": SITE, "view": "map", "n_components": 4, "joint": joint}
    a, b = PCA(**options).fit(store), PCA(**options, max_side=19 if not joint else 24).fit(store)
    np.testing.assert_allclose(a.explained_variance_, b.explained_variance_, rtol=1e-5)
    np.testing.assert_allclose(a.explained_variance_ratio_, b.explained_variance_ratio_, rtol=1e-5)
    torch.testing.assert_close(a.direction_.flat, b.direction_.flat, rtol=1e-4, atol=1e-4)
    if joint:
        centred = (x - x.mean(0)).transpose(1, 0, 2, 3).reshape(24, 20)
        vectors, _ = dense_pca(centred, 4)
        assert abs(cosine(a.direction_.flat[1, 0], vectors[0])) > 1 - 1e-6
        assert torch.equal(a.direction_.flat[0], a.direction_.flat[1]) and a.direction_.frame == "global"
        assert (a.direction_.scales[0] != a.direction_.scales[1]).all()
    with pytest.raises(InvalidDirection, match="max_side=8"):
        PCA(**options, max_side=8).fit(store)


@pytest.mark.parametrize("seed", SEEDS)
def test_v22_pca_of_the_posterior_means_of_a_gaussian(tmp_path, seed):
    """Eigenvectors are those of S, eigenvalues abar l^2 / (abar l + 1 - abar)."""
    vectors = torch.linalg.qr(normal(seed, 6, 6)).Q
    l = torch.tensor([5.0, 3.2, 2.0, 1.1, 0.6, 0.25], dtype=torch.float64)  # noqa: E741
    model = Gaussian(normal(seed + 1, 6), (vectors * l) @ vectors.T)
    generator = torch.Generator().manual_seed(seed)
    clean = model.sample(80_000, generator)
    levels = [-1.0, 1.0]
    z = [noised(clean, torch.randn(clean.shape, generator=generator, dtype=torch.float64), a) for a in levels]
    means = torch.stack([x0_hat(model, zi, a) for zi, a in zip(z, levels, strict=True)], 1)
    rows_ = means.reshape(800, 100, 2, 6).transpose(1, 2).numpy()
    found = PCA(site=SITE, view="tokens", n_components=4).fit(write_store(tmp_path / "s", rows_))
    for step, a in enumerate(levels):
        abar = 1 / (1 + np.exp(-a))
        exact = abar * l**2 / (abar * l + 1 - abar)
        for i in range(4):
            assert abs(cosine(found.direction_.flat[step, i], vectors[:, i])) > 0.998
            assert found.explained_variance_[step, i] == pytest.approx(float(exact[i]), rel=0.02)


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


# Components


@pytest.mark.parametrize("seed", SEEDS)
def test_ica_finds_independent_sources_that_pca_cannot(tmp_path, seed):
    rng = np.random.default_rng(seed)
    sources = rng.exponential(size=(4000, 3)) - 1
    mixing = np.linalg.qr(rng.normal(size=(5, 5)))[0][:3]  # orthonormal: no principal axis
    store = write_store(tmp_path / "s", (sources @ mixing)[:, None, None])
    found = ICA(site=SITE, n_components=3, seed=seed).fit(store)
    match = np.array([[cosine(v, m) for m in mixing] for v in found.direction_.flat[0]])
    assert (match.max(0) > 0.99).all() and found.converged_.all()
    plain = PCA(site=SITE, n_components=3).fit(store).direction_
    assert min(max(abs(cosine(v, m)) for v in plain.flat[0]) for m in mixing) < 0.98
    torch.testing.assert_close(found.direction_.scales, torch.ones(1, 3), rtol=0.1, atol=0)


@pytest.mark.parametrize("seed", SEEDS)
def test_nmf_finds_signed_parts(tmp_path, seed):
    rng = np.random.default_rng(seed)
    parts = np.array([[3, 3, 0, 0, 0, 0], [0, 0, -2, -2, 0, 0], [0, 0, 0, 0, 1, -1.0]])
    weights = rng.exponential(size=(600, 3)) * (rng.random((600, 3)) < 0.5)
    store = write_store(tmp_path / "s", (weights @ parts)[:, None, None])
    found = NMF(site=SITE, n_components=3, max_iter=2000).fit(store)
    match = np.array([[cosine(v, p) for p in parts] for v in found.direction_.flat[0]])
    assert (match.max(0) > 0.99).all()
    assert found.direction_.scales[0].tolist() == sorted(found.direction_.scales[0].tolist(), reverse=True)


def test_drawn_rows_depend_on_the_seed_alone(tmp_path):
    x = np.random.default_rng(0).exponential(size=(60, 1, 4, 3))
    store = write_store(tmp_path / "s", x)
    options: dict[str, Any] = {"site": SITE, "view": "tokens", "n_components": 2, "max_rows": 50}
    hashes = [ICA(**options, seed=s).fit(store).direction_.hash for s in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


# Dictionaries and latents


def test_dictionary_columns_carry_the_scale_of_the_site(tmp_path):
    rng = np.random.default_rng(0)
    W = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(6, 4))).float(), dim=1)
    sae = TopKDictionary(W.T.clone(), torch.zeros(6), W, torch.zeros(4), k=2)
    x = rng.normal(size=(30, 2, 5, 4)) * [1, 2, 3, 4]
    found = DictionaryColumns(site=SITE, dictionary=sae, features=[4, 1]).fit(write_store(tmp_path / "s", x))
    torch.testing.assert_close(found.direction_.flat[1], W[[4, 1]].double())
    exact = (x.astype(np.float32).reshape(30, 2, 5, 4)[:, 1].reshape(-1, 4) @ W.numpy()[4]).std()
    assert float(found.direction_.scales[1, 0]) == pytest.approx(float(exact), rel=1e-4)
    with pytest.raises(InvalidDirection, match="from 0 to 5"):
        DictionaryColumns(site=SITE, dictionary=sae, features=[6]).fit(write_store(tmp_path / "t", x))


@pytest.mark.parametrize("seed", SEEDS)
def test_latent_svd_and_writing(tmp_path, seed):
    rng = np.random.default_rng(seed)
    fixed = np.outer(rng.normal(size=4), rng.normal(size=5))
    x = rng.normal(size=(6, 3, 2, 4, 5)) * np.array([1.0, 0.3, 0.01])[None, :, None, None, None]
    x[:, 1:] += 3 * fixed  # steps 1 and 2 share their leading subspace
    rows_ = x.transpose(0, 1, 3, 4, 2).reshape(6, 3, 20, 2)
    store = write_store(tmp_path / "s", rows_, site="unet:in", grid=(4, 5))
    svd = LatentSVD(rank=1).fit(store)
    np.testing.assert_allclose(
        svd.singular_values_, np.linalg.svd(x.astype(np.float32), compute_uv=False).mean(0), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(np.diag(svd.overlap_), 1.0)
    assert svd.overlap_[1, 2] > 0.9 > 0.6 > svd.overlap_[0, 1]
    full = svd.write(store, source=0, target=3, step=2, rank=4)
    torch.testing.assert_close(
        full.flat[0, 0], torch.from_numpy(rows_[3, 2] - rows_[0, 2]).flatten(), atol=1e-5, rtol=0
    )
    one = svd.write(store, source=0, target=3, step=0, rank=1)
    changed = x[0, 0] + one.basis[0, 0].numpy().T.reshape(2, 4, 5)
    leading = np.linalg.svd(x[3, 0])
    expected = leading[1][:, :1, None] * leading[0][:, :, :1] @ leading[2][:, :1]
    rest = np.linalg.svd(x[0, 0])
    expected += x[0, 0] - rest[1][:, :1, None] * rest[0][:, :, :1] @ rest[2][:, :1]
    np.testing.assert_allclose(changed, expected, atol=1e-5)
    assert one.site == "sampler:x_t" and one.steps == (0,) and one.frame == "local"
    with pytest.raises(InvalidDirection, match="out of range"):
        svd.write(store, source=0, target=1, step=0, rank=5)


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
