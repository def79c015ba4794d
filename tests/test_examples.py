"""Every example in a docstring runs as a reader would paste it, alone, and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import probe.directions
import probe.lenses
import probe.model
from apps.cli import main

ROOT = Path(__file__).parent.parent
RECORDED = re.compile(r"Example, after ``denoscope (collect .*)``:")
ABSTRACT = {"StoreFinder", "ContrastFinder"}
PARTS = {"background_segment", "cross_attention_sites", "encoder_layers", "pck", "store_vectors", "without_layers",
         "word_positions"}  # fmt: skip
"""Functions that the lenses are made of, shown in their examples or too small for one."""


def examples() -> dict[str, doctest.DocTest]:
    """Of all docstrings of the libraries that show one."""
    found = {}
    for package in ("activations_store", "sae", "probe"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if ">>> " in path.read_text(encoding="utf-8"):
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                module = importlib.import_module(name)
                for test in doctest.DocTestFinder(exclude_empty=True).find(module, name, globs={}):
                    if test.examples:
                        found[test.name] = test
    return found


EXAMPLES = examples()
cached_load = cache(probe.model.load_pipeline)
"""Nearly every example loads the embedded model; here it is read once."""


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A folder that holds the run which some of the examples say they need."""
    commands = {line for test in EXAMPLES.values() for line in RECORDED.findall(test.docstring or "")}
    assert len(commands) == 1
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(shlex.split(commands.pop())) == 0
    return folder


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs_as_it_is_printed(name, run_folder, monkeypatch):
    monkeypatch.chdir(run_folder)
    monkeypatch.setattr(probe.model, "load_pipeline", cached_load)
    test = EXAMPLES[name]
    assert sum(example.source.count("\n") for example in test.examples) <= 10  # of code
    said: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert result.attempted == len(test.examples) and not result.failed, "".join(said)


def without(package: Any, wanted: Callable[[Any], bool]) -> set[str]:
    """Public names of a package that have no example."""
    items = {name: getattr(package, name) for name in package.__all__}
    return {name for name, item in items.items() if wanted(item) and ">>> " not in (inspect.getdoc(item) or "")}


def test_every_finder_and_every_lens_has_an_example():
    assert without(probe.directions, lambda item: hasattr(item, "fit")) == ABSTRACT
    assert without(probe.lenses, lambda item: inspect.isfunction(item) or hasattr(item, "fit")) == PARTS
