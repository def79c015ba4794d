"""Processes that end with the one that started them.

A worker of a pool that has lost its parent would otherwise go on with what it holds: nobody waits for it, and it keeps
a core busy. Ctrl-C reaches all processes of a terminal; a killed parent tells nobody.
"""

from __future__ import annotations

import os
from multiprocessing import parent_process
from threading import Thread


def end_with_parent() -> None:
    """From now on, this process ends at once when its parent does. For processes started by ``multiprocessing`` whose
    results are files that appear whole or not at all.
    """
    Thread(target=_wait, daemon=True).start()


def _wait() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
