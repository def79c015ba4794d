"""The ``denoscope`` command: one parser, one small file for each sub-command, one place where errors become
messages.

Nothing heavy is imported until a sub-command runs, so ``denoscope --help`` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from apps.commands import (
    app,
    audit,
    bench,
    collect,
    demo,
    directions,
    features,
    generate,
    info,
    lens,
    sae,
    sites,
    steer,
    store,
    train,
    unlearn,
)
from apps.commands._options import HelpFormatter, as_typed

PACKAGES = ("activations_store", "apps", "probe", "sae")
FAILED, INTERRUPTED = 2, 130

_EXAMPLES = """\
examples:
  denoscope demo --out runs/demo
  denoscope collect --model canvas --sites mid_block up_blocks.1 --prompts canvas:200 --out runs/x
  denoscope train runs/x/store --site up_blocks.1 --expansion 8 --k 16
  denoscope features runs/x
  denoscope app runs/x

Every command has its own help with an example: denoscope COMMAND --help
"""


class _Version(argparse.Action):
    """``--version``, looked up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("denoscope")
        except PackageNotFoundError:  # running from a checkout that was not installed
            found = "(not installed)"
        print(f"denoscope {found}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="denoscope",
        description="Mechanistic interpretability of diffusion models: record, learn, intervene, judge.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (
        demo,
        sites,
        collect,
        train,
        sae,
        features,
        directions,
        info,
        lens,
        steer,
        unlearn,
        audit,
        generate,
        store,
        bench,
        app,
    ):
        module.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns:
        0; 2 after an error that a person can mend, told in one line; 130 after Ctrl-C.
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    # transformers remarks on image processors that no command uses.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        result = options.run(options)
    except KeyboardInterrupt:
        again = (
            "Run the same command again: finished parts are kept and it goes on from there."
            if options.resumable
            else "Nothing was kept; run the same command again."
        )
        print(f"\ndenoscope: interrupted. {again}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if options.debug or not _is_expected(error):
            raise
        print(f"denoscope: error: {as_typed(one_line(error), options)}", file=sys.stderr)
        return FAILED
    return int(result or 0)


def one_line(error: BaseException) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _is_expected(error: Exception) -> bool:
    """Errors of these packages, and what the operating system refuses (a full disk, a folder without
    permission).
    """
    own = any(base.__module__.split(".")[0] in PACKAGES for base in type(error).__mro__)
    return own or isinstance(error, OSError)


if __name__ == "__main__":
    sys.exit(main())
