"""``denoscope sites``: the names of a model's sites, with their shapes."""

from __future__ import annotations

import argparse

from apps.commands._options import Commands, add_command, add_model, load_model

_EXAMPLE = """
denoscope sites --model ./stable-diffusion-v1-5
denoscope sites 'up_blocks.1.*' --every
"""


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "sites",
        run,
        summary="list the sites of a model that can be recorded",
        about="Run one denoising step of a model and list its blocks in the order in which they run: the name that "
        "--sites and --site take, tokens x channels of one sample at one step and branch, and the bytes of that in "
        "float16. Behind a name, :in is what goes into the module and :delta what it adds.",
        example=_EXAMPLE,
    )
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="names; * stands for anything")
    parser.add_argument("--every", action="store_true", help="every module, not only blocks")
    parser.add_argument("--prompt", default="0", help="what is drawn; a class number for a model of classes")
    add_model(parser)


def run(options: argparse.Namespace) -> None:
    """List what is there."""
    from apps.errors import InvalidOption
    from apps.progress import table
    from probe.capture import list_sites
    from probe.capture.size import human_bytes

    found = list_sites(load_model(options), options.prompt, pattern=options.pattern)
    shown = [each for each in found if options.every or is_block(each.site.path)]
    if not shown:
        more = "" if options.every else " Modules inside blocks are listed with --every."
        raise InvalidOption(f"sites: no site of this model is named {options.pattern!r}.{more}")
    rows = []
    for site, shape in shown:
        size = f"{shape.tokens} x {shape.channels}"
        grid = "x".join(map(str, shape.grid)) if shape.grid else ""
        rows.append([site.path.partition(".")[2], size, grid, human_bytes(2 * shape.tokens * shape.channels)])
    print(table(["site", "tokens x channels", "map", "float16"], rows))


def is_block(path: str) -> bool:
    """Whether a module path ends in a block's name, or in a number of a list that is named in the plural."""
    *_, parent, last = ("", *path.split("."))
    return last.endswith("block") or (last.isdecimal() and parent.endswith("s"))
