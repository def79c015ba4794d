"""Finders without labels on stores: PCA, ICA and NMF, dictionaries and sampler states, against dense answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from seeded import SEEDS, normal
from toy_store import SITE, cosine, dense_pca, write_store

from probe.directions import (
    ICA,
    NMF,
    PCA,
    DictionaryColumns,
    LatentSVD,
)
from probe.errors import InvalidDirection
from probe.interventions import TopKDictionary
from probe.model import noised, x0_hat
from probe.model.analytic import Gaussian

# Principal components


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
