"""Who makes the sparse products: the kernels of a GPU agree with PyTorch, and a run keeps to its choice."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_world import SITE, World, plant

from sae import TrainConfig, train
from sae._files import file_hash, read_json
from sae.errors import ConfigError
from sae.numerics import kernels
from sae.training import trainee

FILE = Path(__file__).with_name("sae_kernels_run.py")
QUICK: dict[str, Any] = {"site": SITE, "d_sae": 48, "k": 4, "batch_size": 256, "pool_rows": 2048, "init_rows": 2048}


@pytest.mark.slow
def test_triton_equals_pytorch() -> None:
    """In a process of its own: in the interpreter, or on the GPU that there is."""
    pytest.importorskip("triton")
    environment = os.environ | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"})
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", str(FILE)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return plant(tmp_path_factory.mktemp("store") / "planted")


def test_a_cpu_uses_pytorch_and_says_nothing(world: World, tmp_path: Path) -> None:
    train(world.store, TrainConfig(**QUICK, rows=1000), tmp_path)
    assert "notes" not in read_json(tmp_path / "run.json")
    with pytest.raises(ConfigError, match="kernels is 'triton', on device cpu: they run on CUDA"):
        train(world.store, TrainConfig(**QUICK, rows=1000, kernels="triton"), tmp_path / "b")
    with pytest.raises(ConfigError, match="kernels is 'cuda'; expected one of auto, torch, triton"):
        TrainConfig(**QUICK, rows=1000, kernels="cuda")


def test_a_run_measures_once_and_keeps_its_choice(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, with PyTorch under both names: the measurement is real, and only the first start makes it."""
    monkeypatch.setattr(trainee, "settled", lambda wanted, device: None)
    monkeypatch.setattr("sae.numerics.sparse.by_triton", lambda *tensors: False)
    used, measured = [], []

    def using(name: str) -> Any:
        used.append(name)
        return kernels.using(name)

    def faster(work: Any, device: torch.device) -> dict[str, Any]:
        measured.append(kernels.faster(work, device))
        return measured[-1] | {"chosen": "triton"}

    monkeypatch.setattr(trainee, "using", using)
    monkeypatch.setattr(trainee, "faster", faster)
    config = TrainConfig(**QUICK, rows=256 * 8, log_every=2, checkpoint_rows=512, architecture="batchtopk")

    def stop(report: Any) -> None:
        if report.batch == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(world.store, config, tmp_path / "a", progress=stop)
    again = train(world.store, config, tmp_path / "a")
    assert again.resumed_from == 4
    assert set(used) == {"triton"}
    assert len(measured) == 1
    notes = read_json(tmp_path / "a/run.json")["notes"]
    assert notes["kernels"] == measured[0] | {"chosen": "triton"}
    assert min(notes["kernels"]["torch"], notes["kernels"]["triton"]) > 0

    monkeypatch.undo()  # and the measurement changed nothing: the same bits as without it
    train(world.store, config, tmp_path / "b")
    weights = "sae_weights.safetensors"
    assert file_hash(tmp_path / "a" / weights) == file_hash(tmp_path / "b" / weights)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_run_on_a_gpu_is_that_of_a_cpu(world: World, tmp_path: Path) -> None:
    config = TrainConfig(**QUICK, rows=256 * 40, architecture="batchtopk", lr=2e-3)
    on_cpu = train(world.store, config, tmp_path / "cpu")
    for kernels_name in ("auto", "torch", "triton"):
        folder = tmp_path / kernels_name
        on_gpu = train(world.store, replace(config, kernels=kernels_name), folder, device="cuda")
        for name in ("explained_variance", "l0"):
            assert on_gpu.metrics[name] == pytest.approx(on_cpu.metrics[name], rel=0.02), (kernels_name, name)
        assert ("notes" in read_json(folder / "run.json")) == (kernels_name == "auto")
