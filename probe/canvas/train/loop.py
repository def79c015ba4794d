"""One training loop for the three networks: data parallel over processes, resumable, with an averaged model.

Each of W processes runs on one thread with B / W samples; gradients are averaged once a step. On a machine shared with
other work this is faster than W threads in one process, which wait for each other at every operation.

A task yields the loss of a batch. Step s draws its randomness from (seed, s, rank) alone, so a run that was killed and
started again continues with the very samples it would have seen. The learning rate warms up, stays, and in the last
part of the run falls linearly to zero; because the plateau comes first, a finished run is prolonged by asking for more
steps. ``ema`` is the exponential moving average of the weights, the model that is used (Polyak averaging).
"""

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to train."""

    steps: int  #: optimiser steps in all, those before a resume included
    batch_size: int  #: samples a step over all processes
    lr: float  #: learning rate of the plateau
    weight_decay: float = 1e-2  #: AdamW's decoupled decay
    betas: tuple[float, float] = (0.9, 0.99)  #: AdamW's moment decays
    clip: float = 1.0  #: largest norm of the gradient
    warmup: int = 200  #: steps of linear warm-up
    cooldown: float = 0.25  #: share of the steps in which the rate falls to zero
    ema: float = 0.998  #: decay of the averaged weights
    checkpoint_every: int = 500  #: steps between checkpoints
    seed: int = 0  #: of initial weights and samples

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size) < 1 or not 0 < self.cooldown <= 1:
            raise ValueError(f"LoopConfig: steps and batch_size must be >= 1 and 0 < cooldown <= 1, got {self}")


class Task(Protocol):
    """What is trained. Picklable: every process builds its own copy."""

    def build(self, seed: int) -> nn.Module:
        """The network at the start of training, the same in every process."""
        ...

    def prepare(self, device: torch.device) -> None:
        """Load the data; called once in each process."""
        ...

    def loss(self, model: nn.Module, batch_size: int, rng: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch drawn with ``rng``, and numbers for the progress line."""
        ...


def rate(step: int, cfg: LoopConfig) -> float:
    """Learning rate at a step: warm-up, plateau, linear cool-down."""
    left = (cfg.steps - step) / max(1.0, cfg.cooldown * cfg.steps)
    return cfg.lr * min(1.0, (step + 1) / cfg.warmup, max(left, 0.0))


def device_of(rank: int) -> torch.device:
    """The accelerator of a rank, or the CPU."""
    return torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")


def fit(task: Task, cfg: LoopConfig, folder: Path, *, world: int, name: str) -> Path:
    """Train a task, or train it further, and return the file of its averaged weights.

    Args:
        task: what to train.
        cfg: how.
        folder: where ``ema.safetensors``, the checkpoint and ``log.jsonl`` live; a checkpoint there is resumed.
        world: number of processes; ignored on an accelerator, which takes one.
        name: shown in the progress line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    world = 1 if torch.cuda.is_available() else world
    if world == 1:
        _worker(0, 1, task, cfg, folder, name, None)
    else:
        init = folder / "rendezvous"
        init.unlink(missing_ok=True)
        mp.spawn(_worker, (world, task, cfg, folder, name, str(init.resolve())), nprocs=world)
        init.unlink(missing_ok=True)
    return folder / "ema.safetensors"


def _worker(rank: int, world: int, task: Task, cfg: LoopConfig, folder: Path, name: str, init: str | None) -> None:
    if init is not None:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{init}", rank=rank, world_size=world)
    device = device_of(rank)
    torch.manual_seed(cfg.seed)
    model = task.build(cfg.seed).to(device).train()
    if device.type == "cpu":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    params = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        params, lr=cfg.lr, betas=cfg.betas, weight_decay=cfg.weight_decay, fused=True, eps=1e-8
    )
    ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
    start = _restore(folder, model, optimiser, ema)
    task.prepare(device)
    bar = tqdm(total=cfg.steps, initial=start, desc=name, disable=rank > 0, mininterval=5, smoothing=0.02)
    smooth: dict[str, float] = {}
    rng = torch.Generator(device="cpu")
    for step in range(start, cfg.steps):
        rng.manual_seed(hash((cfg.seed, step, rank)) % 2**62)
        for group in optimiser.param_groups:
            group["lr"] = rate(step, cfg)
        loss, logs = task.loss(model, cfg.batch_size // world, rng)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        _average([p.grad for p in params if p.grad is not None], world)
        nn.utils.clip_grad_norm_(params, cfg.clip)
        optimiser.step()
        decay = min(cfg.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for k, v in model.state_dict().items():
                if v.is_floating_point():
                    ema[k].lerp_(v, 1 - decay)
                else:
                    ema[k].copy_(v)
        if rank == 0:
            for k, v in {"loss": loss.item(), **logs}.items():
                smooth[k] = v if k not in smooth else 0.98 * smooth[k] + 0.02 * v
            bar.update()
            if step % 20 == 0:
                bar.set_postfix({k: f"{v:.4f}" for k, v in smooth.items()}, refresh=False)
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"{name}: the loss is {loss.item()} at step {step}; lower the rate")
            if (step + 1) % cfg.checkpoint_every == 0 or step + 1 == cfg.steps:
                _save(folder, model, optimiser, ema, step + 1)
                with (folder / "log.jsonl").open("a") as log:
                    log.write(json.dumps({"step": step + 1, "time": round(time.time()), **smooth}) + "\n")
    bar.close()
    if init is not None:
        dist.barrier()
        dist.destroy_process_group()


def _average(grads: list[Tensor], world: int) -> None:
    """Mean of the gradients over the processes, in one message."""
    if world == 1:
        return
    flat = torch.cat([g.reshape(-1) for g in grads])
    dist.all_reduce(flat)
    flat /= world
    offset = 0
    for g in grads:
        g.copy_(flat[offset : offset + g.numel()].view_as(g))
        offset += g.numel()


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file so that a reader sees the old one or the new one."""
    partial = path.with_suffix(".partial")
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial, metadata=metadata)
    os.replace(partial, path)


def _save(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, ema: dict[str, Tensor], step: int) -> None:
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    state |= {f"ema.{k}": v for k, v in ema.items()}
    for i, moments in optimiser.state_dict()["state"].items():
        state |= {f"adam.{i}.{k}": torch.as_tensor(v) for k, v in moments.items()}
    _write(folder / "checkpoint.safetensors", state | {"step": torch.tensor(step)})
    _write(folder / "ema.safetensors", ema)


def _restore(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, ema: dict[str, Tensor]) -> int:
    """Load the checkpoint of a folder, if there is one; the number of steps already taken."""
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0
    state = load_file(path)
    model.load_state_dict({k[6:]: v for k, v in state.items() if k.startswith("model.")})
    for k in ema:
        ema[k].copy_(state[f"ema.{k}"])
    moments: dict[int, dict[str, Tensor]] = {}
    for k, v in state.items():
        if k.startswith("adam."):
            _, i, field = k.split(".")
            moments.setdefault(int(i), {})[field] = v
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    return int(state["step"])
