"""Training a dictionary from the rows of a store.

The order of rows is a pure function of (seed, position), every number that decides the next step is in the
checkpoint, and the
arithmetic of a step is reproducible on one CPU type with one number of threads: a run that is killed at any
point and started again ends with the same bits.

Folder of a run: `cfg.json`, `sae_weights.safetensors` (readable by sae-lens), `metrics.json`,
`train_log.jsonl`, `run.json`, and `checkpoint/` while it is unfinished.
"""

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from activations_store import ActivationStore, RowLoader

from ._files import atomic_path, content_hash, file_hash, read_json, write_json
from .architectures import make_sae
from .autoencoder import SparseAutoencoder
from .checkpoint import Checkpoint, CheckpointFolder
from .config import TrainConfig
from .contract import Architecture
from .data import select, store_identity
from .errors import NonFiniteLoss, RunMismatch
from .folder import WEIGHTS_NAME, load_sae, save_sae
from .metrics import evaluate
from .optimiser import Adam

_log = logging.getLogger(__name__)
RUN_NAME, METRICS_NAME, LOG_NAME, CHECKPOINT_NAME = (
    "run.json",
    "metrics.json",
    "train_log.jsonl",
    "checkpoint",
)
_INIT_STREAM = 1  # separates the rows drawn for initial values from the training order of the same seed


@dataclass(frozen=True)
class TrainProgress:
    """One progress report; averages are over the steps since the report before."""

    batch: int  # steps done
    n_batches: int  # steps of the whole run
    rows: int  # rows done
    loss: float  # what is minimised: FVU of a batch plus the terms of the architecture
    explained_variance: float  # 1 - pooled squared error / pooled variance about each batch's mean
    l0: float  # features on for a row
    dead: int  # features silent for `dead_after` rows
    lr: float  # learning rate of the last step
    grad_norm: float  # of the last step, before clipping
    rows_per_second: float  # everything included
    data_wait: float  # share of the time spent waiting for rows


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    sae: SparseAutoencoder  # with the scale folded in: what `load_sae(folder)` returns
    folder: Path
    metrics: dict[str, Any]  # as in metrics.json
    n_batches: int
    rows: int
    resumed_from: int  # the step this call started at: 0 = from the beginning, n_batches = nothing was left to do


def train(
    store: ActivationStore,
    config: TrainConfig,
    out_dir: str | Path,
    *,
    progress: Callable[[TrainProgress], None] | None = None,
    resume: bool = True,
    device: str | torch.device = "cpu",
) -> TrainResult:
    """Trains a dictionary, or continues or returns the run that `out_dir` already holds.

    Args:
        store: where the rows come from; uncommitted samples are left out.
        config: the run.
        out_dir: folder of the run. A killed run of the same configuration and data continues at its last
            checkpoint; a finished one is returned as it is.
        progress: called every `config.log_every` steps. An exception it raises stops the run; calling again
        continues it.
        resume: False starts again and replaces what `out_dir` holds.
        device: where to train.

    Raises:
        RunMismatch: `out_dir` holds a run of another configuration or other data. EmptySelection: the
        store has none of the rows asked for. NonFiniteLoss: training diverged.
    """
    out_dir = Path(out_dir)
    torch_device = torch.device(device)
    train_samples, held_out = split_samples(store, config)
    loader_options: dict[str, Any] = {
        "steps": config.steps,
        "branches": config.branches,
        "samples": train_samples,
        "pool_rows": config.pool_rows,
    }
    selection = select(store, config.site, samples=train_samples, steps=config.steps, branches=config.branches)
    n_batches = config.n_batches(selection.n_rows)
    run = {"config": config.to_json(), "store": store_identity(store)}
    run_hash = content_hash(run)
    checkpoints = CheckpointFolder(out_dir / CHECKPOINT_NAME, run_hash)
    finished = _claim(out_dir, run, run_hash, checkpoints, resume)
    if finished:
        metrics = read_json(out_dir / METRICS_NAME)
        rows = n_batches * config.batch_size
        return TrainResult(load_sae(out_dir, device=torch_device), out_dir, metrics, n_batches, rows, n_batches)

    metadata = {
        "site": config.site,
        "store": run["store"],
        "train": config.to_json(),
        "train_hash": config.content_hash,
    }
    sae_config = config.sae_config(selection.channels, selection.n_rows)
    sae = make_sae(sae_config, seed=config.seed, metadata=metadata).to(torch_device)
    state = _State(sae, config)
    checkpoint = checkpoints.load()
    if checkpoint is None:
        sae.initialise(_spread_rows(store, config, loader_options))
    else:
        state.load(checkpoint)
    start = state.batch
    _run(store, config, state, n_batches, loader_options, checkpoints, out_dir, progress)

    result = sae.folded()
    evaluated = held_out if len(held_out) else train_samples
    metrics = evaluate(
        result,
        store,
        samples=evaluated,
        steps=config.steps,
        branches=config.branches,
        max_rows=config.eval_rows,
    )
    metrics["held_out"] = bool(len(held_out))
    metrics["dead_in_training"] = int(state.dead_mask().sum())
    metrics["training_rows"] = n_batches * config.batch_size
    save_sae(sae, out_dir)
    write_json(out_dir / METRICS_NAME, metrics)
    write_json(out_dir / RUN_NAME, {**run, "run_hash": run_hash, "weights_sha256": file_hash(out_dir / WEIGHTS_NAME)})
    checkpoints.clear()
    return TrainResult(
        load_sae(out_dir, device=torch_device),
        out_dir,
        metrics,
        n_batches,
        n_batches * config.batch_size,
        start,
    )


