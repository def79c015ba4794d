"""Changing what is on the disk: every write, sync and rename of the package is here.

Files are written under a temporary name in the same folder, then renamed, so a file under its final name is always
whole. A temporary name is `.<final name>.<host>-<pid>-<count>.tmp`; the first part says which machine may judge it
dead (leftovers.py). Objects of an object store (objects.py) need none of this: a put is whole or not at all.
"""

import errno
import hashlib
import itertools
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from activations_store.errors import DiskFull, explain
from activations_store.storage.objects import ObjectPath, Place

HOST_TAG = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_counter = itertools.count()


class TempFile:
    """A file being written under a temporary name, hashed on the way; `publish` gives it its final name.

    Used as a context manager: what was not published is removed on leaving.
    """

    def __init__(self, final: Path, *, fsync: bool) -> None:
        self.final = final
        self.path = final.with_name(f".{final.name}.{HOST_TAG}-{os.getpid()}-{next(_counter)}.tmp")
        self.n_bytes = 0
        self._fsync = fsync
        self._sha256 = hashlib.sha256()
        self._file = open_for_writing(self.path)

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`."""
        with _disk_full_explained(self.final, self.n_bytes + len(data)):
            self._file.write(data)
        self._sha256.update(data)
        self.n_bytes += len(data)

    def finish(self) -> str:
        """Flush (and sync when asked for) and close; the SHA-256 of the whole file."""
        with _disk_full_explained(self.final, self.n_bytes):
            self._file.flush()
            if self._fsync:
                os.fsync(self._file.fileno())
            self._file.close()
        return self._sha256.hexdigest()

    def publish(self) -> None:
        """Rename to the final name, replacing what is there."""
        rename(self.path, self.final)
        if self._fsync:
            sync_folder(self.final.parent)

    def __enter__(self) -> "TempFile":
        return self

    def __exit__(self, *exc: object) -> None:
        # Closing flushes what is buffered: on a full disk that fails again, and the first error is the one
        # to show.
        with suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)


class NewObject:
    """An object being made: `TempFile` for an object store. It waits in memory; `publish` puts it, whole."""

    def __init__(self, final: ObjectPath) -> None:
        self.final = final
        self._data = bytearray()

    @property
    def n_bytes(self) -> int:
        """Bytes written so far."""
        return len(self._data)

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`."""
        self._data += data

    def finish(self) -> str:
        """The SHA-256 of the whole object."""
        return hashlib.sha256(self._data).hexdigest()

    def publish(self, *, replace: bool = False) -> None:
        """Put it. One that is there is not overwritten unless `replace`; see `ObjectPath.put`."""
        self.final.put(memoryview(self._data), replace=replace)

    def __enter__(self) -> "NewObject":
        return self

    def __exit__(self, *exc: object) -> None:
        self._data = bytearray()


def new_file(final: Place, *, fsync: bool) -> TempFile | NewObject:
    """A file or object to be written and published."""
    return NewObject(final) if isinstance(final, ObjectPath) else TempFile(final, fsync=fsync)


class TempFolder:
    """A folder being filled under a temporary name; `publish` gives it its final name.

    Used as a context manager: what was not published is removed on leaving. The final name must be free.
    """

    def __init__(self, final: Path, *, fsync: bool) -> None:
        self.final = final
        self.path = final.with_name(f".{final.name}.{HOST_TAG}-{os.getpid()}-{next(_counter)}.tmp")
        self._fsync = fsync
        self.path.mkdir()

    def publish(self) -> None:
        """Rename to the final name."""
        rename(self.path, self.final)
        if self._fsync:
            sync_folder(self.final.parent)

    def __enter__(self) -> "TempFolder":
        return self

    def __exit__(self, *exc: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def open_for_writing(path: Path) -> BinaryIO:
    """A new file for writing; an existing one is an error."""
    return path.open("xb", buffering=1 << 16)  # larger pieces, as chunks are, go to the system uncopied


def rename(source: Path, target: Path) -> None:
    """Atomic rename within a folder."""
    source.replace(target)


def sync_folder(folder: Place) -> None:
    """Make renames in `folder` survive a power cut. Not needed against killed processes, nor for objects."""
    if isinstance(folder, ObjectPath):
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Place, data: bytes, *, fsync: bool = False, replace: bool = False) -> None:
    """Write a small file whole or not at all. An object is overwritten only with `replace`, a file always."""
    if isinstance(path, ObjectPath):
        path.put(data, replace=replace)
        return
    with TempFile(path, fsync=fsync) as temp:
        temp.write(data)
        temp.finish()
        temp.publish()


@contextmanager
def _disk_full_explained(path: Path, n_bytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(
                error.errno,
                explain(
                    f"No room to write {path}",
                    found=f"{os.strerror(error.errno)} after about {n_bytes} bytes",
                    next_step="free space and resume; committed shards are intact",
                ),
            ) from error
        raise
