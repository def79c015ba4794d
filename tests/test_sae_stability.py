"""Dictionaries that agree, dictionaries that do not, and what chance gives."""

import numpy as np
import pytest
import torch
from sae_world import SITE, World, plant

from sae import SAEConfig, TopKSAE
from sae.errors import EmptySelection, ShapeMismatch
from sae.evaluation.stability import compare


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return plant(tmp_path_factory.mktemp("store") / "planted", n_samples=16, n_features=16)


def planted(world: World, order: np.ndarray, *, d_sae: int = 16) -> TopKSAE:
    """The planted features in some order, then random ones that are never on."""
    sae = TopKSAE(SAEConfig(d_in=24, d_sae=d_sae, k=16, site=SITE), seed=5)
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.b_enc.fill_(-1.0)
        sae.W_dec[: len(order)] = torch.from_numpy(world.features[order]).float()
        sae.W_enc[:, : len(order)] = torch.from_numpy(np.linalg.pinv(world.features)[:, order]).float()
        sae.b_enc[: len(order)] = -1e-4
        sae.b_dec.copy_(torch.from_numpy(world.mean))
    return sae


def test_the_same_features_in_another_order_match_exactly(world: World) -> None:
    order = np.random.default_rng(0).permutation(16)
    seen: list[tuple[int, int]] = []
    found = compare(
        planted(world, np.arange(16)), planted(world, order, d_sae=20), world.store, progress=lambda *a: seen.append(a)
    )
    for match in (found.decoder, found.activation):
        assert order[match.second].tolist() == match.first.tolist() == list(range(16))
        np.testing.assert_allclose(match.similarity, 1.0, atol=1e-5)
    assert found.summary()["decoder_shared"] == found.summary()["activation_shared"] == 1.0
    assert seen[-1] == (found.rows, found.rows) == (16 * 4 * 2 * 16,) * 2


def test_chance_is_reported_beside_and_is_lower(world: World) -> None:
    found = compare(planted(world, np.arange(16)), planted(world, np.arange(16)), world.store)
    assert found.decoder_null.summary()["mean"] < 0.6
    assert found.activation_null.summary()["shared"] < 0.5
    # Two untrained dictionaries are as alike as chance has it.
    a, b = (TopKSAE(SAEConfig(24, 64, 4, site=SITE), seed=s) for s in (1, 2))
    untrained = compare(a, b, world.store)
    assert untrained.decoder.summary()["mean"] == pytest.approx(untrained.decoder_null.summary()["mean"], abs=0.06)


def test_half_of_the_features_shared(world: World) -> None:
    other = planted(world, np.arange(16))
    with torch.no_grad():
        drawn = torch.randn(8, 24, generator=torch.Generator().manual_seed(3))
        other.W_dec[8:] = drawn / drawn.norm(dim=1, keepdim=True)
        other.W_enc[:, 8:] = other.W_dec[8:].T
    found = compare(planted(world, np.arange(16)), other, world.store)
    paired = {int(a): int(b) for a, b in zip(found.activation.first, found.activation.second, strict=True)}
    assert [paired[i] for i in range(8)] == list(range(8))
    assert found.decoder.summary()["shared"] == pytest.approx(0.5, abs=0.1)


def test_matching_is_optimal_and_limited_to_active_features(world: World) -> None:
    from scipy.optimize import linear_sum_assignment

    a, b = planted(world, np.arange(16)), TopKSAE(SAEConfig(24, 40, 8, site=SITE), seed=4)
    x = torch.from_numpy(world.store.site(SITE).read().reshape(-1, 24))
    za, zb = a.encode(x).detach().numpy(), b.encode(x).detach().numpy()
    top = np.sort(np.argsort(-(zb > 0).sum(0), kind="stable")[:10])
    found = compare(a, b, world.store, max_features=10)
    assert set(found.activation.second) <= set(top.tolist())
    kept = np.sort(np.argsort(-(za > 0).sum(0), kind="stable")[:10])
    dense = np.corrcoef(za[:, kept].T, zb[:, top].T)[:10, 10:]
    rows, columns = linear_sum_assignment(dense, maximize=True)
    assert found.activation.similarity.sum() == pytest.approx(dense[rows, columns].sum(), abs=1e-4)


def test_dictionaries_of_different_sites_are_refused(world: World) -> None:
    here = planted(world, np.arange(16))
    with pytest.raises(ShapeMismatch, match="only dictionaries of one site"):
        compare(here, TopKSAE(SAEConfig(24, 8, 2, site="elsewhere:out")), world.store)
    with pytest.raises(ShapeMismatch, match="12 wide"):
        compare(here, TopKSAE(SAEConfig(12, 8, 2, site=SITE)), world.store)
    silent = planted(world, np.arange(0))
    with pytest.raises(EmptySelection, match="silent on all"):
        compare(here, silent, world.store)
