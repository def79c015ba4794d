"""Touching the disk: every open, write, sync and rename of the package is here. What is written for paths is
also true of objects in an object store (objects.py), where it has a meaning there.

Two rules. Reading: only plain files are opened, never through a symbolic link, and a FIFO cannot make an
open wait. Writing: into a temporary name in the same folder, then one rename, so a file under its final name
is always whole.

A temporary name is `.<final name>.<host>-<pid>-<count>.tmp`; the first part says which machine may judge it
dead (leftovers.py).
"""

import errno
import hashlib
import io
import itertools
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .errors import CorruptShard, DiskFull, InvalidMetadata, NotInObjectStore, UnsafePath, explain
from .objects import ObjectPath, Place

HOST_TAG = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_counter = itertools.count()

# O_NONBLOCK: opening a FIFO returns at once. O_NOFOLLOW: a symbolic link in the last place is refused by the
# kernel.
_READ_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
)


def open_plain(path: Path) -> int:
    """File descriptor of a plain file, for reading.

    Raises:
        FileNotFoundError: there is no such file.
        UnsafePath: the path is a link, FIFO, device or folder.
    """
    try:
        fd = os.open(path, _READ_FLAGS)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO):  # a link; or a socket
            raise _unsafe(path, "a symbolic link or socket") from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _unsafe(path, "not a plain file")
    return fd


def read_small(path: Place, limit: int) -> bytes:
    """Contents of a plain file of at most `limit` bytes.

    A larger one raises `InvalidMetadata` before it is read.
    """
    if isinstance(path, ObjectPath):
        return path.read(limit)
    fd = open_plain(path)
    try:
        size = os.fstat(fd).st_size
        if size > limit:
            raise InvalidMetadata(explain(f"{path} is too large", found=f"{size} bytes", expected=f"at most {limit}"))
        with os.fdopen(fd, "rb", closefd=False) as file:
            return file.read(limit)
    finally:
        os.close(fd)


def check_folder(path: Place) -> None:
    """Raise unless `path` is a real folder (not a link to one). An object store has no others."""
    if isinstance(path, ObjectPath):
        return
    mode = os.lstat(path).st_mode
    if not stat.S_ISDIR(mode):
        raise _unsafe(path, "a symbolic link or not a folder")


def entries(folder: Place) -> list[tuple[str, int | None]]:
    """(name, size) of what lies in a folder, by name; the size is None for all that is no plain file.

    Raises:
        FileNotFoundError: there is no such folder; in an object store that is one with nothing in it.
    """
    if isinstance(folder, ObjectPath):
        return folder.entries()
    found: list[tuple[str, int | None]] = []
    with os.scandir(folder) as listed:
        for entry in listed:
            with suppress(FileNotFoundError):  # a temporary file that was renamed since
                status = entry.stat(follow_symlinks=False)
                found.append((entry.name, status.st_size if stat.S_ISREG(status.st_mode) else None))
    return sorted(found)


def names_in(folder: Place) -> list[str]:
    """Names of what lies in a folder, in order; see `entries`."""
    if isinstance(folder, ObjectPath):
        return [name for name, _ in folder.entries()]
    return sorted(path.name for path in folder.iterdir())


def exists(path: Place) -> bool:
    """Whether there is anything of this name, a link included."""
    return path.exists() if isinstance(path, ObjectPath) else os.path.lexists(path)


def file_size(path: Place) -> int:
    """Bytes of a file, not of what it may link to."""
    return path.size() if isinstance(path, ObjectPath) else os.lstat(path).st_size


def pieces(path: Place) -> Iterator[bytes]:
    """A plain file in pieces of some MB."""
    if isinstance(path, ObjectPath):
        yield from path.pieces()
        return
    with os.fdopen(open_plain(path), "rb") as file:
        while piece := file.read(8 * 2**20):
            yield piece


def open_binary(path: Place) -> BinaryIO:
    """A plain file for libraries that read from one; an object is fetched whole."""
    if isinstance(path, ObjectPath):
        return io.BytesIO(path.read(path.size()))
    return os.fdopen(open_plain(path), "rb")


class PlainFile:
    """A file that is open for reads at any place, from any number of threads."""

    def __init__(self, path: Place) -> None:
        self._path = path
        self._fd = -1
        if isinstance(path, ObjectPath):
            self.size = path.size()
        else:
            self._fd = open_plain(path)
            self.size = os.fstat(self._fd).st_size

    def read_into(self, out: np.ndarray, offset: int) -> None:
        """Fill `out` (C-contiguous uint8) from `offset`; a short file raises `CorruptShard`."""
        if not isinstance(self._path, ObjectPath):
            read_into(self._fd, out, offset, self._path)
        elif (n := self._path.read_into(out, offset)) < len(out):
            raise _short(self._path, offset + n, len(out), offset)

    def close(self) -> None:
        """Close it; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()


def _short(path: Place, end: int, wanted: int, offset: int) -> CorruptShard:
    return CorruptShard(
        explain(
            f"{path} ends too early",
            found=f"end of file at byte {end}",
            expected=f"{wanted} bytes at byte {offset}",
            next_step="run store.verify()",
        )
    )


def _unsafe(path: Path, found: str) -> UnsafePath:
    return UnsafePath(
        explain(
            f"{path} was refused",
            found=found,
            expected="a plain file or folder inside the store",
            next_step="copy the real data into the store",
        )
    )


def read_into(fd: int, out: np.ndarray, offset: int, path: Path) -> None:
    """Fill `out` (C-contiguous uint8) from `offset` of the file; a short file raises `CorruptShard`."""
    done = 0
    view = out.data
    while done < len(view):
        if hasattr(os, "preadv"):
            n = os.preadv(fd, [view[done:]], offset + done)
        else:
            piece = os.pread(fd, len(view) - done, offset + done)
            n = len(piece)
            view[done : done + n] = piece
        if n == 0:
            raise _short(path, offset + done, len(view), offset)
        done += n


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


def sha256_of(path: Place) -> tuple[int, str]:
    """(size, SHA-256) of a plain file, read in pieces."""
    if isinstance(path, ObjectPath):
        digest, size = hashlib.sha256(), 0
        for piece in path.pieces():
            digest.update(piece)
            size += len(piece)
        return size, digest.hexdigest()
    fd = open_plain(path)
    with os.fdopen(fd, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


def refuse_remote(path: Place, what: str) -> Path:
    """`path` if it lies on this machine; raises `NotInObjectStore` otherwise."""
    if isinstance(path, ObjectPath):
        raise NotInObjectStore(
            explain(f"{what} works on local stores only", found=str(path), next_step="denoscope store copy it first")
        )
    return path


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
