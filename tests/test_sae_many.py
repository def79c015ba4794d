"""Several dictionaries from one read of the store: each to the same bits as alone, also after an interruption."""

from pathlib import Path
from typing import Any

import pytest
from sae_world import SITE, World, plant

from activations_store import RowLoader
from sae import TrainConfig, TrainProgress, train, train_many
from sae._files import file_hash
from sae.errors import ConfigError, RunMismatch

QUICK = {"site": SITE, "d_sae": 64, "k": 4, "batch_size": 256, "pool_rows": 2048, "init_rows": 2048, "log_every": 10}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return plant(tmp_path_factory.mktemp("store") / "planted")


def config(**options: Any) -> TrainConfig:
    return TrainConfig(**{**QUICK, "rows": 256 * 30, "lr": 2e-3, "dead_after": 512, "checkpoint_rows": 2560, **options})


# One group of the same rows, of unlike length, and one of other steps.
GRID = [
    config(),
    config(k=8, d_sae=32, lr=1e-3),
    config(architecture="batchtopk", rows=256 * 45),
    config(architecture="jumprelu", seed=1, row_seed=0),
    config(steps=(0, 1)),
]


def weights(folder: Path) -> str:
    return file_hash(folder / "sae_weights.safetensors")


@pytest.fixture(scope="module")
def alone(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Weights of every run of the grid, trained by itself."""
    folder = tmp_path_factory.mktemp("alone")
    return [weights(train(world.store, one, folder / str(i)).folder) for i, one in enumerate(GRID)]


def test_each_ends_with_the_same_bits_as_alone(
    world: World, alone: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    original = RowLoader.__init__

    def counting(self: RowLoader, *arguments: Any, **options: Any) -> None:
        opened.append(1)
        original(self, *arguments, **options)

    monkeypatch.setattr(RowLoader, "__init__", counting)
    seen: dict[int, list[TrainProgress]] = {}
    results = train_many(
        world.store,
        GRID,
        [tmp_path / str(i) for i in range(len(GRID))],
        progress=lambda run, report: seen.setdefault(run, []).append(report),
    )
    assert [weights(result.folder) for result in results] == alone
    assert [result.n_batches for result in results] == [30, 30, 45, 30, 30]
    assert {run: reports[-1].batch for run, reports in seen.items()} == {0: 30, 1: 30, 2: 45, 3: 30, 4: 30}
    assert len(opened) == 4  # two groups; each reads once for first values and once for training
    again = train_many(world.store, GRID[:2], [tmp_path / "0", tmp_path / "1"])
    assert [result.resumed_from for result in again] == [30, 30]
    assert again[1].metrics == results[1].metrics


def test_an_interrupted_group_goes_on_where_each_run_was(world: World, alone: list[str], tmp_path: Path) -> None:
    folders = [tmp_path / str(i) for i in range(len(GRID))]

    def stop(run: int, report: TrainProgress) -> None:
        # The first two have written their checkpoint of step 20 when the third stops all: they are ahead of it.
        if (run, report.batch) == (2, 20):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_many(world.store, GRID, folders, progress=stop)
    assert [_newest(folder) for folder in folders[:4]] == [20, 20, 10, 10]
    # A run that is alone in between, and a grid in another order, change nothing.
    assert weights(train(world.store, GRID[1], folders[1]).folder) == alone[1]
    order = [4, 2, 0, 1, 3]
    results = train_many(world.store, [GRID[i] for i in order], [folders[i] for i in order])
    assert [weights(result.folder) for result in results] == [alone[i] for i in order]
    assert [result.resumed_from for result in results] == [0, 10, 20, 30, 10]


def _newest(folder: Path) -> int:
    return max(int(path.name) for path in (folder / "checkpoint").iterdir() if path.name.isdigit())


def test_seeds_with_the_rows_of_the_first_differ_in_weights_only(world: World, tmp_path: Path) -> None:
    same, other = (config(seed=1, row_seed=s, rows=256, lr=1e-12) for s in (0, None))
    first = train(world.store, config(rows=256, lr=1e-12), tmp_path / "first")
    found = [train(world.store, one, tmp_path / str(i)) for i, one in enumerate((same, other))]
    assert found[0].metrics["samples"] == first.metrics["samples"]
    assert config(seed=1).order_seed == 1 and same.order_seed == 0
    b_dec, W_dec = ([r.sae.state_dict()[name] for r in (first, *found)] for name in ("b_dec", "W_dec"))
    assert (b_dec[0] - b_dec[1]).abs().max() < 1e-6  # the mean of the same rows
    assert (b_dec[0] - b_dec[2]).abs().max() > 1e-4
    assert (W_dec[0] - W_dec[1]).abs().max() > 0.1


def test_what_is_wrong_is_said_before_anything_is_trained(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 runs need as many different folders; found 1"):
        train_many(world.store, GRID[:2], [tmp_path / "a", tmp_path / "a"])
    with pytest.raises(ConfigError, match="divide is 'layers'"):
        train_many(world.store, GRID[:1], [tmp_path / "a"], divide="layers")
    train(world.store, config(rows=256), tmp_path / "b")
    with pytest.raises(RunMismatch, match="config.rows"):
        train_many(world.store, GRID[:2], [tmp_path / "a", tmp_path / "b"])
    assert not (tmp_path / "a/train_log.jsonl").exists()
