"""What the sub-commands share: the look of their help and options with one meaning everywhere."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.errors import InvalidOption, OutputExists

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Commands = Any
"""What ``add_subparsers`` returns; its class is private to argparse."""


PRECISIONS = ("float32", "bfloat16", "float16")


class HelpFormatter(argparse.HelpFormatter):
    """Defaults behind every option that has one, text wrapped, examples (indented lines) as they are written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = (
            line if line.startswith("  ") else textwrap.fill(line, width, initial_indent=indent, break_on_hyphens=False)
            for line in text.splitlines()
        )
        return "\n".join(lines)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        if (
            default in (None, "", argparse.SUPPRESS)
            or isinstance(default, bool)
            or default == []
            or "%(default)" in (action.help or "")
        ):
            return action.help
        shown = " ".join(f"{item}" for item in default) if isinstance(default, list | tuple) else f"{default}"
        return f"{action.help} (default: {shown.replace('%', '%%')})"

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == argparse.ONE_OR_MORE:  # "N ..." instead of "N [N ...]"
            return f"{self._metavar_formatter(action, default_metavar)(1)[0]} ..."
        return super()._format_args(action, default_metavar)

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):  # argparse forgets that sub-commands are indented once more
            self._action_max_length += self._indent_increment


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
    parser = _described(commands, name, summary, about, example)
    parser.set_defaults(run=run, resumable=resumable)
    return parser


def add_group(
    commands: Commands, name: str, title: str, metavar: str, *, summary: str, about: str, example: str
) -> Commands:
    """A sub-command that is several: its help, and what its parts are added to.

    Args:
        commands: of the parent parser.
        name: as it is typed.
        title, metavar: what the parts are called in the help, and one of them in the usage line.
        summary, about, example: as of ``add_command``.
    """
    parser = _described(commands, name, summary, about, example)
    return parser.add_subparsers(title=title, metavar=metavar, required=True)


def _described(commands: Commands, name: str, summary: str, about: str, example: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=about,
        epilog="example:\n" + "\n".join(f"  {line}" for line in example.strip().splitlines()),
        formatter_class=HelpFormatter,
    )


def add_model(parser: argparse.ArgumentParser, *, default: str | None = "canvas", of: str = "") -> None:
    """``--model``, ``--device`` and ``--precision``; ``of`` says where a model that is not given comes from."""
    said = f" (default: {of})" if of else ""
    parser.add_argument("--model", default=default, help=f"canvas, a pipeline folder, or a hub id{said}")
    parser.add_argument("--device", default="cpu", help="where the model runs: cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--precision", default="float32", choices=PRECISIONS, help="number format of the model's weights in memory"
    )


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


_SETTING = re.compile(r"\b([a-z][a-z_]*)=('[\w.+-]*'|\((?:'[\w.+-]*',? ?)+\)|[\w.+-]+)")


def as_typed(text: str, options: argparse.Namespace) -> str:
    """A message of the libraries for those who typed a command: settings in its own spelling where it has them.

    The libraries speak of fields: ``dtype='int8'``, ``branches=('cond',)``. Here that is ``--dtype int8`` and
    ``--branches cond``, for a command with such options.
    """

    def typed(setting: re.Match[str]) -> str:
        name, value = setting.groups()
        if name not in options:
            return setting[0]
        words = re.findall(r"[\w.+-]+", value)
        return " ".join([f"--{name.replace('_', '-')}", *words])

    return _SETTING.sub(typed, text)


def load_model(options: argparse.Namespace) -> DiffusionPipeline:
    """The pipeline of ``--model`` on ``--device`` in ``--precision``, where the command has it; float32 elsewhere."""
    import torch

    from probe.model import load_pipeline

    try:
        device = torch.device(options.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise InvalidOption(f"--device {options.device}: torch cannot use it here; cpu always works.") from error
    precision = getattr(options, "precision", "float32")
    if precision == "float16" and device.type == "cpu":
        raise InvalidOption("--precision float16 is for accelerators; on a CPU use float32 or bfloat16.")
    return load_pipeline(options.model, dtype=getattr(torch, precision), device=device)


def model_of_artefact(given: str | None, name: str | None, what: str | Path) -> str:
    """The model to load: the one given, else the one that an artefact was made with, else canvas.

    Artefacts name a model by its short name, which is no path, so a folder is found only where it lies at hand.

    Raises:
        InvalidOption: the artefact's model is neither canvas nor a hub id nor a folder here.
    """
    found = given or name or "canvas"
    if given is None and found != "canvas" and found.count("/") != 1 and not Path(found).is_dir():
        raise InvalidOption(f"{what} was made with the model {found!r}; give its folder: --model FOLDER.")
    return found


def new_file(path: str | Path, *, force: bool = False) -> Path:
    """A file that is to be written.

    Raises:
        OutputExists: it is there already and ``force`` is off.
    """
    path = Path(path)
    if path.exists() and not force:
        raise OutputExists(f"{str(path)!r} exists already; choose another --out, or pass --force to replace it.")
    return path
