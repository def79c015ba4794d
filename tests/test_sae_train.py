"""Training: recovery of planted features, exact resume after a kill, refusals."""

import json
import logging
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sae_children import Child, train_alone
from sae_world import SITE, World, plant

from activations_store import ActivationStore, StoreWriter
from sae import TopKSAE, TrainConfig, TrainProgress, load_sae, split_samples, train
from sae._files import file_hash
from sae.config import ARCHITECTURES
from sae.errors import ConfigError, CorruptFile, EmptySelection, NonFiniteLoss, RunMismatch
from sae.training.checkpoint import CheckpointFolder

QUICK = {"site": SITE, "d_sae": 64, "k": 4, "batch_size": 256, "pool_rows": 2048, "init_rows": 2048, "log_every": 10}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return plant(tmp_path_factory.mktemp("store") / "planted")


def test_recovers_planted_features(world: World, tmp_path: Path) -> None:
    reports: list[TrainProgress] = []
    config = TrainConfig(**QUICK, rows=400_000, lr=3e-3, holdout=0.1)
    result = train(world.store, config, tmp_path / "run", progress=reports.append)
    decoder = result.sae.W_dec.detach()
    best = (torch.from_numpy(world.features).float() @ decoder.T).max(dim=1).values
    assert float(best.mean()) > 0.95
    torch.testing.assert_close(decoder.norm(dim=1), torch.ones(64))

    metrics = result.metrics
    assert metrics["held_out"] is True
    assert metrics["samples"] == 4
    assert metrics["explained_variance"] > 0.85
    assert len(metrics["ev_per_step"]) == 4
    assert metrics["l0"] <= 4
    # What training reported and what is measured offline agree.
    assert reports[-1].explained_variance == pytest.approx(metrics["explained_variance"], abs=0.05)
    assert reports[-1].batch == reports[-1].n_batches == result.n_batches
    assert 0 <= reports[-1].data_wait <= 1
    assert reports[-1].rows_per_second > 0
    lines = (tmp_path / "run/train_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["batch"] for line in lines] == [r.batch for r in reports]
    assert not (tmp_path / "run/checkpoint").exists()
    assert json.loads((tmp_path / "run/metrics.json").read_text()) == metrics
    assert result.sae.metadata["store"]["fingerprint"]["name"] == "planted"


def test_finished_run_is_returned_and_other_config_refused(world: World, tmp_path: Path) -> None:
    config = TrainConfig(**QUICK, rows=5000)
    first = train(world.store, config, tmp_path)
    before = file_hash(tmp_path / "sae_weights.safetensors")
    again = train(world.store, config, tmp_path)
    assert first.resumed_from == 0
    assert again.resumed_from == again.n_batches
    assert again.metrics == first.metrics
    other = TrainConfig(**QUICK, rows=5000, seed=1)
    with pytest.raises(RunMismatch, match="config.seed is 0 there and 1 here"):
        train(world.store, other, tmp_path)
    replaced = train(world.store, other, tmp_path, resume=False)
    assert replaced.resumed_from == 0
    assert file_hash(tmp_path / "sae_weights.safetensors") != before


def test_exception_in_progress_stops_and_next_call_continues(world: World, tmp_path: Path) -> None:
    config = TrainConfig(**QUICK, rows=30_000, checkpoint_rows=2560)
    straight = train(world.store, config, tmp_path / "a")

    def stop(report: TrainProgress) -> None:
        if report.batch == 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(world.store, config, tmp_path / "b", progress=stop)
    # A torn log line and a half-written checkpoint are what a kill leaves behind.
    with (tmp_path / "b/train_log.jsonl").open("a") as log:
        log.write('{"batch": 6')
    (tmp_path / "b/checkpoint/.000000060.1.tmp").mkdir()
    resumed = train(world.store, config, tmp_path / "b")
    assert resumed.resumed_from == 40
    assert _weights(tmp_path / "a") == _weights(tmp_path / "b")
    assert resumed.metrics == straight.metrics
    logs = [(tmp_path / x / "train_log.jsonl").read_text().splitlines() for x in "ab"]
    timeless = [[{**json.loads(x), "rows_per_second": 0, "data_wait": 0} for x in log] for log in logs]
    assert timeless[0] == timeless[1]


def test_damaged_checkpoint_costs_one_interval(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = TrainConfig(**QUICK, rows=20_000, checkpoint_rows=2560)
    train(world.store, config, tmp_path / "a")

    def stop(report: TrainProgress) -> None:
        if report.batch == 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(world.store, config, tmp_path / "b", progress=stop)
    newest = sorted((tmp_path / "b/checkpoint").iterdir())[-1] / "state.safetensors"
    raw = bytearray(newest.read_bytes())
    raw[-5] ^= 1
    newest.write_bytes(raw)
    with caplog.at_level(logging.WARNING):
        assert train(world.store, config, tmp_path / "b").resumed_from == 30
    assert "trying the one before" in caplog.text
    assert _weights(tmp_path / "a") == _weights(tmp_path / "b")


def test_checkpoint_of_another_version_is_refused(world: World, tmp_path: Path) -> None:
    """A tensor that it lacks would keep its first value, and the run would end somewhere else without a word."""
    config = TrainConfig(**QUICK, rows=5000, checkpoint_rows=2560)

    def stop(report: TrainProgress) -> None:
        if report.batch == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(world.store, config, tmp_path, progress=stop)
    kept = CheckpointFolder(tmp_path / "checkpoint", json.loads((tmp_path / "run.json").read_text())["run_hash"])
    found = kept.load()
    assert found is not None and found.batch == 10
    del found.tensors["rows_silent"]
    kept.save(found)
    with pytest.raises(CorruptFile, match=r"other tensors.*rows_silent.*resume=False"):
        train(world.store, config, tmp_path)


def _weights(folder: Path) -> str:
    return file_hash(folder / "sae_weights.safetensors")


@pytest.mark.slow
def test_killed_at_any_point_and_rerun_gives_the_same_bits(world: World, tmp_path: Path) -> None:
    def start(name: str, which: tuple[str, ...] = ARCHITECTURES) -> Child:
        """A process that trains these architectures into tmp_path/name/ARCHITECTURE."""
        config = TrainConfig(**QUICK, rows=30_000, lr=2e-3, checkpoint_rows=2560, dead_after=2560)
        runs = [(replace(config, architecture=a), tmp_path / name / a) for a in which]
        return Child(tmp_path / "told", train_alone, world.store.path, runs)

    assert start("whole").finish(300)[0] == 0
    for number, architecture in enumerate(ARCHITECTURES):
        folder = tmp_path / "killed" / architecture
        for kill in range(2 if architecture == "topk" else 1):
            before = _newest(folder / "checkpoint")
            child = start("killed", (architecture,))
            deadline = time.monotonic() + 300
            enough = before + 20 + 10 * (number % 3 + kill)
            while _newest(folder / "checkpoint") < enough and time.monotonic() < deadline:
                assert child.running(), "the run ended before it could be killed"
                time.sleep(0.002)
            child.kill()
            assert child.finish(30)[0] == -signal.SIGKILL
            assert not (folder / "sae_weights.safetensors").exists()
            assert _newest(folder / "checkpoint") > before
    assert start("killed").finish(300)[0] == 0
    for architecture in ARCHITECTURES:
        assert _weights(tmp_path / "killed" / architecture) == _weights(tmp_path / "whole" / architecture), architecture


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka", "jumprelu", "relu"])
def test_every_architecture_learns_the_planted_features(world: World, tmp_path: Path, architecture: str) -> None:
    config = TrainConfig(**QUICK, rows=120_000, lr=3e-3, holdout=0.1, architecture=architecture)
    result = train(world.store, config, tmp_path)
    decoder = result.sae.W_dec.detach()
    best = (torch.from_numpy(world.features).float() @ decoder.T).max(dim=1).values
    # Nothing is nested in these data, and a matryoshka pays for nesting what it learns.
    assert float(best.mean()) > (0.75 if architecture == "matryoshka" else 0.9)
    assert result.metrics["explained_variance"] > 0.75
    if architecture != "relu":
        assert result.metrics["l0"] == pytest.approx(4, rel=0.2)


def _newest(checkpoints: Path) -> int:
    """Step of the newest checkpoint, 0 if there is none; folders come and go while this looks."""
    names = [p.name for p in checkpoints.iterdir() if p.name.isdigit()] if checkpoints.exists() else []
    return max(map(int, names), default=0)


def test_selection_of_steps_branches_and_held_out_samples(world: World, tmp_path: Path) -> None:
    config = TrainConfig(**QUICK, epochs=2, steps=(1, 3), branches=("cond",), holdout=0.25)
    kept, held = split_samples(world.store, config)
    assert (len(kept), len(held)) == (36, 12)
    assert not set(kept) & set(held)
    result = train(world.store, config, tmp_path)
    assert result.n_batches == round(2 * 36 * 2 * 16 / 256)
    assert result.metrics["steps"] == [1, 3]
    assert result.metrics["branches"] == ["cond"]
    assert result.metrics["samples"] == 12


def test_initial_values_come_from_the_whole_store(world: World, tmp_path: Path) -> None:
    config = TrainConfig(**QUICK, rows=256, lr=1e-12, holdout=0.0)
    sae = train(world.store, config, tmp_path).sae
    assert isinstance(sae, TopKSAE)
    x = world.store.site(SITE).read()
    true_mean = x.reshape(-1, x.shape[-1]).mean(0)
    np.testing.assert_allclose(sae.b_dec.detach().numpy(), true_mean, atol=0.15)
    torch.testing.assert_close(sae.W_enc.T, sae.W_dec, rtol=1e-5, atol=1e-6)
    assert train(world.store, config, tmp_path).metrics["held_out"] is False


def test_divergence_is_an_error(world: World, tmp_path: Path) -> None:
    config = TrainConfig(**QUICK, rows=50_000, lr=1e30, clip_norm=None)
    with pytest.raises(NonFiniteLoss, match="Lower lr"):
        train(world.store, config, tmp_path)
    assert not (tmp_path / "sae_weights.safetensors").exists()


def test_what_cannot_be_trained_on_is_refused_first(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"steps are \(1, 1\): one is named twice"):
        TrainConfig(**QUICK, rows=1000, steps=(1, 1))
    ragged = replace(world.store.spec, n_samples=2, samples_per_shard=2, ragged=True)
    x, present = world.store.site(SITE).read([0, 1]), np.ones((2, 4, 2), bool)
    present[1, 3] = False  # a trajectory that ended early
    table = world.store.samples.slice(0, 2)
    with StoreWriter.create(tmp_path / "store", ragged, table, fingerprint={}, plan={}) as writer:
        writer.write_shard(0, {SITE: x}, {SITE: present})
    store = ActivationStore.open(tmp_path / "store")
    config = TrainConfig(**QUICK, rows=1000, holdout=0.0)
    with pytest.raises(EmptySelection, match="lacks maps of unet.mid_block:out"):
        train(store, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train(store, replace(config, steps=(0, 1, 2)), tmp_path / "run")


def test_partial_store_trains_on_what_is_there(world: World, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(world.store.path, tmp_path / "store")
    sorted((tmp_path / "store/commits").iterdir())[-1].unlink()
    store = ActivationStore.open(tmp_path / "store")
    assert not store.complete
    result = train(store, TrainConfig(**QUICK, rows=2000, holdout=0.0), tmp_path / "run")
    assert result.metrics["samples"] == store.n_committed_samples < 48
    assert load_sae(tmp_path / "run").metadata["store"]["samples_hash"] == result.sae.metadata["store"]["samples_hash"]
