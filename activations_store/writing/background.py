"""Writing shards in a background thread, with bounded memory.

Generation and writing overlap; when the disk is the slower one, `submit` waits, so at most `max_pending` + 1
shards are held (one being written). The first error of the thread is raised by the next `submit`, `flush` or
on leaving the context; shards submitted after the failed one are dropped, uncommitted, and
`StoreWriter.pending` still lists them.
"""

import queue
import threading
from collections.abc import Mapping
from typing import Self

import numpy as np

from activations_store.errors import StoreError, WriterClosed, explain
from activations_store.format.records import CommitRecord
from activations_store.writing.writer import StoreWriter


class AsyncShardWriter:
    """Context manager around a `StoreWriter`.

    Args:
        writer: writes the shards; not closed here.
        max_pending: shards that may wait in the queue.

    On leaving normally, everything submitted is committed or an error is raised. On leaving by an exception,
    what was submitted is still written (it is complete), and that exception goes on; an error of the thread
    is added to it as a note.
    """

    def __init__(self, writer: StoreWriter, max_pending: int = 2) -> None:
        if max_pending < 1:
            raise ValueError(explain("max_pending is too small", found=max_pending, expected="1 or more"))
        self._writer = writer
        self._queue: queue.Queue[tuple[int, Mapping[str, np.ndarray], Mapping[str, np.ndarray] | None] | None] = (
            queue.Queue(max_pending)
        )
        self._error: BaseException | None = None
        self._raised = False
        self._records: list[CommitRecord] = []
        self._thread: threading.Thread | None = None

    @property
    def records(self) -> list[CommitRecord]:
        """Records of the shards committed so far, in the order of submission."""
        return list(self._records)

    def submit(
        self, shard: int, arrays: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Queue a shard (see `StoreWriter.write_shard`); waits while the queue is full.

        The arrays must not be changed afterwards.
        """
        if self._thread is None:
            raise WriterClosed(explain("The background writer is not running", next_step="use it in a with block"))
        self._raise_error()
        self._queue.put((shard, arrays, present))

    def flush(self) -> None:
        """Wait until everything submitted is committed."""
        self._queue.join()
        self._raise_error()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._work, name="shard-writer", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        if error is None:
            self._raise_error()
        elif self._error is not None and not self._raised:
            error.add_note(f"The background writer had failed too: {self._error}")

    def _raise_error(self) -> None:
        if self._error is None:
            return
        if not self._raised:
            self._raised = True
            raise self._error
        raise StoreError(f"The background writer has stopped after an error: {self._error}") from self._error

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                if self._error is None:
                    self._records.append(self._writer.write_shard(*item))
            except BaseException as error:  # handed to the thread that submits, which raises it
                self._error = error
            finally:
                item = None  # the arrays are free before the next wait
                self._queue.task_done()
        self._queue.task_done()
