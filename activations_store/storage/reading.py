"""Looking at the disk, or into an object store (objects.py).

Only plain files are opened, never through a symbolic link, and a FIFO cannot make an open wait.
"""

import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from activations_store.errors import CorruptShard, InvalidMetadata, NotInObjectStore, UnsafePath, explain
from activations_store.storage.objects import ObjectPath, Place

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
