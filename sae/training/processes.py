"""Several processes as one: `Peers` over torch.distributed, gloo for tensors on CPUs and nccl for those on GPUs.

The processes are started by something else: torchrun, Ray Train, a Slurm script, `denoscope train --processes`. All of
these set RANK, WORLD_SIZE and where to meet (MASTER_ADDR and MASTER_PORT, or DENOSCOPE_MEET, a file). `joined` meets
the others there, and with none of it set is one process alone, so the same program runs under all of them.

Nothing waits for ever. A process that ends closes its connections, which fails the exchange the others are in; one
that hangs runs into their time limit. Either way they raise `ProcessLost`, and the next start continues at the last
checkpoint.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sae.errors import ConfigError, ProcessFailed, ProcessLost
from sae.numerics.peers import ALONE, Peers

MEET_FILE = "DENOSCOPE_MEET"
TIMEOUT = 120.0  # seconds that an exchange may take
PATIENCE = 3600.0  # seconds that the first process may work while the others wait for it, as on the last metrics


class ProcessPeers(Peers):
    """The processes of torch.distributed's default group.

    Args:
        patience: seconds that `first` may take.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        with self._watched():
            group = dist.new_group(backend="gloo", timeout=timedelta(seconds=patience))
        assert isinstance(group, dist.ProcessGroup)  # this process is in it
        self._patient = group

    def sum(self, x: Tensor) -> Tensor:
        return self._reduce(x, dist.ReduceOp.SUM)

    def smallest(self, x: Tensor) -> Tensor:
        return self._reduce(x, dist.ReduceOp.MIN)

    def gather(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.world)]
        with self._watched():
            dist.all_gather(parts, x)
        return torch.stack(parts)

    def copy_first(self, x: Tensor) -> None:
        contiguous = x.contiguous()
        with self._watched():
            dist.broadcast(contiguous, 0)
        x.copy_(contiguous)

    def first(self, work: Callable[[], Any]) -> Any:
        value, error = None, None
        if self.rank == 0:
            try:
                value = work()
            except Exception as caught:
                error = caught
        found = self._json_of_first({"value": value, "error": str(error) if error else None})
        if error is not None:
            raise error
        if found["error"] is not None:
            raise ProcessFailed(f"The first of {self.world} processes stopped: {found['error']}")
        return found["value"]

    def collect(self, x: Tensor) -> Tensor | None:
        x = x.detach().cpu().contiguous()
        parts = [torch.empty_like(x) for _ in range(self.world)] if self.rank == 0 else None
        with self._watched():
            dist.gather(x, parts, dst=0, group=self._patient)
        return None if parts is None else torch.cat(parts)

    def scatter(self, whole: Tensor | None, into: Tensor) -> None:
        own = torch.empty_like(into, device="cpu", memory_format=torch.contiguous_format)
        parts = None if whole is None else [part.contiguous() for part in whole.chunk(self.world)]
        with self._watched():
            dist.scatter(own, parts, src=0, group=self._patient)
        into.copy_(own)

    def _reduce(self, x: Tensor, operation: Any) -> Tensor:
        x = x.contiguous()
        with self._watched():
            dist.all_reduce(x, operation)
        return x

    def _json_of_first(self, value: Any) -> Any:
        """JSON values of the first process, as text: nothing is pickled."""
        text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
        size = torch.tensor(text.numel())
        with self._watched():
            dist.broadcast(size, 0, group=self._patient)
            text = text if self.rank == 0 else torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(text, 0, group=self._patient)
        return json.loads(bytes(text.tolist()))

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what torch raises for a closed connection or a time limit
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ProcessLost(
                f"Process {self.rank} of {self.world} lost another one: it ended or did not answer in time "
                f"({lines[0][:200]}). Look for its own message; the same command continues at the last checkpoint."
            ) from error


@contextmanager
def joined(*, device: str | torch.device = "cpu", timeout: float = TIMEOUT) -> Iterator[Peers]:
    """The processes that this one was started with: `ALONE` where nothing started several.

    Args:
        device: where tensors are; "cuda" also brings up nccl.
        timeout: seconds that an exchange may take before the other processes count as lost.

    Raises:
        ProcessLost: the others did not come in time.
        ConfigError: RANK and WORLD_SIZE contradict each other.
    """
    if dist.is_available() and dist.is_initialized():  # Ray Train has met already, and will part
        yield ProcessPeers() if dist.get_world_size() > 1 else ALONE
        return
    rank, world = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if not 0 <= rank < world:
        raise ConfigError(f"RANK is {rank} and WORLD_SIZE is {world}; ranks count from 0 to WORLD_SIZE - 1.")
    if world == 1:
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if torch.device(device).type == "cuda" else "gloo"
    meet = os.environ.get(MEET_FILE)
    try:
        dist.init_process_group(
            backend,
            init_method=f"file://{meet}" if meet else "env://",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=timeout),
        )
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ProcessLost(
            f"Process {rank} of {world} did not meet the others in {timeout:.0f} s ({reason}). "
            "Start all of them at the same time, with the same MASTER_ADDR and MASTER_PORT."
        ) from error
    try:
        yield ProcessPeers()
    finally:
        dist.destroy_process_group()


def local_device(device: str | torch.device) -> torch.device:
    """This process's device: of several GPUs on a machine, the one with its LOCAL_RANK."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", _number("LOCAL_RANK", 0))
    return device


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ConfigError(f"{name} is {text!r}; it must be a whole number, as torchrun sets it.")
    return int(text)
