"""Who computes the sparse products: PyTorch, or on a GPU kernels of our own (`triton_sums.py`, `triton_dots.py`).

PyTorch's way is the reference and the only one on a CPU. Which is faster on a GPU depends on the device, the sizes and
the versions, so nothing is assumed: a run times both on its own first batch (`faster`), keeps the choice in its
record, and makes its steps under it:

    with using("triton"):
        result, gradients = sae.loss(x)

Both add in a fixed order, but not in the same one, so a run that goes on after a stop keeps its first choice.
"""

import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from sae.errors import ConfigError

_ROUNDS = 5
_log = logging.getLogger(__name__)
_chosen: ContextVar[str] = ContextVar("kernels", default="torch")


@contextmanager
def using(name: str) -> Iterator[None]:
    """Inside, in this thread, the sparse products of tensors that require no gradient are made by `name`."""
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def by_triton(*tensors: Tensor) -> bool:
    """Whether a product of these tensors is made by Triton: where that is chosen and no gradient is recorded."""
    return _chosen.get() == "triton" and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))


def available(device: torch.device) -> bool:
    """Whether Triton's kernels run there: on CUDA, or anywhere in its interpreter (TRITON_INTERPRET=1)."""
    runs = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    return runs and find_spec("triton") is not None


def settled(wanted: str, device: torch.device) -> str | None:
    """What a run is to use, where that needs no measurement.

    Raises:
        ConfigError: Triton is asked for where it does not run.
    """
    if wanted == "triton" and not available(device):
        raise ConfigError(
            f"kernels is 'triton', on device {device}: they run on CUDA, with the package triton installed. "
            "Use 'auto' or 'torch'."
        )
    if wanted != "auto":
        return wanted
    return None if device.type == "cuda" and available(device) else "torch"


def faster(work: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Times a piece of work both ways, in turn; it must not change anything.

    Returns:
        "chosen": the faster one, and the median seconds of each: "torch", "triton".
    """
    seconds: dict[str, list[float]] = {"torch": [], "triton": []}
    for number in range(_ROUNDS + 1):
        for name, seen in seconds.items():
            started = time.perf_counter()
            with using(name):
                work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:  # the first time compiles and takes memory
                seen.append(time.perf_counter() - started)
    medians = {name: statistics.median(seen) for name, seen in seconds.items()}
    chosen = min(medians, key=lambda name: medians[name])
    _log.info("kernels: %s (%s)", chosen, ", ".join(f"{n} {1000 * s:.2f} ms" for n, s in medians.items()))
    return {"chosen": chosen, **medians}
