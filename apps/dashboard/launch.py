"""How the dashboard is started: one ``streamlit run`` command, bound to this machine, with nothing sent
anywhere.

The dashboard has no login, so it listens on the loopback address and answers only requests that name it (a
page of another site could otherwise reach it by rebinding its own name to 127.0.0.1). Error pages never
show a traceback or a path.
"""

from __future__ import annotations

import sys
from pathlib import Path

from apps.errors import InvalidOption

ENTRY = Path(__file__).resolve().parent / "Home.py"
ADDRESS = "127.0.0.1"
ALLOWED_HOSTS = ("localhost", ADDRESS)
RUN_VARIABLE = "DENOSCOPE_RUN"
"""Environment variable that names the run when no argument does."""


def command(run: str | Path, port: int = 8501, *, headless: bool = False) -> list[str]:
    """The command that serves the dashboard of a run.

    Args:
        run: a run folder, or a folder of runs.
        port: TCP port on the loopback interface, 1024 to 65535.
        headless: do not open a browser.

    Returns:
        Arguments for ``subprocess``; they need no shell.

    Raises:
        InvalidOption: the port is out of range.
    """
    if not 1024 <= port <= 65535:
        raise InvalidOption(f"app: port {port} cannot be used; expected 1024 to 65535.")
    options = {
        "server.address": ADDRESS,
        "server.port": str(port),
        "server.headless": _flag(headless),
        "server.enableXsrfProtection": "true",
        "server.enableCORS": "true",
        "server.fileWatcherType": "none",
        "client.showErrorDetails": "none",
        "client.toolbarMode": "minimal",
        "browser.gatherUsageStats": "false",
        "browser.serverAddress": "localhost",
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    flags += [f"--server.allowedHosts={host}" for host in ALLOWED_HOSTS]
    # The run comes after `--`, as one argument: a folder name that looks like an option stays a folder name.
    return [sys.executable, "-m", "streamlit", "run", str(ENTRY), *flags, "--", str(run)]


def url(port: int = 8501) -> str:
    """Where the dashboard is served."""
    return f"http://localhost:{port}"


def _flag(value: bool) -> str:
    return "true" if value else "false"
