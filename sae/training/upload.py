"""Batches on the device that trains: the next one travels while this one is used.

A step ends with a question to the device (its loss), so a loop that fetched its rows between two steps would leave a
GPU idle meanwhile. Instead a thread takes the next batch from the loader, in pinned memory, and copies it on a stream
of its own; the step waits for the end of that copy on the device. On a CPU nothing travels, and nothing is done ahead.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Self

import torch
from torch import Tensor

from activations_store.loading.torch_rows import TensorBatch


class Rows(NamedTuple):
    """Attributes: x: (B, d) rows. log_snr: (B,) float64, their noise levels. Both on the device."""

    x: Tensor
    log_snr: Tensor


class Uploads:
    """The batches of a loader, on a device; a context that ends the thread.

    Args:
        batches: an endless loader; with CUDA, another thread calls it.
        levels: (n_steps,) log-SNR of the steps, on the CPU.
        device: where the rows go.
    """

    def __init__(self, batches: Iterator[TensorBatch], levels: Tensor, device: torch.device) -> None:
        self._batches, self._levels, self._device = batches, levels, device
        self._ahead = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._ahead else None
        self._thread = ThreadPoolExecutor(1, "upload")
        self._next: Future[tuple[Rows, torch.cuda.Event]] | None = None

    def take(self) -> Rows:
        """The next batch."""
        if not self._ahead:
            batch = next(self._batches)
            return Rows(batch.x.to(self._device), self._levels[batch.step].to(self._device))
        rows, copied = (self._next or self._thread.submit(self._send)).result()
        self._next = self._thread.submit(self._send)
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(copied)
        for tensor in rows:  # their memory belongs to the other stream; keep it until this one is done with it
            tensor.record_stream(stream)
        return rows

    def _send(self) -> tuple[Rows, torch.cuda.Event]:
        batch = next(self._batches)
        with torch.cuda.stream(self._stream):
            parts = (batch.x, self._levels[batch.step])
            pinned = (part if part.is_pinned() else part.pin_memory() for part in parts)
            rows = Rows(*(part.to(self._device, non_blocking=True) for part in pinned))
            copied = torch.cuda.Event()
            copied.record()
        return rows, copied

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
