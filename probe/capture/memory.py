"""Memory of this process and of the machine, where the system tells."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes that this process could still take without swapping; None if the system does not say.

    The smaller of what the machine has free and what the process's control group leaves; of the group's own count,
    cached files are left out, since the system drops them when memory is asked for.
    """
    found = []
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except OSError:  # not Linux
        pass
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            counts = dict(line.split() for line in (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
            cached = sum(int(counts.get(name, 0)) for name in ("active_file", "inactive_file"))
            found.append(int(limit) - int((_CGROUP / "memory.current").read_text(encoding="ascii")) + cached)
    except OSError:  # no control group of the second kind
        pass
    return max(0, min(found)) if found else None


def peak_memory() -> int | None:
    """The most bytes of memory this process has held so far; None where that is unknown."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def current_memory() -> int | None:
    """Bytes of memory this process holds now; None where that is unknown."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:  # not Linux
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
