"""Training dictionaries from the rows of a store: one, or many from one read.

The order of rows is a pure function of (seed, position), every number that decides the next step is in the
checkpoint, and the arithmetic of a step is reproducible on one CPU type with one number of threads: a run that is
killed at any point and started again ends with the same bits. A dictionary trained beside others gets the same rows
and does the same arithmetic as alone, so it ends with the same bits too.

Folder of a run: `cfg.json`, `sae_weights.safetensors` (readable by sae-lens), `metrics.json`, `train_log.jsonl`,
`run.json`, and `checkpoint/` while it is unfinished.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from activations_store import ActivationStore
from activations_store.storage.jsonio import content_hash
from sae.architectures.make import Dictionary, make_sae
from sae.config import SAEConfig
from sae.data import Selection, store_identity
from sae.errors import ConfigError
from sae.evaluation.metrics import evaluate
from sae.interchange.folder import load_sae
from sae.numerics.peers import ALONE, Peers
from sae.train_config import TrainConfig
from sae.training.division import Division
from sae.training.feature_shards import FeatureDivision
from sae.training.log import TrainProgress
from sae.training.prepare import InitialRows, levels_of, prepare, sae_config, selection_of
from sae.training.rows import open_rows, same_rows, split_samples, spread_rows
from sae.training.run_folder import RunFolder
from sae.training.trainee import Trainee
from sae.training.upload import Uploads

DIVISIONS = {division.BY: division for division in (Division, FeatureDivision)}


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    folder: Path
    device: torch.device
    metrics: dict[str, Any]  # as in metrics.json
    n_batches: int
    rows: int
    resumed_from: int  # the step this call started at: 0 = from the beginning, n_batches = nothing was left to do

    @cached_property
    def sae(self) -> Dictionary:
        """The dictionary with the scale folded in, read from `folder` when it is first asked for."""
        return load_sae(self.folder, device=self.device)


def train(
    store: ActivationStore,
    config: TrainConfig,
    out_dir: str | Path,
    *,
    progress: Callable[[TrainProgress], None] | None = None,
    resume: bool = True,
    device: str | torch.device = "cpu",
    peers: Peers = ALONE,
    divide: str = "rows",
) -> TrainResult:
    """Trains a dictionary, or continues or returns the run that `out_dir` already holds.

    Args:
        store: where the rows come from; uncommitted samples are left out.
        config: the run.
        out_dir: folder of the run. A killed run of the same configuration, data and number of processes continues at
            its last checkpoint; a finished one is returned as it is.
        progress: called every `config.log_every` steps. An exception it raises stops the run; calling again
            continues it.
        resume: False starts again and replaces what `out_dir` holds.
        device: where to train.
        peers: the processes that train it together, each calling this with the same arguments; from
            `processes.joined`. Store and `out_dir` are at the same path for all; the first one writes.
        divide: what the processes divide: "rows" of each batch, or "features" of a dictionary too large for one.

    Raises:
        RunMismatch: `out_dir` holds a run of another configuration, other data or another number of processes.
        EmptySelection: the store has none of the rows asked for. NonFiniteLoss: training diverged. ProcessLost:
        another process ended. ConfigError: the work cannot be divided so.
    """

    def only(_: int, report: TrainProgress) -> None:
        if progress is not None:
            progress(report)

    return train_many(
        store, [config], [out_dir], progress=only, resume=resume, device=device, peers=peers, divide=divide
    )[0]


def train_many(
    store: ActivationStore,
    configs: Sequence[TrainConfig],
    out_dirs: Sequence[str | Path],
    *,
    progress: Callable[[int, TrainProgress], None] | None = None,
    resume: bool = True,
    device: str | torch.device = "cpu",
    peers: Peers = ALONE,
    divide: str = "rows",
) -> list[TrainResult]:
    """Trains several dictionaries; those of the same rows in the same order share one read of the store.

    Rows are the same where site, steps, branches, held-out share, order seed, batch size and pool are. Of a group,
    all dictionaries are in memory at once (four times their weights each); groups follow one another. Each ends
    with the same bits as by `train`, and a stopped group goes on where each of its runs was.

    Args:
        configs: the runs.
        out_dirs: a folder for each.
        progress: called with the number of the run and its report.
        store, resume, device, peers, divide: as in `train`.

    Raises:
        As `train`, before any training where it can be known. ConfigError: two runs in one folder.
    """
    folders = [Path(folder) for folder in out_dirs]
    if len(folders) != len(configs) or len({folder.resolve() for folder in folders}) != len(folders):
        raise ConfigError(f"{len(configs)} runs need as many different folders; found {len(set(folders))}.")
    device = torch.device(device)
    identity = store_identity(store)
    plans = [
        _plan(store, config, folder, identity, peers, divide) for config, folder in zip(configs, folders, strict=True)
    ]
    _check_alike(plans, peers)
    finished = [peers.first(lambda plan=plan: plan.folder.claim(resume=resume)) for plan in plans]
    started = [plan.n_batches for plan in plans]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, config in enumerate(configs):
        if not finished[number]:
            groups.setdefault(same_rows(config), []).append(number)
    for members in groups.values():
        initial = {n: spread_rows(store, configs[members[0]], n) for n in {configs[m].init_rows for m in members}}
        trainees = {
            number: _trainee(
                store, plans[number], initial[configs[number].init_rows], device, peers, _told(progress, number)
            )
            for number in members
        }
        for number, trainee in trainees.items():
            started[number] = trainee.batch
        _read_once(store, list(trainees.values()))
        for number, trainee in trainees.items():
            trainee.finish(lambda sae, config=configs[number]: _measure(sae, store, config))
    return [
        TrainResult(
            folder=plan.folder.path,
            device=device,
            metrics=peers.first(plan.folder.metrics),
            n_batches=plan.n_batches,
            rows=plan.n_batches * plan.config.batch_size,
            resumed_from=start,
        )
        for plan, start in zip(plans, started, strict=True)
    ]


@dataclass(frozen=True)
class _Plan:
    """A run, all of whose arguments were checked."""

    config: TrainConfig
    folder: RunFolder
    n_batches: int
    selection: Selection  # what it trains on
    dictionary: SAEConfig
    division: type[Division]


def _plan(
    store: ActivationStore, config: TrainConfig, folder: Path, identity: dict[str, Any], peers: Peers, divide: str
) -> _Plan:
    samples, _ = split_samples(store, config)
    selection = selection_of(store, config, samples)
    if divide not in DIVISIONS:
        raise ConfigError(f"divide is {divide!r}; processes divide {' or '.join(DIVISIONS)}.")
    division = DIVISIONS[divide]
    division.share_of_rows(config.batch_size, peers)
    run: dict[str, Any] = {"config": config.to_json(), "store": identity}
    if peers.world > 1:
        run["processes"] = {"number": peers.world, "divide": divide}
    n_batches = config.n_batches(selection.n_rows)
    dictionary = sae_config(store, config, selection)
    return _Plan(config, RunFolder(folder, run), n_batches, selection, dictionary, division)


def _check_alike(plans: list[_Plan], peers: Peers) -> None:
    """The same runs on the same data in all processes: with others, their sums would be of nothing."""
    # 56 bits of the hash: a whole number that any backend can send.
    everyone = peers.gather(torch.tensor(int(content_hash([plan.folder.run_hash for plan in plans])[:14], 16)))
    if not bool((everyone == everyone[0]).all()):
        raise ConfigError(
            f"The {peers.world} processes were given different runs or see different data. Start them with the same "
            "arguments, and a store whose committed samples all of them see."
        )


def _trainee(
    store: ActivationStore,
    plan: _Plan,
    initial: InitialRows,
    device: torch.device,
    peers: Peers,
    progress: Callable[[TrainProgress], None] | None,
) -> Trainee:
    """The dictionary of a run, at its newest checkpoint or with initial values."""
    config = plan.config
    metadata = {
        "site": config.site,
        "store": plan.folder.run["store"],
        "train": config.to_json(),
        "train_hash": config.content_hash,
    }
    sae = make_sae(plan.dictionary, seed=config.seed, metadata=metadata)
    prepare(sae, store, config, plan.selection, initial)
    trainee = Trainee(config, plan.folder, plan.n_batches, plan.division(sae, peers, device), progress)
    trainee.start()
    return trainee


def _read_once(store: ActivationStore, trainees: list[Trainee]) -> None:
    """The loop: every batch goes to the trainees whose next one it is."""
    waiting = [trainee for trainee in trainees if not trainee.done]
    if not waiting:
        return
    first, position = waiting[0], min(trainee.batch for trainee in waiting)
    device = first.sae.W_dec.device
    share = first.division.share_of_rows(first.config.batch_size, first.division.peers)
    with (
        open_rows(store, first.config, position, *share).tensors() as batches,
        Uploads(batches, levels_of(store), device) as uploads,
    ):
        while waiting:
            before = time.perf_counter()
            x, log_snr = uploads.take()
            wait = time.perf_counter() - before
            for trainee in waiting:
                if trainee.batch == position:
                    trainee.take(x, log_snr, wait)
            position += 1
            waiting = [trainee for trainee in waiting if not trainee.done]


def _measure(sae: Dictionary, store: ActivationStore, config: TrainConfig) -> dict[str, Any]:
    """Metrics on held-out samples, or on the training samples where none are held out."""
    train_samples, held_out = split_samples(store, config)
    metrics = evaluate(
        sae,
        store,
        samples=held_out if len(held_out) else train_samples,
        steps=config.steps,
        branches=config.branches,
        max_rows=config.eval_rows,
    )
    return metrics | {"held_out": bool(len(held_out))}


def _told(progress: Callable[[int, TrainProgress], None] | None, number: int) -> Callable[[TrainProgress], None] | None:
    return None if progress is None else lambda report: progress(number, report)
