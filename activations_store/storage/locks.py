"""Advisory locks: they only keep careful programs apart (two writers, a writer and gc).

No reader needs one, and correctness of committed data never rests on one: that is the commit records' job. An object
store has none: nobody is kept out there, and nobody can know that he is alone.
"""

import errno
import os

from activations_store.storage.objects import ObjectPath, Place

try:
    import fcntl
except ImportError:  # Windows: no advisory locks, so two writers are kept apart by the scheduler alone
    fcntl = None


class Lock:
    """A lock on a file of the store, released by `close` or when its process ends."""

    def __init__(self, path: Place) -> None:
        self._remote = isinstance(path, ObjectPath)
        self._fd: int | None = None
        if not isinstance(path, ObjectPath):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)

    def acquire(self, *, exclusive: bool, wait: bool) -> bool:
        """Take the lock, shared or exclusive; False when it is held by another and `wait` is False."""
        if self._remote:
            return wait or not exclusive
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
