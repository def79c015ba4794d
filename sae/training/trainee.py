"""One dictionary in training: its weights, its optimiser, its counters, its log and its checkpoints.

A step: loss and gradients of a batch, update, count. Everything that decides the rest of a run is in `_tensors`, so a
checkpoint of them continues it bit for bit. A trainee never draws rows itself: several can take the same batches.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sae.errors import CorruptFile, NonFiniteLoss
from sae.interchange.folder import save_sae
from sae.numerics.kernels import faster, settled, using
from sae.train_config import TrainConfig
from sae.training.checkpoint import Checkpoint
from sae.training.division import Division
from sae.training.log import LOG_NAME, TrainProgress, Window, truncate_log, write_report
from sae.training.optimiser import Adam
from sae.training.run_folder import RunFolder


class Trainee:
    """A dictionary, trained batch by batch.

    Args:
        config: the run.
        folder: where it is written, by the first process alone.
        n_batches: steps of the run.
        division: the dictionary, or this process's part of it, and how processes divide the work.
        progress: called every `config.log_every` steps, in the first process.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        n_batches: int,
        division: Division,
        progress: Callable[[TrainProgress], None] | None = None,
    ) -> None:
        self.config, self.folder, self.n_batches = config, folder, n_batches
        self.division, self.sae = division, division.sae
        self.batch = 0
        self._progress = progress
        self._tensors = self.sae.trained_tensors()
        self._adam = Adam(self._tensors, betas=config.betas, eps=config.eps, clip_norm=config.clip_norm)
        self._rows_silent = torch.zeros(self.sae.config.d_sae, dtype=torch.int64, device=self.sae.W_dec.device)
        self._window = Window()
        self._kernels = settled(config.kernels, self.sae.W_dec.device)
        # Checkpoints fall on reports, so that a resumed run repeats the reports of an unbroken one.
        reports = math.ceil(config.checkpoint_rows / (config.batch_size * config.log_every))
        self._interval = max(1, reports) * config.log_every

    @property
    def done(self) -> bool:
        """True after the last step."""
        return self.batch >= self.n_batches

    @property
    def dead(self) -> Tensor:
        """(d_sae,) bool: features that were silent for `dead_after` rows."""
        return self._rows_silent >= self.sae.config.dead_after

    def start(self) -> None:
        """Takes up the newest checkpoint, if there is one, and makes all processes begin alike."""
        peers = self.division.peers
        found = self.folder.checkpoints.load() if peers.rank == 0 else None
        self.batch = peers.first(lambda: self._checked(found))
        with torch.no_grad():
            for name, tensor in self._state().items():
                if self.batch:
                    self.division.distribute(name, found.tensors[name] if found else None, tensor)
                else:
                    self.division.agree(name, tensor)
        if peers.rank == 0:
            truncate_log(self.folder.path / LOG_NAME, self.batch)
        self._window = Window()

    def take(self, x: Tensor, log_snr: Tensor, wait: float = 0.0) -> None:
        """One step.

        Args:
            x: (B, d) rows of this process, on the dictionary's device.
            log_snr: (B,) their noise levels.
            wait: seconds spent waiting for them.

        Raises:
            NonFiniteLoss: training diverged.
        """
        config = self.config
        dead = self.dead.nonzero().squeeze(1)
        if self._kernels is None:
            self._kernels = self._choose_kernels(x, log_snr, dead)
        with using(self._kernels):
            result, gradients = self.sae.loss(x, dead, log_snr)
        sums = self.division.reduce(result, gradients, dead)
        lr = config.peak_lr(self.division.d_sae) * config.lr_factor(self.batch, self.n_batches)
        if not math.isfinite(sums.loss):
            raise NonFiniteLoss(
                f"The loss became {sums.loss} at step {self.batch} of {self.folder.path} (learning rate {lr:.2e}). The "
                "last good checkpoint is kept. Lower lr, or see whether the store holds rows that are not "
                "finite: its commit records count them."
            )
        norm = self._adam.update(gradients, lr, norm=self.division.norm(gradients))
        self.sae.after_update()
        self._rows_silent += config.batch_size
        self._rows_silent[sums.fired > 0] = 0
        self.batch += 1
        self._window.add(
            wait=wait, rows=config.batch_size, loss=sums.loss, sse=sums.sse, variance=sums.variance, n_on=sums.n_on
        )
        if self.batch % config.log_every == 0 or self.done:
            self._report(lr, float(norm))
        if self.batch % self._interval == 0 or self.done:
            self._save()

    def finish(self, evaluate: Callable[[Any], dict[str, Any]]) -> None:
        """Writes the result, in the first process.

        Args:
            evaluate: the whole dictionary, scale folded in, to its metrics.
        """
        whole = self.division.whole()
        dead = self.division.count(self.dead)

        def write() -> None:
            assert whole is not None
            metrics = evaluate(whole.folded())
            metrics |= {"dead_in_training": dead, "training_rows": self.n_batches * self.config.batch_size}
            save_sae(whole, self.folder.path)
            self.folder.finish(metrics)

        self.division.peers.first(write)

    def _choose_kernels(self, x: Tensor, log_snr: Tensor, dead: Tensor) -> str:
        """The faster way on this batch, or the choice of the run's first start; the first process decides."""
        peers = self.division.peers
        found = peers.first(lambda: self.folder.notes.get("kernels"))
        if found is None:
            measured = faster(lambda: self.sae.loss(x, dead, log_snr), x.device)
            found = peers.first(lambda: self.folder.note("kernels", measured))
        return str(found["chosen"])

    def _checked(self, found: Checkpoint | None) -> int:
        """The step of a checkpoint that holds what this run needs; 0 without one."""
        if found is None:
            return 0
        different = found.tensors.keys() ^ self._state().keys()
        if different:
            raise CorruptFile(
                f"The checkpoint at step {found.batch} of {self.folder.path} holds other tensors than this run has: "
                f"{', '.join(sorted(different)[:4])}. Another version wrote it; start again with resume=False."
            )
        return found.batch

    def _report(self, lr: float, norm: float) -> None:
        dead = self.division.count(self.dead)
        if self.division.peers.rank == 0:
            report = self._window.report(self.batch, self.n_batches, dead, lr, norm)
            write_report(self.folder.path / LOG_NAME, report)
            if self._progress is not None:
                self._progress(report)
        self._window = Window()

    def _save(self) -> None:
        whole = {name: self.division.collect(name, tensor) for name, tensor in self._state().items()}
        if self.division.peers.rank == 0:
            self.folder.checkpoints.save(Checkpoint(self.batch, {n: t for n, t in whole.items() if t is not None}))

    def _state(self) -> dict[str, Tensor]:
        """Everything that decides the rest of the run."""
        state = {f"weights.{name}": tensor for name, tensor in self._tensors.items()}
        state |= {f"adam.{name}": tensor for name, tensor in self._adam.state().items()}
        state |= {f"fixed.{name}": tensor for name, tensor in self.sae.fixed_tensors().items()}
        return state | {"rows_silent": self._rows_silent}
