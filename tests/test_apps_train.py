"""``denoscope train``: grids, names of folders, the progress line, and processes on this machine and under torchrun."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sae_world import plant

from apps.cli import main
from apps.dictionaries.launch import launch
from apps.dictionaries.train_bar import note, training_bar
from sae import TrainConfig, TrainProgress
from sae._files import file_hash
from sae.errors import SAEError
from sae.training.job import TrainJob

SITE = "unet.mid_block:out"
SMALL = ["--rows", "2048", "--batch-size", "256"]
REPORT = TrainProgress(
    batch=50,
    n_batches=200,
    rows=50_000,
    loss=0.5,
    explained_variance=0.7654,
    l0=15.96,
    dead=3,
    lr=1e-3,
    grad_norm=0.1,
    rows_per_second=1500.0,
    data_wait=0.0123,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    plant(folder / "store")
    return folder


def weights(folder: Path) -> str:
    return file_hash(folder / "sae_weights.safetensors")


def test_every_combination_gets_a_folder_named_by_what_differs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["--k", "2", "4", "--d-sae", "32", "--seed", "0", "3", "--steps", "0-1", "0,2-3"]
    assert main(["train", str(run), *grid, *SMALL, "--out", str(tmp_path / "grid")]) == 0
    found = sorted(folder.name for folder in (tmp_path / "grid").iterdir())
    names = [f"k{k}-seed{seed}-steps{steps}" for k in (2, 4) for seed in (0, 3) for steps in ("0+2-3", "0-1")]
    assert found == names
    told = capsys.readouterr()
    assert told.out.count("explained variance") == 8
    assert "dictionaries need about" in told.out and "next: denoscope features" in told.out
    for name in names:
        config = json.loads((tmp_path / "grid" / name / "run.json").read_text())["config"]
        assert f"k{config['k']}-seed{config['seed']}" in name
        assert config.get("row_seed", config["seed"]) == 0
    # One of them by itself.
    alone = ["--k", "4", "--d-sae", "32", "--steps", "0-1"]
    assert main(["train", str(run), *alone, *SMALL, "--out", str(tmp_path / "alone")]) == 0
    assert weights(tmp_path / "alone") == weights(tmp_path / "grid/k4-seed0-steps0-1")


def test_folders_lie_in_the_run_and_have_the_name_of_the_site(run: Path) -> None:
    size = ["--expansion", "1", "--k", "2"]
    assert main(["train", str(run), "--site", "mid_block", *size, *SMALL]) == 0
    both = ["--architecture", "topk", "relu", "--lr", "0.001", "--sparsity", "0.5"]
    assert main(["train", str(run), *size, *both, *SMALL]) == 0
    assert sorted(path.name for path in (run / "sae").iterdir()) == ["mid_block", "mid_block-relu", "mid_block-topk"]


def test_a_value_given_twice_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(run), "--d-sae", "32", "32"]) == 2
    assert "--d-sae names a value twice" in capsys.readouterr().err


def test_the_note_says_how_good_how_fast_and_how_long() -> None:
    assert note(REPORT) == "explained 0.765, L0 16.0, dead 3, 1,500 rows/s, 1.2% waiting for rows, 1:40 left"


def test_the_bar_adds_up_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with training_bar(2) as progress:
        progress(0, REPORT)
        progress(1, REPORT)
    shown = capsys.readouterr().err
    assert "100/400" in shown
    assert "explained 0.765" in shown


@pytest.mark.slow
def test_processes_of_the_command_and_of_torchrun_train_the_same(run: Path, tmp_path: Path) -> None:
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    arguments = ["train", str(run), "--d-sae", "32", "--k", "4", *SMALL, "--out"]
    command = [sys.executable, "-m", "apps.cli", *arguments, str(tmp_path / "own"), "--processes", "2"]
    own = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert own.returncode == 0, own.stderr
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "apps.cli", *arguments, str(tmp_path / "torchrun")]
    other = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert other.returncode == 0, other.stderr
    for told in (own.stdout, other.stdout):
        assert told.count("explained variance") == 1  # the first process alone tells
    assert weights(tmp_path / "own") == weights(tmp_path / "torchrun")
    assert json.loads((tmp_path / "own/run.json").read_text())["processes"] == {"number": 2, "divide": "rows"}


@pytest.mark.slow
def test_a_failed_process_ends_the_command_with_its_message(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    config = TrainConfig(SITE, d_sae=32, k=4, rows=2048, batch_size=255)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="train: process 0, 1 of 2 failed"):
        launch(TrainJob(str(run / "store"), (config,), (str(tmp_path / "x"),)), 2)
    assert time.monotonic() - began < 60
    told = capfd.readouterr().err
    assert "denoscope: process 1: batch_size is 255, over 2 processes" in told
    assert "Traceback" not in told


def test_processes_under_torchrun_are_refused(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", str(run), "--processes", "2"]) == 2
    assert "Give one of the two" in capsys.readouterr().err


@pytest.mark.filterwarnings("default")  # Ray's own remarks on its own settings
def test_under_ray_the_same_job_gives_the_same_dictionary(run: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    from sae.training.job import run_under_ray

    config = TrainConfig(SITE, d_sae=32, k=4, rows=2048, batch_size=256)
    jobs = [TrainJob(str(run / "store"), (config,), (str(tmp_path / name),)) for name in ("ray", "own")]
    ray.init(num_cpus=2, include_dashboard=False, configure_logging=False)
    try:
        run_under_ray(jobs[0], 2, storage=str(tmp_path / "records"))
    finally:
        ray.shutdown()
    launch(jobs[1], 2)
    assert weights(tmp_path / "ray") == weights(tmp_path / "own")
    with pytest.raises(SAEError):
        TrainJob.from_json({"pickled": 1})