def split_samples(store: ActivationStore, config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """(training, held-out) sample numbers, both ascending. Whole samples are held out: rows of one image are
    correlated.
    """
    present = store.committed_samples()
    n_held = int(len(present) * config.holdout)
    order = np.random.default_rng(config.seed).permutation(len(present))
    return np.sort(present[order[n_held:]]), np.sort(present[order[:n_held]])


def _claim(out_dir: Path, run: dict[str, Any], run_hash: str, checkpoints: CheckpointFolder, resume: bool) -> bool:
    """Makes `out_dir` this run's folder; True if the run is already finished there."""
    path = out_dir / RUN_NAME
    if resume and path.exists():
        found = read_json(path)
        if found.get("run_hash") != run_hash:
            raise RunMismatch(
                f"{out_dir} holds another run: {_difference(found, run)}. Choose another folder, or pass "
                "resume=False to "
                "replace it."
            )
        weights = out_dir / WEIGHTS_NAME
        if "weights_sha256" in found and weights.exists():
            if found["weights_sha256"] == file_hash(weights):
                return True
            _log.warning("%s is not the file that the finished run wrote; training again", weights)
        return False
    if not resume:
        checkpoints.clear()
    out_dir.mkdir(parents=True, exist_ok=True)
    write_json(path, {**run, "run_hash": run_hash})
    return False


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The first few fields in which two runs differ, with both values."""
    parts = []
    for section in ("config", "store"):
        have, want = found.get(section, {}), wanted[section]
        for key in sorted(have.keys() | want.keys()):
            if have.get(key) != want.get(key):
                parts.append(f"{section}.{key} is {have.get(key)!r} there and {want.get(key)!r} here")
    return "; ".join(parts[:4]) or "its hash differs"


def _spread_rows(store: ActivationStore, config: TrainConfig, loader_options: dict[str, Any]) -> torch.Tensor:
    """(n, d) rows for initial values: the loader's shuffle spreads them over samples, steps, branches and
    cells.
    """
    seed = int(np.random.SeedSequence([config.seed, _INIT_STREAM]).generate_state(1)[0])
    with RowLoader(store, config.site, config.init_rows, seed=seed, **loader_options) as loader:
        return torch.from_numpy(next(loader).x)


class _State:
    """Everything that decides the rest of a run."""

    def __init__(self, sae: Architecture, config: TrainConfig) -> None:
        self.sae = sae
        self.tensors = sae.trained_tensors()
        self.adam = Adam(self.tensors, betas=config.betas, eps=config.eps, clip_norm=config.clip_norm)
        self.rows_silent = torch.zeros(sae.config.d_sae, dtype=torch.int64, device=sae.W_dec.device)
        self.batch = 0

    def dead_mask(self) -> torch.Tensor:
        """(d_sae,) bool: features that were silent for `dead_after` rows."""
        return self.rows_silent >= self.sae.config.dead_after

    def count_fired(self, fired: torch.Tensor, n_rows: int) -> None:
        self.rows_silent += n_rows
        self.rows_silent[fired > 0] = 0

    def save(self) -> Checkpoint:
        tensors = {f"weights.{name}": tensor for name, tensor in self.tensors.items()}
        tensors |= {f"adam.{name}": tensor for name, tensor in self.adam.state().items()}
        tensors |= {f"fixed.{name}": tensor for name, tensor in self.sae.fixed_tensors().items()}
        tensors["rows_silent"] = self.rows_silent
        return Checkpoint(self.batch, {name: tensor.detach().cpu() for name, tensor in tensors.items()})

    def load(self, checkpoint: Checkpoint) -> None:
        stored = checkpoint.tensors
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(stored[f"weights.{name}"])
            for name, tensor in self.sae.fixed_tensors().items():
                tensor.copy_(stored[f"fixed.{name}"])
        adam = {name.removeprefix("adam."): t for name, t in stored.items() if name.startswith("adam.")}
        self.adam.load_state(adam)
        self.rows_silent.copy_(stored["rows_silent"])
        self.batch = checkpoint.batch


class _Window:
    """Running averages between two progress reports."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.wait = self.loss = self.sse = self.variance = self.fired = 0.0
        self.batches = self.rows = 0

    def add(self, wait: float, rows: int, loss: float, sse: float, variance: float, fired: int) -> None:
        self.wait += wait
        self.loss += loss
        self.sse += sse
        self.variance += variance
        self.fired += fired
        self.batches += 1
        self.rows += rows


def _run(
    store: ActivationStore,
    config: TrainConfig,
    state: _State,
    n_batches: int,
    loader_options: dict[str, Any],
    checkpoints: CheckpointFolder,
    out_dir: Path,
    progress: Callable[[TrainProgress], None] | None,
) -> None:
    """The loop: draw rows, loss and gradients, update, count, report, checkpoint."""
    # Checkpoints fall on reports, so that a resumed run repeats the reports of an unbroken one.
    interval = max(1, math.ceil(config.checkpoint_rows / (config.batch_size * config.log_every))) * config.log_every
    _truncate_log(out_dir / LOG_NAME, state.batch)
    loader = RowLoader(store, config.site, config.batch_size, seed=config.seed, position=state.batch, **loader_options)
    with loader:
        _steps(loader, config, state, n_batches, interval, checkpoints, out_dir, progress)


def _steps(
    loader: RowLoader,
    config: TrainConfig,
    state: _State,
    n_batches: int,
    interval: int,
    checkpoints: CheckpointFolder,
    out_dir: Path,
    progress: Callable[[TrainProgress], None] | None,
) -> None:
    peak = config.peak_lr(state.sae.config.d_sae)
    window = _Window()
    while state.batch < n_batches:
        before = time.perf_counter()
        x = torch.from_numpy(next(loader).x).to(state.rows_silent.device)
        wait = time.perf_counter() - before

        dead = state.dead_mask().nonzero().squeeze(1)
        result, gradients = state.sae.loss(x, dead)
        lr = peak * config.lr_factor(state.batch, n_batches)
        loss = float(result.loss)
        if not math.isfinite(loss):
            raise NonFiniteLoss(
                f"The loss became {loss} at step {state.batch} of {out_dir} (learning rate {lr:.2e}). The "
                "last good checkpoint "
                "is kept. Lower lr, or run `denoscope verify` on the store to find non-finite rows."
            )
        norm = state.adam.update(gradients, lr)
        state.sae.after_update()
        state.count_fired(result.fired, x.shape[0])
        state.batch += 1
        window.add(wait, x.shape[0], loss, float(result.sse), float(result.variance), int(result.fired.sum()))

        if state.batch % config.log_every == 0 or state.batch == n_batches:
            _report(state, window, n_batches, config.batch_size, lr, float(norm), out_dir, progress)
            window = _Window()
        if state.batch % interval == 0 or state.batch == n_batches:
            checkpoints.save(state.save())


def _report(
    state: _State,
    window: _Window,
    n_batches: int,
    batch_size: int,
    lr: float,
    grad_norm: float,
    out_dir: Path,
    progress: Callable[[TrainProgress], None] | None,
) -> None:
    seconds = max(time.perf_counter() - window.started, 1e-9)
    report = TrainProgress(
        batch=state.batch,
        n_batches=n_batches,
        rows=state.batch * batch_size,
        loss=window.loss / window.batches,
        explained_variance=1 - window.sse / window.variance,
        l0=window.fired / window.rows,
        dead=int(state.dead_mask().sum()),
        lr=lr,
        grad_norm=grad_norm,
        rows_per_second=window.rows / seconds,
        data_wait=window.wait / seconds,
    )
    with (out_dir / LOG_NAME).open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(asdict(report)) + "\n")
    _log.info(
        "step %d of %d: explained variance %.4f, dead %d",
        report.batch,
        n_batches,
        report.explained_variance,
        report.dead,
    )
    if progress is not None:
        progress(report)


def _truncate_log(path: Path, batch: int) -> None:
    """Drops the lines written after the checkpoint that a run continues from, and a torn last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["batch"] <= batch:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            _log.warning("dropped an unreadable line of %s", path)
    with atomic_path(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
