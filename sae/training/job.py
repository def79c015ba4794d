"""What every process of a training does, whatever started it.

A job is JSON: which store, which dictionaries, where they go. `run` is the same call alone, under torchrun, under
Slurm and under Ray; only how the processes come to exist differs:

    torchrun     TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nproc-per-node 2 -m apps.cli train ...
    one machine  denoscope train --processes 2 ...
    Ray          `run_under_ray(job, 2)`

Torchrun starts the processes again when one dies (`--max-restarts`), Ray does as `max_failures` says, and the job
continues at its last checkpoint. The variable is there because some torchrun versions meet at keys of the failed
attempt otherwise, and wait for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from activations_store import ActivationStore
from sae.errors import ConfigError
from sae.train_config import TrainConfig
from sae.training.log import TrainProgress
from sae.training.processes import TIMEOUT, joined, local_device
from sae.training.train import TrainResult, train_many

JobProgress = Callable[[int, TrainProgress], None]


@dataclass(frozen=True)
class TrainJob:
    """Dictionaries to train from one store; see `train_many`."""

    store: str  # folder of the store, the same for every process
    configs: tuple[TrainConfig, ...]
    folders: tuple[str, ...]  # one for each configuration
    device: str = "cpu"  # "cuda" gives every process of a machine its own GPU
    divide: str = "rows"  # what the processes divide: "rows" of each batch, or "features" of each dictionary

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "store": self.store,
            "configs": [config.to_json() for config in self.configs],
            "folders": list(self.folders),
            "device": self.device,
            "divide": self.divide,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Rebuilds a job."""
        unknown = sorted(set(value) - {"store", "configs", "folders", "device", "divide"})
        if unknown:
            raise ConfigError(f"TrainJob has no field {', '.join(unknown)}.")
        configs = tuple(TrainConfig.from_json(config) for config in value["configs"])
        return cls(**{**value, "configs": configs, "folders": tuple(value["folders"])})

    def run(self, progress: JobProgress | None = None, *, timeout: float = TIMEOUT) -> list[TrainResult]:
        """Meets the other processes, if there are any, and trains.

        Args:
            progress: called in the first process.
            timeout: seconds without an answer after which another process counts as lost.
        """
        with joined(device=self.device, timeout=timeout) as peers:
            return train_many(
                ActivationStore.open(self.store),
                self.configs,
                self.folders,
                progress=progress,
                device=local_device(self.device),
                peers=peers,
                divide=self.divide,
            )


def run_under_ray(
    job: TrainJob, processes: int, *, gpus: bool = False, max_failures: int = 3, storage: str | None = None
) -> None:
    """Runs a job on a Ray cluster, or on this machine if Ray is not connected to one; needs the extra `cluster`.

    Args:
        job: its store and folders lie where all nodes see them.
        processes: Ray workers.
        gpus: a GPU for each; the job's device is then "cuda".
        max_failures: lost workers or nodes after which Ray gives up.
        storage: folder for Ray's own records; its default is in the home folder.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig  # pyright: ignore[reportMissingImports]
    from ray.train.torch import TorchConfig, TorchTrainer  # pyright: ignore[reportMissingImports]

    TorchTrainer(
        _ray_worker,
        train_loop_config=job.to_json(),
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpus else "gloo", timeout_s=int(TIMEOUT)),
        scaling_config=ScalingConfig(num_workers=processes, use_gpu=gpus),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=max_failures), storage_path=storage),
    ).fit()


def _ray_worker(job: dict[str, Any]) -> None:
    TrainJob.from_json(job).run()
