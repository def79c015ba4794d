"""Streaming metrics against dense numpy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sae_world import SITE, World, plant

from sae import SAEConfig, TopKSAE, evaluate
from sae.errors import EmptySelection, SAEModelMismatch, SAESiteMismatch
from sae.evaluation.metrics import VarianceSums


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return plant(tmp_path_factory.mktemp("store") / "planted", n_samples=10, n_steps=3, samples_per_shard=4)


@pytest.fixture(scope="module")
def sae() -> TopKSAE:
    g = torch.Generator().manual_seed(0)
    made = TopKSAE(SAEConfig(d_in=24, d_sae=96, k=3, site=SITE), seed=2)
    with torch.no_grad():
        made.b_enc.copy_(0.3 * torch.randn(96, generator=g) - 0.3)
        made.b_dec.copy_(torch.randn(24, generator=g))
    return made


def dense_numbers(sae: TopKSAE, x: np.ndarray) -> dict[str, float]:
    """The definitions written down directly for (rows, d)."""
    with torch.no_grad():
        z = sae.encode(torch.from_numpy(x)).double().numpy()
        error = x - sae(torch.from_numpy(x)).double().numpy()
    centred = x - x.mean(0)
    return {
        "fvu": (error**2).sum() / (centred**2).sum(),
        "per_dim": float(np.mean(1 - error.var(0) / centred.var(0))),
        "l0": (z > 0).sum(1).mean(),
        "about_zero": 1 - (error**2).sum() / (x**2).sum(),
        "dead": int((~(z > 0).any(0)).sum()),
        "dense": int(((z > 0).mean(0) > 0.1).sum()),
        "mse": (error**2).mean(),
    }


def test_evaluate_equals_dense(world: World, sae: TopKSAE) -> None:
    x = world.store.site(SITE).read().astype(np.float64)
    seen: list[tuple[int, int]] = []
    metrics = evaluate(sae, world.store, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (metrics["rows"], metrics["rows"])
    x32 = x.astype(np.float32)
    whole = dense_numbers(sae, x32.reshape(-1, 24))
    assert metrics["rows"] == 10 * 3 * 2 * 16
    assert metrics["fvu"] == pytest.approx(whole["fvu"], rel=1e-5)
    assert metrics["explained_variance"] == pytest.approx(1 - whole["fvu"], rel=1e-5)
    assert metrics["explained_variance_per_dim"] == pytest.approx(whole["per_dim"], rel=1e-5)
    assert metrics["explained_variance_about_zero"] == pytest.approx(whole["about_zero"], rel=1e-5)
    assert metrics["mse"] == pytest.approx(whole["mse"], rel=1e-5)
    assert metrics["l0"] == pytest.approx(whole["l0"])
    assert (metrics["dead"], metrics["dense"]) == (whole["dead"], whole["dense"])
    assert metrics["dead_fraction"] == pytest.approx(whole["dead"] / 96)
    for step in range(3):
        part = dense_numbers(sae, x32[:, step].reshape(-1, 24))
        assert metrics["ev_per_step"][step] == pytest.approx(1 - part["fvu"], rel=1e-5)
        assert metrics["ev_about_zero_per_step"][step] == pytest.approx(part["about_zero"], rel=1e-5)
        assert metrics["ev_per_dim_per_step"][step] == pytest.approx(part["per_dim"], rel=1e-5)
        assert metrics["l0_per_step"][step] == pytest.approx(part["l0"])
        assert metrics["dead_fraction_per_step"][step] == pytest.approx(part["dead"] / 96)
    for i, branch in enumerate(("uncond", "cond")):
        part = dense_numbers(sae, x32[:, :, i].reshape(-1, 24))
        assert metrics["ev_per_branch"][branch] == pytest.approx(1 - part["fvu"], rel=1e-5)
        assert metrics["ev_about_zero_per_branch"][branch] == pytest.approx(part["about_zero"], rel=1e-5)


def test_the_two_definitions_differ_by_a_constant_error() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(500, 4)))
    sums = VarianceSums(1, 4)
    sums.add(0, x[:200], torch.ones(200, 4))
    sums.add(0, x[200:], torch.ones(300, 4))
    assert sums.explained_variance_per_dim() == pytest.approx(1.0)
    assert sums.explained_variance() == pytest.approx(0.0, abs=0.1)


def test_about_zero_praises_a_dictionary_that_knows_only_the_mean() -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(5000, 4)) + 3.0)
    sums = VarianceSums(1, 4)
    sums.add(0, x, x - x.mean(0))
    assert sums.explained_variance() == pytest.approx(0.0, abs=1e-9)
    assert sums.explained_variance_about_zero() == pytest.approx(0.9, abs=0.01)


def test_almost_dead_features_are_on_in_few_rows(world: World, sae: TopKSAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae.evaluation.metrics.ALMOST_DEAD_BELOW", 0.01)
    z = sae.encode(torch.from_numpy(world.store.site(SITE).read().reshape(-1, 24))).detach()
    density = (z > 0).float().mean(0)
    few = int(((density > 0) & (density < 0.01)).sum())
    assert few > 0
    assert evaluate(sae, world.store)["almost_dead"] == few


def test_pooled_sums_do_not_depend_on_batches_and_bear_a_large_mean() -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(64, 3)) + 1e4)
    error = 0.1 * x.flip(0) - 1e3
    exact = float(error.square().sum() / (x - x.mean(0)).square().sum())
    for size in (1, 7, 64):
        sums = VarianceSums(2, 3)
        for i, rows in enumerate(torch.arange(64).split(size)):
            sums.add(i % 2, x[rows], error[rows])
        assert sums.fvu() == pytest.approx(exact, rel=1e-6)


def test_rows_that_do_not_vary_give_null(world: World, sae: TopKSAE) -> None:
    sums = VarianceSums(1, 4)
    sums.add(0, torch.ones(5, 4), torch.zeros(5, 4))
    assert np.isnan(sums.fvu())
    assert np.isnan(sums.explained_variance_per_dim())


def test_selection_and_row_bound(world: World, sae: TopKSAE) -> None:
    metrics = evaluate(sae, world.store, steps=[2], branches=["cond"], max_rows=70)
    assert (metrics["samples"], metrics["rows"]) == (4, 64)
    x = world.store.site(SITE).read(sample=[0, 3, 6, 9], step=[2], branch="cond").reshape(-1, 24)
    assert metrics["fvu"] == pytest.approx(dense_numbers(sae, x)["fvu"], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": [99]}, r"samples \[99\] are not committed; 10 samples are"),
        ({"samples": []}, "no sample is committed"),
        ({"samples": np.ones(10, bool)}, "bool values.*np.flatnonzero"),
        ({"steps": [3]}, "steps 0 to 2"),
        ({"steps": [0.5]}, "list of whole numbers"),
        ({"branches": ["both"]}, "'uncond', 'cond'"),
    ],
)
def test_empty_selections_are_named(world: World, sae: TopKSAE, options: dict, message: str) -> None:
    with pytest.raises(EmptySelection, match=message):
        evaluate(sae, world.store, **options)


def test_wrong_site_width_and_model_are_refused(world: World, sae: TopKSAE, tmp_path: Path) -> None:
    with pytest.raises(SAESiteMismatch, match="trained at elsewhere:out"):
        evaluate(TopKSAE(SAEConfig(24, 96, 3, site="elsewhere:out")), world.store, site=SITE)
    with pytest.raises(SAESiteMismatch, match="width 20"):
        evaluate(TopKSAE(SAEConfig(20, 96, 3, site=SITE)), world.store)
    metadata = {"store": {"fingerprint": {"name": "other", "weights_hash": "b" * 64}}}
    foreign = TopKSAE(sae.config, metadata=metadata)
    with pytest.raises(SAEModelMismatch, match="any_model=True"):
        evaluate(foreign, world.store)
    assert evaluate(foreign, world.store, any_model=True)["rows"] == 960
