"""Fills the numbers in the documents from the committed measurements: ``python -m docs.fill [--check]``.

A document marks what is filled, in comments that Markdown does not show:

    <!-- value benchmarks/results/demo.json ratios.object_ua .1% -->93.2%<!-- /value -->

    <!-- table benchmarks/results/canvas.json rows | what: name | object: object .1% -->
    ...
    <!-- /table -->

A value is a dotted path and a format; a table is a dotted path to a list and, for each column, its title, the key in
a row and a format. A list in a path may be followed by conditions, ``rows[part=average][factor=object]``, which keep
the rows where the key has the value; ``rows[method=uce].0.ua`` is a value of the first. In a table, a format with ``~``
at its end shows the interval too, from the keys with ``_low`` and ``_high``. Text between the marks is replaced.
``--check`` changes nothing and fails if anything differs.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_VALUE = re.compile(r"(<!-- value (\S+) (\S+) (\S*) ?-->)(.*?)(<!-- /value -->)", re.DOTALL)
_TABLE = re.compile(r"(<!-- table (\S+) (\S+) \|(.*?)-->\n)(.*?)(<!-- /table -->)", re.DOTALL)


_CONDITION = re.compile(r"\[([^=\]]+)=([^\]]*)\]")


def _look_up(tree: Any, path: str) -> Any:
    for part in path.split("."):
        name = part.partition("[")[0]
        tree = tree[int(name)] if isinstance(tree, list) else tree[name]
        for key, wanted in _CONDITION.findall(part):
            tree = [row for row in tree if str(row.get(key)) == wanted]
    return tree


def _show(value: Any, form: str) -> str:
    if value is None:
        return "n/a"
    return format(value, form).replace("%", " %") if form else str(value)


def _cell(row: Any, key: str, form: str) -> str:
    """A value of a row; with ``~`` behind the format also its interval, ``key_low`` to ``key_high``."""
    value = _show(_look_up(row, key), form.removesuffix("~"))
    if not form.endswith("~") or row.get(f"{key}_low") is None:
        return value
    low, high = (_show(row[f"{key}{end}"], form.removesuffix("~")).removesuffix(" %") for end in ("_low", "_high"))
    return f"{value.removesuffix(' %')} ({low} to {high})"


def filled(text: str, root: Path = ROOT) -> str:
    """A document with its marked numbers taken from the files they name.

    Raises:
        KeyError, FileNotFoundError: if a mark names what is not there.
    """

    def load(name: str) -> Any:
        return json.loads((root / name).read_text())

    def value(match: re.Match[str]) -> str:
        head, name, path, form, _, tail = match.groups()
        return head + _show(_look_up(load(name), path), form) + tail

    def table(match: re.Match[str]) -> str:
        head, name, path, columns, _, tail = match.groups()
        titles, keys, forms = [], [], []
        for column in columns.split("|"):
            title, _, what = column.strip().partition(": ")
            key, _, form = what.partition(" ")
            titles.append(title)
            keys.append(key)
            forms.append(form)
        lines = [titles, ["---"] * len(titles)]
        for row in _look_up(load(name), path):
            lines.append([_cell(row, key, form) for key, form in zip(keys, forms, strict=True)])
        return head + "".join("| " + " | ".join(line) + " |\n" for line in lines) + tail

    return _TABLE.sub(table, _VALUE.sub(value, text))


def documents(root: Path = ROOT) -> list[Path]:
    """The Markdown files that may hold marks."""
    folders = ("docs", "probe", "sae", "activations_store", "apps", "benchmarks")
    return [root / "README.md", *(p for folder in folders for p in sorted((root / folder).rglob("*.md")))]


def main(argv: list[str] | None = None) -> int:
    """Fill or check all documents; the number of stale ones is the exit status."""
    parser = argparse.ArgumentParser(prog="python -m docs.fill", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a document is stale")
    args = parser.parse_args(argv)
    stale = 0
    for path in documents():
        old = path.read_text()
        new = filled(old)
        if new != old:
            stale += 1
            sys.stderr.write(f"{'stale' if args.check else 'filled'}: {path.relative_to(ROOT)}\n")
            if not args.check:
                path.write_text(new)
    return stale if args.check else 0


if __name__ == "__main__":
    raise SystemExit(main())
