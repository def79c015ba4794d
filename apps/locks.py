"""One command at a time in a work folder.

What is done lies in files that appear whole, so a folder outlives any end of a process. Two commands in one folder at
once would replace each other's files all the same. The lock belongs to the operating system and goes with the process
that holds it, however that ends; a note beside it says who that is.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from apps.errors import FolderInUse, InvalidFile
from apps.measurement import read_json, write_json

LOCK_FILE, HOLDER_FILE = "lock", "lock.json"


@contextmanager
def only_command(folder: Path, command: str) -> Iterator[None]:
    """Hold a work folder, which is made if it is not there.

    Args:
        folder: the work folder. Processes that the command starts for its own work do not lock it again.
        command: as people know it, for the message that another one gets.

    Raises:
        FolderInUse: another command holds the folder; its process is named.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock, note = FileLock(folder / LOCK_FILE, timeout=0), folder / HOLDER_FILE
    try:
        lock.acquire()
    except Timeout as error:
        raise FolderInUse(
            f"{command}: {str(folder)!r} is in use by {_holder(note)}. Wait for its end, or take another folder."
        ) from error
    try:
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(note, {"command": command, "pid": os.getpid(), "host": platform.node(), "since": since})
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _holder(note: Path) -> str:
    try:
        found = read_json(note)
        return f"process {found['pid']} on {found['host']} ({found['command']}, since {found['since']})"
    except (FileNotFoundError, InvalidFile, KeyError):  # it has the lock, and has not said who it is yet
        return "another process"
