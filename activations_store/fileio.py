"""Touching the disk: every open, write, sync, rename and lock of the package is here.

Two rules. Reading: only plain files are opened, never through a symbolic link, and a FIFO cannot make an
open wait. Writing: into a temporary name in the same folder, then one rename, so a file under its final name
is always whole.

A temporary name is `.<final name>.<host>-<pid>-<count>.tmp`; the first part says which machine may judge it
dead (leftovers.py).
"""

import errno
import hashlib
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

from .errors import CorruptShard, DiskFull, InvalidMetadata, UnsafePath, explain

try:
    import fcntl
except ImportError:  # Windows: no advisory locks, so two writers are kept apart by the scheduler alone
    fcntl = None

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


def read_small(path: Path, limit: int) -> bytes:
    """Contents of a plain file of at most `limit` bytes.

    A larger one raises `InvalidMetadata` before it is read.
    """
    fd = open_plain(path)
    try:
        size = os.fstat(fd).st_size
        if size > limit:
            raise InvalidMetadata(explain(f"{path} is too large", found=f"{size} bytes", expected=f"at most {limit}"))
        with os.fdopen(fd, "rb", closefd=False) as file:
            return file.read(limit)
    finally:
        os.close(fd)


def check_folder(path: Path) -> None:
    """Raise unless `path` is a real folder (not a link to one)."""
    mode = os.lstat(path).st_mode
    if not stat.S_ISDIR(mode):
        raise _unsafe(path, "a symbolic link or not a folder")


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
            raise CorruptShard(
                explain(
                    f"{path} ends too early",
                    found=f"end of file at byte {offset + done}",
                    expected=f"{len(view)} bytes at byte {offset}",
                    next_step="run store.verify()",
                )
            )
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


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut. Not needed against killed processes."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes, *, fsync: bool = False) -> None:
    """Write a small file whole or not at all."""
    with TempFile(path, fsync=fsync) as temp:
        temp.write(data)
        temp.finish()
        temp.publish()


def sha256_of(path: Path) -> tuple[int, str]:
    """(size, SHA-256) of a plain file, read in pieces."""
    fd = open_plain(path)
    with os.fdopen(fd, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


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


class Lock:
    """An advisory lock on a file of the store, released by `close` or when its process ends.

    Locks only keep careful programs apart (two writers, a writer and gc). No reader needs one, and
    correctness of committed
    data never rests on one: that is the commit records' job.
    """

    def __init__(self, path: Path) -> None:
        self._fd: int | None = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)

    def acquire(self, *, exclusive: bool, wait: bool) -> bool:
        """Take the lock, shared or exclusive; False when it is held by another and `wait` is False."""
        if fcntl is None or self._fd is None:
            return True
        mode = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        try:
            fcntl.flock(self._fd, mode if wait else mode | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):  # a file system without locks
                return True
            raise
        return True

    def release(self) -> None:
        """Give the lock up, keeping the file open for the next `acquire`."""
        if fcntl is not None and self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give the lock up and close its file; a second call does nothing."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
