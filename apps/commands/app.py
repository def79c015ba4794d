"""``denoscope app``: serve the dashboard of a run on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from apps.commands._options import Commands, add_command

_EXAMPLE = """
denoscope app runs/demo
denoscope app runs
denoscope app benchmarks/results --port 8600 --no-browser
"""


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "app",
        run,
        summary="open the dashboard on a run",
        about="Serve the dashboard of a run at 127.0.0.1: features, single images, directions, unlearning, "
        "steering, and every file of results in the folder. It reads what the other commands wrote; a model is run by "
        "one button alone, Draw on the page Inspect.",
        example=_EXAMPLE,
    )
    parser.add_argument(
        "run_folder", metavar="RUN", type=Path, help="run folder, a folder of runs, or a folder of results"
    )
    parser.add_argument("--port", type=int, default=8501, help="TCP port")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")


def run(options: argparse.Namespace) -> int:
    """Start the server and wait for it."""
    import subprocess
    from importlib.util import find_spec

    from apps.dashboard.findings import holds_any
    from apps.errors import MissingExtra, RunNotFound
    from apps.runs import find_runs

    if not find_runs(options.run_folder) and not holds_any(options.run_folder):
        state = "holds no run and no results" if options.run_folder.is_dir() else "does not exist"
        raise RunNotFound(
            f"app: {str(options.run_folder)!r} {state}. Make a run with: denoscope demo --out {options.run_folder}"
        )
    if find_spec("streamlit") is None:
        raise MissingExtra("app: the dashboard needs streamlit. Install it with: pip install 'denoscope[app]'")
    from apps.dashboard.launch import command, url

    arguments = command(options.run_folder.resolve(), options.port, headless=options.no_browser)
    print(f"{url(options.port)} (stop with Ctrl-C)")
    with subprocess.Popen(arguments) as server:
        try:
            return server.wait()
        except KeyboardInterrupt:  # the server got it too; this is how one leaves the dashboard
            server.wait()
            return 0
