"""Every notebook runs from top to bottom, at a smaller size than it was saved with, and shows what it was saved with.

One kernel runs them all, because importing the libraries takes longer than most of what they do; it is emptied of names
before each, so that none lives on what another has defined.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")  # Jupyter's own
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
SMALLER: dict[str, dict[str, str]] = {
    "information": {"render_batch(range(5)": "render_batch(range(3)", "pilot, 16, pilot=8)": "pilot, 6, pilot=4)"},
    "tour": {
        "balanced(128)": "balanced(32)",
        "rows=200_000": "rows=40_000",
        '!= "red"][:32]': '!= "red"][:8]',
        "range(1000, 1032)": "range(1000, 1008)",
    },
    "unlearn": {"seeds=range(2)": "seeds=range(1)"},
    "your_model": {"] * 5": "] * 2"},
}
"""What is replaced in the sources: numbers of pictures, rows and noise levels. Every call stays."""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import nbformat
    from nbclient import NotebookClient

    place = {"metadata": {"path": str(tmp_path_factory.mktemp("notebooks"))}}
    client = NotebookClient(nbformat.v4.new_notebook(), timeout=300, kernel_name="python3", resources=place)
    with client.setup_kernel():
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, client: Any) -> None:
    import nbformat

    client.nb = notebook = nbformat.read(path, 4)
    saved = [shown(cell) for cell in notebook.cells]
    assert any(saved)
    for large, small in SMALLER[path.stem].items():
        assert any(large in cell.source for cell in notebook.cells), large
        for cell in notebook.cells:
            cell.source = cell.source.replace(large, small)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    client.reset_execution_trackers()
    for number, cell in enumerate(notebook.cells):
        client.execute_cell(cell, number)  # raises the error of a cell
    assert [shown(cell) for cell in notebook.cells[1:]] == saved


def shown(cell: Any) -> list[str]:
    """The kinds of what a cell put out, one after another; how often a kernel sends what was printed is its affair."""
    kinds = [out.output_type for out in cell.get("outputs", ()) if out.get("name") != "stderr"]
    return [kind for kind, _ in groupby(kinds)]
