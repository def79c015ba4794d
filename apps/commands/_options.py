"""What the sub-commands share: the look of their help and options with one meaning everywhere."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.errors import InvalidOption, OutputExists

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Commands = Any
"""What ``add_subparsers`` returns; its class is private to argparse."""


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults behind every option that has one, examples as they are written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or isinstance(action.default, bool) or action.default == []:
            return action.help
        return super()._get_help_string(action)


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    *,
    summary: str,
    about: str,
    example: str,
    resumable: bool = False,
) -> argparse.ArgumentParser:
    """A sub-command with its help.

    Args:
        commands: of the parent parser.
        name: as it is typed.
        run: does the work.
        summary: a few words for the list of commands.
        about: what it does.
        example: command lines, one a line.
        resumable: whether an interrupted run goes on when it is started again.
    """
    parser = commands.add_parser(
        name,
        help=summary,
        description=about,
        epilog="example:\n" + "\n".join(f"  {line}" for line in example.strip().splitlines()),
        formatter_class=_Formatter,
    )
    parser.set_defaults(run=run, resumable=resumable)
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """``--model`` and ``--device``."""
    parser.add_argument("--model", default="canvas", help="canvas, a pipeline folder, or a hub id")
    parser.add_argument("--device", default="cpu", help="where the model runs: cpu, cuda, cuda:1, mps")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """``--steps``, ``--guidance``, ``--batch-size``."""
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's own)")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the model's own)")
    parser.add_argument("--batch-size", type=positive, default=16, help="images at a time")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def steps_range(text: str) -> tuple[int, ...]:
    """Steps such as ``5-14``, ``3`` or ``0-4,10-14``; both ends count."""
    steps: set[int] = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        if not low.isdecimal() or not (high or low).isdecimal() or int(high or low) < int(low):
            raise argparse.ArgumentTypeError(f"{text!r} is not a range of steps such as 5-14 or 0-4,10-14")
        steps |= set(range(int(low), int(high or low) + 1))
    return tuple(sorted(steps))


def load_model(options: argparse.Namespace) -> DiffusionPipeline:
    """The pipeline of ``--model`` on ``--device``."""
    import torch

    from probe.model import load_pipeline

    try:
        device = torch.device(options.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise InvalidOption(f"--device {options.device}: torch cannot use it here; cpu always works.") from error
    return load_pipeline(options.model, device=device)


def new_file(path: str | Path, *, force: bool = False) -> Path:
    """A file that is to be written.

    Raises:
        OutputExists: it is there already and ``force`` is off.
    """
    path = Path(path)
    if path.exists() and not force:
        raise OutputExists(f"{str(path)!r} exists already; choose another --out, or pass --force to replace it.")
    return path


def store_folder(path: str | Path) -> Path:
    """The store itself, from a store folder or a run folder that holds one."""
    from apps.runs import STORE_MARK, Run

    path = Path(path)
    inside = Run(path).store
    return inside if (inside / STORE_MARK).is_file() and not (path / STORE_MARK).is_file() else path
