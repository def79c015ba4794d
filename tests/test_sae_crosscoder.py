"""Joint rows and crosscoders: the same cells of several sites and steps, read together and coded as one."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from activations_store import ActivationStore, SiteSpec, StoreSpec, StoreWriter
from sae import TrainConfig, load_sae, score_concepts, train
from sae.architectures.crosscoder import blocks_of, direction, evaluate_blocks, where
from sae.architectures.joint import JointRows
from sae.errors import ConfigError

A, B, SMALL = "unet.a:out", "unet.b:out", "unet.small:out"
WIDTH = {A: 12, B: 20, SMALL: 12}
N, STEPS, TOKENS, FEATURES = 40, 3, 9, 16
QUICK: dict[str, Any] = {"site": A, "d_sae": 32, "k": 3, "batch_size": 128, "pool_rows": 1024, "init_rows": 1024}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[ActivationStore, dict[str, np.ndarray]]:
    """Features 0 to 3 are in A alone, 4 to 7 in B alone, the others in both; B has 30 times the scale of A."""
    rng = np.random.default_rng(0)
    features = {site: rng.normal(size=(FEATURES, WIDTH[site])) for site in (A, B)}
    for each in features.values():
        each /= np.linalg.norm(each, axis=1, keepdims=True)
    features[A][4:8] = 0
    features[B][:4] = 0
    on = rng.random((N, STEPS, 2, TOKENS, FEATURES)) < 0.12
    strength = on * rng.uniform(1, 2, on.shape)
    x = {A: strength @ features[A] + 1, B: 30 * (strength @ features[B]) - 5}
    x[SMALL] = x[A][:, :, :, :4]
    spec = StoreSpec(
        sites=(
            SiteSpec(A, TOKENS, WIDTH[A], (3, 3), "float32"),
            SiteSpec(B, TOKENS, WIDTH[B], (3, 3), "float32"),
            SiteSpec(SMALL, 4, WIDTH[A], (2, 2), "float32"),
        ),
        n_samples=N,
        timesteps=(900, 500, 100),
        log_snr=(-6.0, 0.0, 4.0),
        samples_per_shard=8,
    )
    table = pa.table(
        {
            "sample": np.arange(N),
            "prompt": ["a"] * N,
            "seed": np.arange(N),
            "label_half": ["low" if i < N // 2 else "high" for i in range(N)],
        }
    )
    path = tmp_path_factory.mktemp("joint") / "store"
    with StoreWriter.create(path, spec, table, fingerprint={"name": "planted"}, plan={}) as writer:
        for shard in range(spec.n_shards):
            s = spec.shard_samples(shard)
            writer.write_shard(shard, {site: v[s.start : s.stop].astype(np.float32) for site, v in x.items()})
    return ActivationStore.open(path), features


KINDS = [(step, ((A, step), (B, max(0, step - 1)))) for step in range(STEPS)]


def test_joint_rows_are_what_the_store_holds_once_an_epoch(planted: Any) -> None:
    store, _ = planted
    samples = np.array([0, 1, 5, 7, 11, 30])
    with JointRows(store, KINDS, 54, seed=3, samples=samples, branches=["cond"], pool_rows=100) as loader:
        n = loader.rows_per_epoch
        assert n == len(samples) * STEPS * TOKENS
        batches = [next(loader) for _ in range(2 * n // 54)]
    a, b = (store.site(site).read() for site in (A, B))
    for epoch in (batches[: n // 54], batches[n // 54 :]):
        keys = [torch.stack([q.sample, q.step, q.token], 1) for q in epoch]
        assert len(torch.unique(torch.cat(keys), dim=0)) == n
    for q in batches[:4]:
        at = (q.branch == store.spec.branches.index("cond")).all()
        assert bool(at)
        s, t, c = q.sample.numpy(), q.step.numpy(), q.token.numpy()
        branch = q.branch.numpy()
        expected = np.concatenate([a[s, t, branch, c], b[s, np.maximum(0, t - 1), branch, c]], 1)
        np.testing.assert_array_equal(q.x.numpy(), expected)
    orders = [torch.stack([q.sample, q.step, q.token], 1).tolist() for q in (batches[0], batches[n // 54])]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("position", [0, 1, 5, 13])
def test_joint_rows_go_on_at_any_batch_and_are_shared_out(planted: Any, position: int) -> None:
    store, _ = planted
    options: dict[str, Any] = {"seed": 1, "samples": np.arange(10), "pool_rows": 120}
    with JointRows(store, KINDS, 40, **options) as loader:
        whole = [next(loader).x for _ in range(position + 1)]
    with JointRows(store, KINDS, 40, position=position, **options) as loader:
        assert torch.equal(next(loader).x, whole[position])
    parts = []
    for rank in range(2):
        with JointRows(store, KINDS, 20, position=position, rank=rank, world=2, **options) as loader:
            parts.append(next(loader).x)
    assert torch.equal(torch.cat(parts), whole[position])


def test_a_crosscoder_finds_where_each_feature_is(planted: Any, tmp_path: Path) -> None:
    store, features = planted
    config = TrainConfig(**QUICK, rows=60_000, lr=8e-3, across_sites=(B,), holdout=0.1)
    result = train(store, config, tmp_path)
    sae: Any = load_sae(tmp_path)
    blocks = blocks_of(sae)
    assert [(b.site, b.step) for b in blocks] == [(A, None), (B, None)]
    assert sae.config.d_in == WIDTH[A] + WIDTH[B]
    profile = where(sae)
    torch.testing.assert_close(profile.square().sum(1), torch.ones(32))

    # Each planted feature, scaled as the crosscoder counts blocks, against the learned directions.
    std = torch.tensor(sae.metadata["block_std"])
    planted_rows = np.concatenate([features[A] / float(std[0]), 30 * features[B] / float(std[1])], 1)
    learned = torch.cat([sae.directions[:, b.columns] / s for b, s in zip(blocks, std.tolist(), strict=True)], 1)
    cosine = (
        torch.nn.functional.normalize(torch.from_numpy(planted_rows).float())
        @ torch.nn.functional.normalize(learned.detach(), dim=1).T
    )
    best = cosine.max(1)
    assert float(best.values.mean()) > 0.95
    assert bool((profile[best.indices[:4], 0] > 0.95).all())
    assert bool((profile[best.indices[4:8], 1] > 0.95).all())
    both = profile[best.indices[8:]]
    assert bool((both.min(1).values > 0.4).all())

    by_block = evaluate_blocks(sae, store)
    assert set(by_block) == {A, B}
    assert min(by_block.values()) > 0.8  # neither block is left out for its scale
    assert result.metrics["l0"] <= 3
    assert score_concepts(sae, store, "half").mu.shape == (STEPS, 2, 32)
    feature = int(best.indices[0])
    torch.testing.assert_close(direction(sae, feature, A), sae.directions[feature, : WIDTH[A]].detach())
    with pytest.raises(ConfigError, match="has no block unet.small:out"):
        direction(sae, 0, SMALL)


def test_one_code_for_all_steps(planted: Any, tmp_path: Path) -> None:
    store, _ = planted
    config = TrainConfig(**QUICK, rows=4000, across_sites=(B,), across_steps=True, steps=(0, 2), branches=("cond",))
    result = train(store, config, tmp_path)
    blocks = blocks_of(result.sae)
    assert [(b.site, b.step) for b in blocks] == [(A, 0), (B, 0), (A, 2), (B, 2)]
    assert len(result.metrics["ev_per_step"]) == 1
    assert where(result.sae).shape == (32, 4)
    assert set(evaluate_blocks(result.sae, store)) == {f"{A}@0", f"{B}@0", f"{A}@2", f"{B}@2"}
    assert direction(result.sae, 3, B, 2).shape == (WIDTH[B],)


def test_resumes_bit_for_bit(planted: Any, tmp_path: Path) -> None:
    store, _ = planted
    config = TrainConfig(**QUICK, rows=10_000, across_sites=(B,), log_every=10, checkpoint_rows=1280)
    train(store, config, tmp_path / "a")

    def stop(report: Any) -> None:
        if report.batch == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(store, config, tmp_path / "b", progress=stop)
    assert train(store, config, tmp_path / "b").resumed_from > 0
    name = "sae_weights.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_refusals(planted: Any, tmp_path: Path) -> None:
    store, _ = planted
    with pytest.raises(ConfigError, match="unet.small:out has 4 tokens in grid .* choose sites on one token grid"):
        train(store, TrainConfig(**QUICK, rows=1000, across_sites=(SMALL,)), tmp_path)
    with pytest.raises(ConfigError, match="one is named twice"):
        TrainConfig(**QUICK, rows=1000, across_sites=(A,))
    with pytest.raises(ConfigError, match="takes input 'raw' and time 'shared' only"):
        TrainConfig(**QUICK, rows=1000, across_steps=True, time="film")
    plain = train(store, TrainConfig(**QUICK, rows=1000), tmp_path / "plain").sae
    with pytest.raises(ConfigError, match="it is no crosscoder"):
        blocks_of(plain)
