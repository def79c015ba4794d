"""Training by two real processes over gloo: the same result as one, exact resume, and no waiting for the lost."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_children import Child, train_together
from sae_world import SITE, World, plant

from activations_store import ActivationStore
from activations_store.loading.torch_rows import TensorBatch
from sae import TrainConfig, load_sae, train
from sae._files import file_hash
from sae.config import ARCHITECTURES
from sae.errors import ConfigError, ProcessLost, RunMismatch
from sae.training.job import TrainJob
from sae.training.processes import joined
from sae.training.rows import open_rows

QUICK = {"site": SITE, "d_sae": 64, "k": 4, "batch_size": 256, "pool_rows": 2048, "init_rows": 2048, "log_every": 10}
VARIANTS: dict[str, dict[str, Any]] = {
    **{architecture: {"architecture": architecture} for architecture in ARCHITECTURES},
    "crosscoder": {"across_steps": True},
    "per_step": {"time": "per_step", "groups": ((0, 1), (2, 3)), "architecture": "batchtopk"},
    "film": {"time": "film", "input": "whitened"},
    "residual": {"time": "residual"},
}
LONG = {"architecture": "batchtopk", "rows": 256 * 80}  # long enough to be killed on the way
LIMIT = 180  # seconds after which a test gives up; on a free machine a run takes a few


def start(folder: Path, jobs: list[TrainJob | tuple[TrainJob, ...]], world: int = 2) -> list[Child]:
    """The processes of some jobs, one after another in the same processes; `folder` is where they meet."""
    now = time.monotonic_ns()
    environment = {
        "GLOO_SOCKET_IFNAME": "lo",
        "WORLD_SIZE": str(world),
        "DENOSCOPE_MEET": str(folder / f"meet-{now}"),
    }
    return [
        Child(folder / f"told-{now}-{rank}", train_together, jobs, **environment, RANK=str(rank))
        for rank in range(world)
    ]


def finish(children: list[Child]) -> list[tuple[int, str, str]]:
    """(exit status, output, errors) of each, within the limit."""
    return [child.finish(LIMIT) for child in children]


def config(**options: Any) -> TrainConfig:
    """A short run with dead features, so that AuxK has a part in it."""
    return TrainConfig(**{**QUICK, "rows": 256 * 40, "lr": 2e-3, "dead_after": 512, "checkpoint_rows": 2560, **options})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return plant(tmp_path_factory.mktemp("store") / "planted")


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, str, str]]]:
    """Everything that two processes train in these tests, in one start of the two."""
    folder = tmp_path_factory.mktemp("two")
    path = str(world.store.path)
    rows = TrainJob(
        path, tuple(config(**options) for options in VARIANTS.values()), _folders(folder, "rows", list(VARIANTS))
    )
    both = ("topk", "batchtopk")
    features = TrainJob(
        path, tuple(config(architecture=a) for a in both), _folders(folder, "features", both), divide="features"
    )
    long = [
        TrainJob(path, (config(**LONG),), (str(folder / divide / "long"),), divide=divide)
        for divide in ("rows", "features")
    ]
    other = TrainJob(path, (config(seed=1),), _folders(folder, "rows", ["topk"]))
    uneven = TrainJob(path, (config(batch_size=255),), _folders(folder, "uneven", ["topk"]))
    unlike = (other, TrainJob(path, (config(seed=2),), _folders(folder, "unlike", ["topk"])))
    return folder, finish(start(folder, [rows, features, other, uneven, unlike, *long]))


def _folders(folder: Path, name: str, architectures: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(folder / name / architecture) for architecture in architectures)


class Union:
    """The batches of one process: those of two, one after the other."""

    def __init__(self, store: ActivationStore, config: TrainConfig, position: int, *_: int) -> None:
        self._parts = [open_rows(store, config, position, rank, 2).tensors() for rank in range(2)]

    def tensors(self) -> "Union":
        return self

    def __enter__(self) -> "Union":
        return self

    def __exit__(self, *_: object) -> None:
        for part in self._parts:
            part.__exit__(None, None, None)

    def __next__(self) -> TensorBatch:
        return TensorBatch(*(torch.cat(parts) for parts in zip(*(next(part) for part in self._parts), strict=True)))


def assert_same_run(one: Path, two: Path) -> None:
    """The same training up to the order of sums: reports, and weights to what 40 steps make of rounding."""
    logs = [[json.loads(line) for line in (f / "train_log.jsonl").read_text().splitlines()] for f in (one, two)]
    assert len(logs[0]) == len(logs[1]) == 4
    for a, b in zip(*logs, strict=True):
        for name in ("loss", "explained_variance", "l0", "grad_norm"):
            assert b[name] == pytest.approx(a[name], rel=2e-3), (name, a, b)
        assert abs(a["dead"] - b["dead"]) <= 1
    found = [load_sae(folder) for folder in (one, two)]
    for name, tensor in found[0].state_dict().items():
        difference = (found[1].state_dict()[name] - tensor).abs().mean() / tensor.abs().mean()
        assert float(difference) < 2e-3, (name, float(difference))


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_equal_one_on_the_union(
    world: World,
    trained: tuple[Path, list[tuple[int, str, str]]],
    variant: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, children = trained
    assert [status for status, _, _ in children] == [0, 0], children
    monkeypatch.setattr(sys.modules["sae.training.train"], "open_rows", Union)  # the package names its function like it
    train(world.store, config(**VARIANTS[variant]), tmp_path)
    assert_same_run(tmp_path, folder / "rows" / variant)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_divided_features_equal_one_process(
    world: World, trained: tuple[Path, list[tuple[int, str, str]]], architecture: str, tmp_path: Path
) -> None:
    folder, _ = trained
    train(world.store, config(architecture=architecture), tmp_path)
    assert_same_run(tmp_path, folder / "features" / architecture)


@pytest.mark.slow
def test_errors_of_the_first_process_reach_the_others(
    world: World, trained: tuple[Path, list[tuple[int, str, str]]]
) -> None:
    folder, children = trained
    first, second = (output.splitlines() for _, output, _ in children)
    assert first[0].startswith("RunMismatch") and "config.seed is 0 there and 1 here" in first[0]
    assert second[0].startswith("ProcessFailed The first of 2 processes stopped") and "config.seed" in second[0]
    # What every process can know by itself, every one says by itself.
    assert first[1] == second[1]
    assert first[1].startswith("ConfigError batch_size is 255, over 2 processes")
    assert first[2] == second[2]
    assert first[2].startswith("ConfigError The 2 processes were given different runs or see different data")
    with pytest.raises(RunMismatch, match="processes.number is 2 there and 1 here"):
        train(world.store, config(), folder / "rows/topk")


@pytest.mark.slow
@pytest.mark.parametrize("divide", ["rows", "features"])
def test_a_lost_process_stops_the_other_and_the_rerun_gives_the_same_bits(
    world: World, trained: tuple[Path, list[tuple[int, str, str]]], divide: str, tmp_path: Path
) -> None:
    folder, _ = trained
    job = TrainJob(str(world.store.path), (config(**LONG),), (str(tmp_path / "run"),), divide=divide)
    children = start(tmp_path, [job])
    checkpoints, deadline = tmp_path / "run/checkpoint", time.monotonic() + LIMIT
    while not list(checkpoints.glob("0*")):
        assert all(child.running() for child in children), finish(children)
        assert time.monotonic() < deadline
        time.sleep(0.001)
    children[1].kill()
    began = time.monotonic()
    (status, output, _), _ = finish(children)
    assert status == 3, output
    assert "Process 0 of 2 lost another one" in output and "continues at the last checkpoint" in output
    assert time.monotonic() - began < 60
    assert not (tmp_path / "run/sae_weights.safetensors").exists()

    assert [status for status, *_ in finish(start(tmp_path, [job]))] == [0, 0]
    expected = file_hash(folder / divide / "long/sae_weights.safetensors")
    assert file_hash(tmp_path / "run/sae_weights.safetensors") == expected


def test_who_does_not_come_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("DENOSCOPE_MEET", str(tmp_path / "meet"))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    began = time.monotonic()
    with pytest.raises(ProcessLost, match="Process 0 of 2 did not meet the others in 1 s"), joined(timeout=1):
        pytest.fail("alone")
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("one", "2"), ("0", "many")])
def test_impossible_ranks_are_refused(rank: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(ConfigError, match="RANK|WORLD_SIZE"), joined():
        pytest.fail("joined")


def test_a_job_goes_to_json_and_back() -> None:
    job = TrainJob("store", (config(), config(architecture="relu", steps=(1, 2))), ("a", "b"), divide="features")
    assert TrainJob.from_json(json.loads(json.dumps(job.to_json()))) == job
    with pytest.raises(ConfigError, match="no field threads"):
        TrainJob.from_json({**job.to_json(), "threads": 2})
